// What is shown to a person at a terminal: colours, progress, errors in one line.
//
// Thread safety: one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace zipcache::cli {

// `stream` is a terminal and NO_COLOR is not set.
bool colours(std::FILE* stream);

// One line of at most 1 KiB: control characters are written as \xNN.
std::string one_line(std::string_view text);

// "1.5 MiB" and the like, three figures.
std::string bytes_text(double bytes);

// Lines on standard error about work that takes long: a bar that is drawn again on a terminal, one
// line a stage elsewhere.
class Progress {
 public:
  // `total` steps of work in all.
  explicit Progress(int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void stage(const std::string& text);  // a new stage begins
  void step(int64_t n = 1);             // this much work is done
  void clear();                         // the bar disappears, so that something can be printed

 private:
  void draw();

  int64_t total_ = 0;
  int64_t done_ = 0;
  bool terminal_ = false;
  bool drawn_ = false;
  std::string stage_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace zipcache::cli
