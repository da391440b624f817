// llama.cpp's model and context with owners, errors as values, and the calls that the commands
// need.
//
// Thread safety: one thread at a time per context.
#pragma once

#include <llama.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "zipcache/status.hpp"

namespace zipcache::cli {

struct ModelFree {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextFree {
  void operator()(llama_context* context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, ModelFree>;
using Context = std::unique_ptr<llama_context, ContextFree>;

// Loads a model whose layers, and with them its cache, are on `device`; null: llama.cpp's own CPU
// path.
Result<Model> load_model(const std::filesystem::path& path, ggml_backend_dev_t device);

// The vocabulary of a model, without its weights.
Result<Model> load_vocabulary(const std::filesystem::path& path);

struct ContextOptions {
  int n_ctx = 0;
  int n_ubatch = 512;
  int n_threads = 1;
  ggml_type cache_type = GGML_TYPE_F16;
  // Called with each node of the graph, as llama_context_params::cb_eval is; null for none.
  ggml_backend_sched_eval_callback observe = nullptr;
  void* observer = nullptr;
};

// One sequence, one stream, flash attention; `what` names the policy in an error.
Result<Context> open_context(llama_model* model, const ContextOptions& options,
                             const std::string& what);

// `add_special` adds what the model wants at the beginning; `parse_special` reads <|im_start|> and
// the like as the tokens that they name.
std::vector<llama_token> tokenise(const llama_model* model, const std::string& text,
                                  bool add_special, bool parse_special);

// Decodes `tokens` at positions `first`, `first`+1, ...; logits from index `logits_from` on are
// kept and stand one after another in llama_get_logits(). Waits until they are there.
Status decode(llama_context* context, std::span<const llama_token> tokens, int first,
              int logits_from);

// Decodes a prompt from position 0 on, `ubatch` tokens at a time; the last one's logits are kept.
// The answer is how many were decoded: fewer than all after an interrupt.
Result<int> decode_prompt(llama_context* context, std::span<const llama_token> prompt, int ubatch);

// The text of a token; control tokens have none.
std::string piece(const llama_model* model, llama_token token);

// The most likely token of one row of logits.
llama_token most_likely(std::span<const float> logits);

// The cache type called `name`, such as "q8_0".
ggml_type cache_type(const std::string& name);

// Version of the llama.cpp library in use, with the commit that it was built from.
std::string llama_version_text();

}  // namespace zipcache::cli
