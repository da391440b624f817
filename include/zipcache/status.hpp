// Errors as values: one table of codes, a Status, and a Result<T> that is a value or a Status.
// Nothing in this library throws across its interface, prints, exits or aborts on input.
//
//   zipcache::Result<zipcache::Policy> policy = zipcache::parse_policy("zipcache,ratio=0.7");
//   if (!policy.ok()) return policy.status();
//
// Thread safety: plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace zipcache {

enum class Code : uint8_t {
  Ok,
  BadPolicy,     // policy text or file is wrong; the one who wrote it can mend it
  BadArgument,   // a call broke its contract: shape, range, null pointer
  BadData,       // a number or byte that cannot be right, such as a NaN row or a damaged block
  Incompatible,  // model, build, machine or llama.cpp version that cannot be served
  OverLimit,     // a stated limit was reached: cells, layers, memory
  Environment,   // file, permission, device or operating system
  Aborted,       // the caller asked to stop
  Internal,      // a bug in this library
};

struct CodeInfo {
  Code code;
  const char* name;  // short name used in machine-readable output
  int exit_status;   // of the command line
};

// The one table of codes; the command line and the C interface read it.
inline constexpr CodeInfo kCodes[] = {
    {Code::Ok, "ok", 0},
    {Code::BadPolicy, "bad_policy", 2},
    {Code::BadArgument, "bad_argument", 2},
    {Code::BadData, "bad_data", 3},
    {Code::Incompatible, "incompatible", 4},
    {Code::OverLimit, "over_limit", 5},
    {Code::Environment, "environment", 6},
    {Code::Aborted, "aborted", 130},
    {Code::Internal, "internal", 1},
};

constexpr const CodeInfo& info(Code code) { return kCodes[static_cast<int>(code)]; }

// Success, or a code with one line of text that says what was found, what was expected and what to
// do.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::Ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::Ok;
  std::string message_;
};

inline Status ok() { return {}; }

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {  // NOLINT: implicit on purpose
    if (status_.ok()) status_ = {Code::Internal, "a result without a value was given no error"};
  }
  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  // For callers who prefer exceptions; the library itself never calls it.
  T value_or_throw() && {
    if (!ok()) throw std::runtime_error(status_.message());
    return std::move(*value_);
  }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace zipcache

// Passes an error up to the caller.
#define ZC_TRY(expression)                        \
  do {                                            \
    ::zipcache::Status zc_status_ = (expression); \
    if (!zc_status_.ok()) return zc_status_;      \
  } while (false)
