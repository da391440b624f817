// What is shown to a person at a terminal.
#include "terminal.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace zipcache::cli {

namespace {

constexpr size_t kLongestLine = 1024;
constexpr int kBarColumns = 24;

}  // namespace

bool colours(std::FILE* stream) {
  const char* no_colour = std::getenv("NO_COLOR");
  return isatty(fileno(stream)) == 1 && (no_colour == nullptr || *no_colour == '\0');
}

std::string one_line(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
    if (out.size() >= kLongestLine - 8) return out + " ...";
  }
  return out;
}

std::string bytes_text(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  const int decimals = unit == 0 || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2;
  return fmt::format("{:.{}f} {}", bytes, decimals, kUnits[unit]);
}

Progress::Progress(int64_t total)
    : total_(std::max<int64_t>(1, total)),
      terminal_(isatty(fileno(stderr)) == 1),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear(); }

void Progress::stage(const std::string& text) {
  stage_ = text;
  if (terminal_) {
    draw();
  } else {
    fmt::print(stderr, "{}\n", text);
  }
}

void Progress::step(int64_t n) {
  done_ = std::min(total_, done_ + n);
  if (terminal_) draw();
}

void Progress::clear() {
  if (drawn_) fmt::print(stderr, "\r\x1b[K");
  drawn_ = false;
}

void Progress::draw() {
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const int full = static_cast<int>(share * kBarColumns);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  const std::string left =
      share > 0.02 ? fmt::format(", {:.0f} s left", spent.count() * (1 - share) / share) : "";
  fmt::print(stderr, "\r\x1b[K[{:=<{}}{:{}}] {:3.0f} % {}{}", "", full, "", kBarColumns - full,
             100 * share, stage_, left);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace zipcache::cli
