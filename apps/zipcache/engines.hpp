// What the commands that run a model under several policies share: a model on both engines, and
// contexts that each have a policy.
//
// Thread safety: one thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "backend.hpp"
#include "model.hpp"
#include "model_file.hpp"
#include "policy_list.hpp"
#include "report.hpp"

namespace zipcache::cli {

// Files that are found and checked before any work starts.
struct EngineFiles {
  std::filesystem::path model, backend;
  ModelFile about;
};

// `model` as the user gave it.
Result<EngineFiles> find_engine_files(const std::string& model);

// Whether a command knows that it reads the text of a file of token scores, and holds the two
// against each other.
enum class ScoreFiles : unsigned char { Refused, Checked };

// Fails with BadPolicy for the first policy of ours that is not one, or that ranks by a file where
// that is refused.
Status check_policies(std::span<const PolicyChoice> choices,
                      ScoreFiles files = ScoreFiles::Refused);

struct EngineOptions {
  bool f32_weights = false;  // expand the weights to 32 bits first
  int ubatch = 512;          // that the backend plans its buffers for, unless the user says
  int threads = 1;
  bool verbose = false;
};

// Where the models of both engines are.
struct Engines {
  Backend backend;
  Model served;  // on ZipCache0
  Model plain;   // on llama.cpp's own CPU path; null when no policy needs it
};

Result<Engines> open_engines(const EngineFiles& files, std::span<const PolicyChoice> choices,
                             const EngineOptions& options);

// A context whose cache follows a policy.
struct PolicyContext {
  PolicyChoice choice;
  Context context;
  int64_t cache_id = -1;  // in the backend's statistics, for a policy of ours
};

// The cache type of `options` is the choice's.
Result<PolicyContext> open_policy_context(const Engines& engines, const PolicyChoice& choice,
                                          ContextOptions options);

// Warns on standard error when `n_tokens` are more than the model was trained for.
void warn_about_length(int n_tokens, const ModelFile& about);

// The type of a model's weights, as results name it.
std::string weights_text(llama_ftype weights, bool expanded);

// What the cache of `opened`, one policy's context, holds now that `n_tokens` are in it.
Result<CacheFigures> read_cache(const Engines& engines, const PolicyContext& opened,
                                const ModelFile& about, int n_tokens);

}  // namespace zipcache::cli
