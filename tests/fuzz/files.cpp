// Files of rotations and of token scores: whatever is accepted is written again byte for byte, and
// what is refused is refused in one line, for any bytes and for those under a right checksum.
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fuzz.hpp"
#include "zipcache/rotations.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache::fuzz {
namespace {

// A file in memory.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view content) : descriptor_(memfd_create("fuzz", 0)) {
    const ssize_t n = write(descriptor_, content.data(), content.size());
    require(n == ssize_t(content.size()), "no room for a file of {} bytes", content.size());
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }
  std::string content() const {
    std::ifstream file(path(), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

 private:
  int descriptor_;
};

template <class Load, class Save>
void check_file(const std::string& content, Load&& load, Save&& save) {
  const MemoryFile file(content);
  const auto loaded = load(file.path());
  if (!loaded.ok()) return require_good_message(loaded.status());
  const MemoryFile copy("");
  const Status saved = save(copy.path(), *loaded);
  require(saved.ok(), "accepted, but cannot be saved: {}", saved.message());
  require(copy.content() == content, "saved, it is another file");
}

}  // namespace
}  // namespace zipcache::fuzz

// First byte: R or S for the kind of file, r or s for one with a right checksum put behind it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace zipcache;
  fuzz::Input bytes(data, size);
  const char kind = bytes.take<char>();
  std::string content(bytes.rest());
  if (kind == 'r' || kind == 's') {
    const uint64_t sum = XXH3_64bits(content.data(), content.size());
    content.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  }
  if (kind == 'R' || kind == 'r')
    fuzz::check_file(content, load_rotations, save_rotations);
  else
    fuzz::check_file(content, load_token_scores, save_token_scores);
  return 0;
}
