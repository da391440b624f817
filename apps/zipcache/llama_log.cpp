// llama.cpp's messages.
#include "llama_log.hpp"

#include <llama.h>

#include <cstdio>
#include <deque>
#include <mutex>

namespace zipcache::cli {

namespace {

constexpr size_t kKept = 3;

// llama.cpp logs from several threads and knows one callback for the process, hence one state.
struct State {
  std::mutex mutex;
  bool verbose = false;
  std::deque<std::string> errors;
  ggml_log_level last = GGML_LOG_LEVEL_NONE;  // level that a continued line belongs to
};

State& state() {
  static State the_state;
  return the_state;
}

bool is_error(ggml_log_level level) { return level == GGML_LOG_LEVEL_ERROR; }

void on_message(ggml_log_level level, const char* text, void*) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.verbose) std::fputs(text, stderr);
  const bool continued = level == GGML_LOG_LEVEL_CONT;
  if (!continued) s.last = level;
  if (!is_error(s.last)) return;
  if (continued && !s.errors.empty()) {
    s.errors.back() += text;
  } else {
    s.errors.emplace_back(text);
  }
  if (s.errors.size() > kKept) s.errors.pop_front();
}

}  // namespace

void capture_llama_log(bool verbose) {
  state().verbose = verbose;
  llama_log_set(on_message, nullptr);
}

std::string take_llama_errors() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  std::string out;
  for (std::string& text : s.errors) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    out += (out.empty() ? "" : "; ") + text;
  }
  s.errors.clear();
  return out;
}

}  // namespace zipcache::cli
