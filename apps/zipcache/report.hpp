// Rows of `zipcache compare` and `zipcache eval kld`: one per policy, for people and for programs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "statistics.hpp"
#include "table.hpp"

namespace zipcache::cli {

// Bytes of a cache by kind, named as the backend names them.
struct CacheBytes {
  uint64_t now = 0;
  uint64_t peak = 0;
  uint64_t planned = 0;
  Json by_kind = Json::object();  // {"codes": 1, ...}
};

// Where a cache of ours spent time, in seconds or as shares of a test's.
struct CacheTime {
  double attention = 0, scoring = 0, packing = 0;
};

// What a cache holds at one length.
struct CacheFigures {
  CacheBytes bytes;
  uint64_t kv_bytes_f16 = 0;  // of the same elements at 16 bits
  double bits_per_element = 0;
  double ratio_params = 0, ratio_resident = 0;
  std::string kernel;
  CacheTime seconds = {};  // since the cache was made or cleared; zeros for llama.cpp's
};

struct CompareRow : CacheFigures {
  std::string policy;
  bool reference = false;  // the row that the others are held against
  bool partial = false;    // stopped before the last chunk ended
  Summary summary;
  std::vector<DepthSummary> by_depth;
  int cache_tokens = 0;  // tokens in the cache when its bytes were read
  double ratio_paper = 0;
  double prompt_tps = 0;
  std::optional<double> decode_tps;  // absent when not measured
};

// What is the same for all rows of one run.
struct RunFacts {
  std::string model, text;
  int ctx = 0;
  int chunks = 0;  // that were planned
  int ubatch = 0;
  int decode_tokens = 0;
  int threads = 0;
  uint64_t seed = 0;
  std::string llama_cpp, cpu;
  std::string wait_policy;          // of idle threads, as OpenMP was told
  std::string weights;              // type of the model's weights
  bool rounds_activations = false;  // which puts a floor under every divergence
};

// The figures of a summary, without its number of tokens.
Json to_json(const Summary& summary);
Json to_json(const CompareRow& row, const RunFacts& facts);

// The table with a footer that says what was run and what the columns mean.
std::string for_people(const std::vector<CompareRow>& rows, const RunFacts& facts, bool bold);

// A divergence in as many digits as it has meaning, scientific when small.
std::string divergence_text(double value);

}  // namespace zipcache::cli
