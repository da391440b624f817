// How the C interfaces report: codes and one line of text instead of exceptions.
#pragma once

#include <new>
#include <string>
#include <string_view>

#include "base/text.hpp"
#include "zipcache/status.hpp"
#include "zipcache/zipcache.h"

namespace zipcache {

static_assert(ZC_INTERNAL == static_cast<int>(Code::Internal));

// Takes no memory, so that it can say that there is none.
inline zipcache_code report(Code code, std::string_view message, zipcache_error* error) {
  const auto out = static_cast<zipcache_code>(code);
  if (error) {
    error->code = out;
    copy_text(message, error->message, sizeof(error->message));
  }
  return out;
}

inline Status null_argument(const char* call) {
  return {Code::BadArgument, std::string(call) + ": a pointer is null"};
}

// Runs `body`, which returns a Status, and reports it; running out of memory is a code too.
template <class Body>
zipcache_code guarded(zipcache_error* error, Body&& body) {
  try {
    const Status status = body();
    return report(status.code(), status.message(), error);
  } catch (const std::bad_alloc&) {
    return report(Code::OverLimit, "out of memory; use a shorter context", error);
  } catch (const std::exception& e) {
    return report(Code::Internal, e.what(), error);
  }
}

}  // namespace zipcache
