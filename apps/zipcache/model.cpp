// llama.cpp's model and context.
#include "model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "interrupt.hpp"
#include "llama_log.hpp"

namespace zipcache::cli {

namespace {

Status failed(Code code, const std::string& doing, const std::string& cure) {
  const std::string reason = take_llama_errors();
  return {code, fmt::format("{}: {}; {}", doing,
                            reason.empty() ? "llama.cpp gave no reason" : reason, cure)};
}

// A batch of one sequence with a place for each field.
class Batch {
 public:
  explicit Batch(int n_tokens) : batch_(llama_batch_init(n_tokens, 0, 1)) {}
  ~Batch() { llama_batch_free(batch_); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  void add(llama_token token, int position, bool logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = position;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = 0;
    batch_.logits[i] = logits ? 1 : 0;
  }
  const llama_batch& get() const { return batch_; }

 private:
  llama_batch batch_;
};

}  // namespace

Result<Model> load_model(const std::filesystem::path& path, ggml_backend_dev_t device) {
  std::array<ggml_backend_dev_t, 2> devices = {device, nullptr};
  llama_model_params params = llama_model_default_params();
  params.devices = devices.data();
  params.n_gpu_layers = device == nullptr ? 0 : 999;
  Model model(llama_model_load_from_file(path.c_str(), params));
  if (!model) {
    return failed(Code::Incompatible,
                  fmt::format("--model: llama.cpp cannot load '{}'", path.string()),
                  "check the file, free memory, or use a model that this version supports");
  }
  if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
    return Status{
        Code::Incompatible,
        fmt::format("--model: '{}' has an encoder; expected a decoder-only model", path.string())};
  }
  return model;
}

Result<Model> load_vocabulary(const std::filesystem::path& path) {
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  Model model(llama_model_load_from_file(path.c_str(), params));
  if (model) return model;
  return failed(Code::Incompatible,
                fmt::format("--model: llama.cpp cannot read the vocabulary of '{}'", path.string()),
                "check the file, or use a model that this version supports");
}

Result<Context> open_context(llama_model* model, const ContextOptions& options,
                             const std::string& what) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.n_ctx;
  // Equal, so that one call of llama_decode is one micro-batch.
  params.n_batch = params.n_ubatch = options.n_ubatch;
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = options.n_threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = params.type_v = options.cache_type;
  params.offload_kqv = true;
  params.kv_unified = true;
  params.cb_eval = options.observe;
  params.cb_eval_user_data = options.observer;
  // Layers with a sliding window keep all cells, so that every policy holds the same rows.
  params.swa_full = true;
  Context context(llama_init_from_model(model, params));
  if (!context) {
    return failed(Code::Incompatible,
                  fmt::format("policy '{}': llama.cpp cannot make a context of {} tokens", what,
                              options.n_ctx),
                  "use a smaller -c, or run zipcache doctor");
  }
  return context;
}

std::vector<llama_token> tokenise(const llama_model* model, const std::string& text,
                                  bool add_special, bool parse_special) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const int length = static_cast<int>(text.size());
  std::vector<llama_token> tokens(text.size() + 2);
  int n = llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<int>(tokens.size()),
                         add_special, parse_special);
  if (n < 0) {
    tokens.resize(-n);
    n = llama_tokenize(vocab, text.data(), length, tokens.data(), static_cast<int>(tokens.size()),
                       add_special, parse_special);
  }
  tokens.resize(std::max(0, n));
  return tokens;
}

Status decode(llama_context* context, std::span<const llama_token> tokens, int first,
              int logits_from) {
  Batch batch(static_cast<int>(tokens.size()));
  for (int i = 0; i < static_cast<int>(tokens.size()); ++i)
    batch.add(tokens[i], first + i, i >= logits_from);
  const int answer = llama_decode(context, batch.get());
  if (answer == 0) {
    llama_synchronize(context);
    return ok();
  }
  if (answer == 1) {
    return {Code::OverLimit,
            fmt::format("decoding at position {}: found no free cell among {}; use a larger -c",
                        first, llama_n_ctx(context))};
  }
  return failed(Code::Incompatible,
                fmt::format("decoding at position {} failed ({})", first, answer),
                "run again with -v");
}

Result<int> decode_prompt(llama_context* context, std::span<const llama_token> prompt, int ubatch) {
  const int total = static_cast<int>(prompt.size());
  int at = 0;
  while (at < total && !interrupted()) {
    const int n = std::min(ubatch, total - at);
    ZC_TRY(decode(context, prompt.subspan(at, n), at, at + n == total ? n - 1 : n));
    at += n;
  }
  return at;
}

std::string piece(const llama_model* model, llama_token token) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  std::string out(64, '\0');
  int n = llama_token_to_piece(vocab, token, out.data(), static_cast<int>(out.size()), 0, false);
  if (n < 0) {
    out.resize(-n);
    n = llama_token_to_piece(vocab, token, out.data(), static_cast<int>(out.size()), 0, false);
  }
  out.resize(std::max(0, n));
  return out;
}

llama_token most_likely(std::span<const float> logits) {
  return static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

ggml_type cache_type(const std::string& name) {
  for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
    const char* found = ggml_type_name(static_cast<ggml_type>(type));
    if (found != nullptr && name == found) return static_cast<ggml_type>(type);
  }
  return GGML_TYPE_F16;
}

std::string llama_version_text() {
  return fmt::format("{} (ggml {}, {})", llama_version(), ggml_version(), ggml_commit());
}

}  // namespace zipcache::cli
