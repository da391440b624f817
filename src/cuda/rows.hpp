// Where kernels find rows and what belongs to tokens, by strides. Shared by host and device code.
#pragma once

#include <cstdint>

#include "cuda/record.hpp"

namespace zipcache::cuda {

// 16-bit floating point numbers [stream, token, head, dim], finite. Strides in numbers, multiples
// of 8; data at a multiple of 16 bytes.
struct InputRows {
  const uint16_t* data = nullptr;
  int64_t stream_stride = 0, token_stride = 0, head_stride = 0;

  ZC_BOTH const uint16_t* row(int stream, int token, int head) const {
    return data + stream * stream_stride + token * token_stride + head * head_stride;
  }
};

// A number for each token of each head: [stream, head, token]. Strides in numbers; a head_stride of
// 0 where heads share it.
template <class T>
struct PerToken {
  T* data = nullptr;
  int64_t stream_stride = 0, head_stride = 0;

  ZC_BOTH T* tokens(int stream, int head) const {
    return data + stream * stream_stride + head * head_stride;
  }
};

// What is wrong with rows as an argument of kernels, in words; null for nothing.
inline const char* fault_of(const InputRows& rows) {
  if (!rows.data) return "a null pointer, expected rows";
  if (reinterpret_cast<uintptr_t>(rows.data) % 16) return "an address that is no multiple of 16";
  const bool whole =
      rows.stream_stride % 8 == 0 && rows.token_stride % 8 == 0 && rows.head_stride % 8 == 0;
  return whole ? nullptr : "a stride that is no multiple of 8 numbers";
}

}  // namespace zipcache::cuda
