// What a model says behind a prompt.
#include "answers.hpp"

#include <algorithm>

#include "interrupt.hpp"
#include "record_task.hpp"
#include "statistics.hpp"

namespace zipcache::cli {

namespace {

std::span<const float> logits_of(const llama_model* model, llama_context* context, int output) {
  const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  return {llama_get_logits(context) + static_cast<size_t>(output) * n_vocab, n_vocab};
}

// Reads `prompt` into the emptied cache; its last logits are kept.
Result<int> begin(llama_context* context, std::span<const llama_token> prompt, int ubatch) {
  llama_memory_clear(llama_get_memory(context), true);
  return decode_prompt(context, prompt, ubatch);
}

}  // namespace

Result<std::string> answer(const llama_model* model, llama_context* context,
                           std::span<const llama_token> prompt, const AnswerLimits& limits,
                           int ubatch) {
  const Result<int> read = begin(context, prompt, ubatch);
  if (!read.ok()) return read.status();
  int position = *read;
  const llama_vocab* vocab = llama_model_get_vocab(model);
  std::vector<std::string> stops(limits.stops.begin(), limits.stops.end());
  std::string said;
  for (int i = 0; i < limits.most_tokens && !interrupted(); ++i) {
    const llama_token token = most_likely(logits_of(model, context, 0));
    if (llama_vocab_is_eog(vocab, token)) break;
    said += piece(model, token);
    const auto [text, stopped] = cut_at_stop(said, stops);
    if (stopped) return text;
    if (limits.most_characters > 0 && said.size() >= limits.most_characters)
      return said.substr(0, limits.most_characters);
    if (i + 1 < limits.most_tokens) ZC_TRY(decode(context, {&token, 1}, position++, 0));
  }
  return said;
}

Result<double> log_probability(const llama_model* model, llama_context* context,
                               std::span<const llama_token> prompt,
                               std::span<const llama_token> reference, int ubatch) {
  const Result<int> read = begin(context, prompt, ubatch);
  if (!read.ok()) return read.status();
  double sum = log_probability_of(logits_of(model, context, 0), reference.front());
  // The last token's successor is nobody's.
  const std::span<const llama_token> given = reference.first(reference.size() - 1);
  for (size_t at = 0; at < given.size() && !interrupted(); at += ubatch) {
    const auto batch = given.subspan(at, std::min<size_t>(ubatch, given.size() - at));
    ZC_TRY(decode(context, batch, *read + static_cast<int>(at), 0));
    for (size_t i = 0; i < batch.size(); ++i)
      sum +=
          log_probability_of(logits_of(model, context, static_cast<int>(i)), reference[at + i + 1]);
  }
  return sum / static_cast<double>(reference.size());
}

}  // namespace zipcache::cli
