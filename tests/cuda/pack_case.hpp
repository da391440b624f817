// Blocks to pack on a GPU beside the records that the CPU's packing makes of them, in host memory.
#pragma once

#include <string>
#include <vector>

#include "cuda/pack_form.hpp"
#include "cuda/record_set.hpp"

namespace zipcache::cuda::test {

// Rows that stress something.
enum class Kind {
  Normal,
  Constant,  // all numbers of a channel, of a token, or all, the same
  Zeros,     // zeros of both signs, alone and below or above other numbers
  Extreme,   // the largest and the smallest 16-bit numbers
};
// What decides tiers on the GPU; on the CPU scores do.
enum class By { Scores, SeenScores, Tiers };

struct PackCase {
  std::string policy = "zipcache";
  int dim = 128, n_heads = 2, n_streams = 1, n_blocks = 2;  // blocks of each stream
  Kind kind = Kind::Normal;
  By by = By::Scores;
  int n_levels = 1000;    // different scores; few make ties
  int n_sinks = 0;        // in the first block
  bool unscored = false;  // no probe saw the last block
  bool learnt = true;     // queries taught the first head something, where k_round=query
  bool gaps = false;      // rows of other heads' numbers between those of the input
};

// What packing on a GPU has.
inline constexpr const char* kPackPolicies[] = {
    "zipcache",
    "uniform2",
    "uniform3",
    "uniform4",
    "uniform4,bits=8",
    "had4",
    "zipcache,bits=8/3/2,ratio=0.3/0.4",
    "zipcache,bits=16/8/4/2,ratio=0.1/0.2/0.3",
    "zipcache,bits=4/0,ratio=0.5",             // the others evicted
    "zipcache,k=4/4/2,v=4/2/2,ratio=0.3/0.3",  // key parameters of two tiers
    "zipcache,k=4/2,v=16/3",
    "zipcache,v_axis=token",
    "zipcache,k_axis=token",
    "zipcache,rotate=hadamard",
    "zipcache,v_rotate=hadamard,v_axis=token",
    "zipcache,fit=midpoint",
    "zipcache,fit=mse",
    "zipcache,fit=unbiased",
    "zip",
    "zip,rotate=none,bits=4/3/2,ratio=0.3/0.4",
    "zip,k_round=nearest",
    "zip,k_round=nearest,bits=8/3/2,ratio=0.2/0.3",
    "had4,fit=unbiased",
    "zipcache,k=16/2,v=16/2,rotate=hadamard,ratio=0.2",
    "h2o",  // no codes
    "kivi2",
    "kivi4,k_axis=channel96,v_axis=channel32,bits=8/3/2,ratio=0.3/0.3",
    "uniform4,v_axis=channel,v=4/4,k=4/2,ratio=0.4",
    "sym8",
    "sym8-had",
    "sym4,bits=4/3/2,ratio=0.3/0.3",
    "turbo-k4v4",
    "turbo-k4v4,bits=4/3/2,ratio=0.3/0.3,codec=lloyd,v_axis=channel32",
    "fp8",
    "fp8,k_axis=token,v_axis=cst",
    "nvfp4",
    "nvfp4,k_axis=channel16,v_axis=token",
    "qserve4",
    "mikv",
    "rotatekv",
    "kivi2,clip=q0.93",
    "zipcache,clip=0.7",
    "had4,k_axis=token,v_axis=group32,clip=q0.9,bits=4/2,ratio=0.5",
    "kvarn-k4v2",
    "kvarn-k4v2,k_axis=token,v_axis=channel32,dual=3,k=16/4/4/2,v=16/8/4/2,ratio=0.1/0.3/0.3",
    "zipcache,k_axis=channel,k_dual=1,v_axis=cst",
    "gear2-l",
    "kivi2,rank=16,bits=16/4/3/2,ratio=0.2/0.3/0.3",
    "sym8-had,rank=3",
    "nvfp4,rank=1",
    "turbo-k4v4,rank=2",
    "kvarn-k4v2,rank=2",
    "zipcache,rank=2,k=4/4/2,v=4/3/2,ratio=0.3/0.3",
    "fp8,rank=2",
    "rdkv,alloc=fraction,ratio=0.2/0.3/0.3,pool=1",
    "oscar2",
    "skvq",
    "zip,rotate=file",
    "zipcache,rotate=file,fit=mse",
    "zip,k_round=nearest,k_rotate=file,v_rotate=none",
    "had4,k_axis=token,v_rotate=file,v_axis=cst",
    "kvarn-k4v2,k_rotate=file",
    "gear2-l,rotate=file",
};

inline constexpr uint8_t kUntouched = 0xAA;

// What pack_records() is given, and the pool that it should leave behind.
struct PackInput {
  PackForm form;
  int dim = 0, n_heads = 0, n_streams = 0, n_tokens = 0, record_stride = 0;
  int64_t head_stride = 0;                    // of rows
  std::vector<half> k, v;                     // [stream, token, head, head_stride]
  std::vector<float> scores;                  // [stream, head, token], or empty
  std::vector<uint32_t> seen;                 // [stream, token], or empty
  std::vector<uint8_t> tiers;                 // [stream, head, token], or empty
  std::vector<float> feedback;                // [stream, head, feedback_floats(dim)], or empty
  std::vector<uint32_t> learnt;               // [stream, head], or empty
  std::vector<float> k_matrices, v_matrices;  // [head, dim, dim], or empty
  std::vector<PackTask> tasks;
  std::vector<Record> records;
  std::vector<uint8_t> expected;  // kUntouched where no record is
};
PackInput make_pack_input(const PackCase& test);

// Arguments over the input's own memory but for pool and n_wrong.
PackArgs args_of(const PackInput& input);

// The first byte in which a pool is not as it should be, in words; empty where all are.
std::string difference(const PackInput& input, const std::vector<uint8_t>& pool);
std::string describe(const PackCase& test);

}  // namespace zipcache::cuda::test
