// Line retrieval.
#include "retrieval.hpp"

#include <fmt/format.h>

#include <span>

#include "interrupt.hpp"
#include "result_file.hpp"

namespace zipcache::cli {

namespace {

bool is_sample(const Json& row) {
  return row.contains("lines") && row["lines"].is_number_integer() && row.contains("seed") &&
         row["seed"].is_string() && row.contains("prompt") && row["prompt"].is_string() &&
         row.contains("answer") && row["answer"].is_string();
}

std::span<const float> newest_logits(const llama_model* model, llama_context* context) {
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  return {llama_get_logits(context), static_cast<size_t>(n_vocab)};
}

}  // namespace

Result<std::vector<RetrievalSample>> read_samples(const std::filesystem::path& path) {
  const Result<std::vector<Json>> rows = read_rows(path);
  if (!rows.ok()) return rows.status();
  std::vector<RetrievalSample> samples;
  for (const Json& row : *rows) {
    if (!is_sample(row)) {
      return Status{Code::BadData,
                    fmt::format("--records: '{}', row {}: expected the fields lines, seed, prompt "
                                "and answer; write the file with eval/retrieval_model/lines.py",
                                path.string(), samples.size() + 1)};
    }
    samples.push_back({row["lines"], row["seed"], row["prompt"], row["answer"]});
  }
  return samples;
}

Result<std::string> ask(const llama_model* model, llama_context* context,
                        const RetrievalSample& sample, int ubatch) {
  llama_memory_clear(llama_get_memory(context), true);
  const Result<int> read = decode_prompt(context, sample.tokens, ubatch);
  if (!read.ok()) return read.status();
  int position = *read;
  const llama_vocab* vocab = llama_model_get_vocab(model);
  std::string said;
  // A token has at least one byte, or else it is the end.
  while (said.size() < sample.answer.size() && !interrupted()) {
    const llama_token token = most_likely(newest_logits(model, context));
    const std::string text = piece(model, token);
    if (llama_vocab_is_eog(vocab, token) || text.empty()) break;
    said += text;
    if (said.size() < sample.answer.size()) ZC_TRY(decode(context, {&token, 1}, position++, 0));
  }
  return said.substr(0, sample.answer.size());
}

}  // namespace zipcache::cli
