// Measurements of `zipcache tune`.
#include "tune_measure.hpp"

#include <fmt/format.h>

#include "interrupt.hpp"
#include "tuning.hpp"
#include "zipcache/cache.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

// Chunks of the text with `place` among `n` texts when `total` are dealt in turn.
int share_of(int total, int n, int place) { return total / n + (place < total % n ? 1 : 0); }

std::string joined(const std::vector<EvalText>& texts, std::string EvalText::*field) {
  std::string out;
  for (const EvalText& text : texts) out += (out.empty() ? "" : "+") + text.*field;
  return out;
}

}  // namespace

Result<std::unique_ptr<Measurer>> Measurer::open(MeasureOptions options) {
  Result<EvalSetup> setup = set_up_eval(options);
  if (!setup.ok()) return setup.status();
  // One policy of each engine, so that both are there.
  const std::vector<PolicyChoice> both = {{kReference, ""}, {"q4_0", "q4_0"}};
  Result<Engines> engines = open_eval_engines(options, *setup, both);
  if (!engines.ok()) return engines.status();
  if (options.ctx == 0)
    options.ctx = usual_ctx(llama_model_n_params(engines->served.get()), options.threads);
  warn_about_length(options.ctx, setup->files.about);
  watch_interrupts();
  return std::unique_ptr<Measurer>(
      new Measurer(std::move(options), std::move(*setup), std::move(*engines)));
}

Result<Part> Measurer::part(const std::string& name, const std::vector<std::string>& paths,
                            int skip) {
  Result<std::vector<EvalText>> texts = read_texts(paths);
  if (!texts.ok()) return texts.status();
  const llama_model* model = engines_.served.get();
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const ChunkPlan plan{options_.ctx, options_.chunks, options_.ctx / 2, options_.ubatch,
                       options_.ctx / 2};
  Part part;
  part.key = setup_.key;
  part.key.update(Json{{"text", fmt::format("{} ({})", joined(*texts, &EvalText::name), name)},
                       {"text_print", joined(*texts, &EvalText::print)},
                       {"ctx", options_.ctx},
                       {"chunks", options_.chunks},
                       {"depth_bin", options_.ctx}});
  for (size_t i = 0; i < texts->size(); ++i) {
    EvalText& text = (*texts)[i];
    text.tokens = tokenise(model, text.content, true, false);
    const int n = share_of(options_.chunks, static_cast<int>(texts->size()), static_cast<int>(i));
    const size_t needed = static_cast<size_t>(n + skip) * options_.ctx;
    if (text.tokens.size() < needed) {
      return Status{Code::BadData,
                    fmt::format("--file: '{}': the text is too short: found {} tokens, expected at "
                                "least {} (the {} part); use a longer text, a smaller -c or fewer "
                                "--chunks",
                                text.name, text.tokens.size(), needed, name)};
    }
    for (int chunk = skip; chunk < skip + n; ++chunk)
      part.chunks.push_back(chunk_tokens(text.tokens, plan, chunk, vocab));
  }
  return part;
}

void Measurer::expect(int caches) {
  progress_ = std::make_unique<Progress>(int64_t{caches} * options_.chunks * options_.ctx);
}

int64_t Measurer::tokens_of(const Part& part) const {
  return static_cast<int64_t>(part.chunks.size()) * options_.ctx;
}

Status Measurer::measure(const Part& part, std::span<const PolicyChoice> missing,
                         const std::string& what) {
  return for_groups(missing, static_cast<size_t>(options_.together), [&](auto group) -> Status {
    const ChunkPlan plan{options_.ctx, static_cast<int>(part.chunks.size()), options_.ctx / 2,
                         options_.ubatch, options_.ctx / 2};
    const auto measured =
        compare_over(engines_, setup_.files.about, {plan, options_.threads, 0, options_.ctx},
                     part.chunks, group, *progress_, [&](size_t chunk) {
                       if (chunk == 0)
                         progress_->stage(fmt::format("{}, {} policies", what, group.size()));
                     });
    if (!measured.ok()) return measured.status();
    for (size_t i = 0; i < measured->size(); ++i)
      ZC_TRY(setup_.kept.add(kld_row(part.key, options_, engines_, group[i], (*measured)[i])));
    return ok();
  });
}

Result<std::vector<Json>> Measurer::rows(const Part& part, const std::vector<std::string>& policies,
                                         const std::string& what) {
  if (!progress_) expect(static_cast<int>(policies.size()) + 1);
  std::vector<PolicyChoice> missing;
  for (const std::string& policy : policies) {
    const Result<PolicyChoice> choice = parse_choice(policy);
    if (!choice.ok()) return choice.status();
    if (setup_.kept.find(with_policy(part.key, *choice)))
      progress_->step(tokens_of(part));
    else
      missing.push_back(*choice);
  }
  ZC_TRY(check_policies(missing, ScoreFiles::Checked));
  ZC_TRY(measure(part, missing, what));
  if (interrupted()) {
    return Status{Code::Aborted,
                  options_.out.empty()
                      ? "interrupted"
                      : fmt::format("interrupted; what was measured is in '{}', the same command "
                                    "goes on from there",
                                    options_.out)};
  }
  std::vector<Json> rows;
  for (const std::string& policy : policies)
    rows.push_back(*setup_.kept.find(with_policy(part.key, *parse_choice(policy))));
  return rows;
}

double coded_bits(const std::string& policy, const ModelFile& about) {
  const Result<PolicyChoice> choice = parse_choice(policy);
  if (!choice.ok()) return 0;
  if (!choice->ours()) {
    const ggml_type type = cache_type(choice->llama_type);
    return 8.0 * static_cast<double>(ggml_type_size(type)) /
           static_cast<double>(ggml_blck_size(type));
  }
  const Result<Policy> parsed = parse_policy(policy);
  if (!parsed.ok()) return 0;
  const Result<double> bits = long_run_bits(*parsed, about.layers);
  return bits.ok() ? *bits : 0;
}

}  // namespace zipcache::cli
