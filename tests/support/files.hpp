// A file that lives as long as its object.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

namespace zipcache::test {

class TemporaryFile {
 public:
  TemporaryFile(const std::string& suffix, const std::string& content) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder ? folder : "/tmp") + "/zipcache-test-XXXXXX" + suffix;
    const int descriptor = mkstemps(path_.data(), int(suffix.size()));
    if (descriptor >= 0) close(descriptor);
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TemporaryFile() { unlink(path_.c_str()); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace zipcache::test
