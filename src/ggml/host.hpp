// What the host program's ggml looks like: its interface version, the numbers of the operations
// that are served, and proof that tensors and nodes have the layout of our headers. Also the way to
// its log.
#pragma once

#include <ggml.h>

#include <exception>
#include <new>

#include "zipcache/status.hpp"

namespace zipcache::host {

// Operations of the host by name; -1 where it has none of that name.
struct Operations {
  int none = -1, view = -1, reshape = -1, permute = -1, transpose = -1;
  int set_rows = -1, flash_attn_ext = -1, rope = -1;
  bool is_view(int op) const {
    return op == none || op == view || op == reshape || op == permute || op == transpose;
  }
};

// Checks once, when the plug-in is loaded. Incompatible names the host's version and the tested
// ones.
Status check_layout();
const Operations& operations();
// Version of the internal backend interface, 2 or 3.
int interface_version();

// One line to the host's log; an `error` line, which is for refusals, straight to standard error.
void log(bool error, const std::string& line);

}  // namespace zipcache::host

namespace zipcache {

// Runs `body`, which returns a Status; what it throws (the system being out of memory) becomes one
// too, since nothing may be thrown through ggml.
template <class Body>
Status without_exceptions(Body&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return {Code::OverLimit, "out of memory"};  // a text that needs none
  } catch (const std::exception& e) {
    return {Code::Internal, e.what()};
  }
}

}  // namespace zipcache
