// `zipcache eval kld`: divergence from the 16-bit cache, in all and by depth.
//
// A few policies at a time run beside the reference, micro-batch by micro-batch, so that logits of
// the reference exist for one micro-batch only; the price is one more pass of the reference for
// each such group.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "arguments.hpp"
#include "commands.hpp"
#include "comparison.hpp"
#include "eval_setup.hpp"
#include "interrupt.hpp"
#include "places.hpp"

namespace zipcache::cli {

namespace {

struct Options : EvalOptions {
  std::vector<std::string> texts = {default_text()};
  std::vector<int> ctx = {2048};
  int chunks = 1;
  int bin = 512;
  int together = 4;
};

// One text at one length with the policies that have no row yet.
struct Job {
  const EvalText* text;
  int ctx;
  Json key;
  std::vector<PolicyChoice> missing;
  ChunkPlan plan = {};
};

std::vector<Job> list_jobs(const Options& options, const EvalSetup& setup,
                           const std::vector<EvalText>& texts) {
  std::vector<Job> jobs;
  for (const EvalText& text : texts) {
    for (const int ctx : options.ctx) {
      Json key = setup.key;
      key.update(Json{{"text", text.name},
                      {"text_print", text.print},
                      {"ctx", ctx},
                      {"chunks", options.chunks},
                      {"depth_bin", options.bin}});
      jobs.push_back({&text, ctx, key, missing_policies(setup, key)});
    }
  }
  return jobs;
}

// Everything is scored, for the bins; totals are of the second half of a chunk, as in compare.
Status plan_jobs(const Options& options, std::vector<EvalText>& texts, std::vector<Job>& jobs,
                 const llama_model* model) {
  for (EvalText& text : texts) text.tokens = tokenise(model, text.content, true, false);
  for (Job& job : jobs) {
    const Result<ChunkPlan> plan =
        plan_chunks(job.text->tokens.size(), job.ctx, options.chunks, options.ubatch);
    if (!plan.ok()) {
      return {plan.status().code(),
              fmt::format("--file: '{}': {}", job.text->name, plan.status().message())};
    }
    job.plan = *plan;
    job.plan.first = 0;
  }
  return ok();
}

Json depth_json(const std::vector<DepthSummary>& bins) {
  Json out = Json::array();
  for (const DepthSummary& bin : bins) {
    Json fields = {{"from", bin.begin}, {"to", bin.end}, {"n_scored", bin.summary.tokens}};
    fields.update(to_json(bin.summary));
    out.push_back(std::move(fields));
  }
  return out;
}

// Runs `group` over the chunks of `job`; an interrupted group leaves no rows.
Status run_group(const Options& options, EvalSetup& setup, const Job& job, const Engines& engines,
                 std::span<const PolicyChoice> group, Progress& progress) {
  const llama_vocab* vocab = llama_model_get_vocab(engines.served.get());
  std::vector<std::vector<llama_token>> chunks;
  for (int chunk = 0; chunk < job.plan.chunks; ++chunk)
    chunks.push_back(chunk_tokens(job.text->tokens, job.plan, chunk, vocab));
  const auto measured = compare_over(
      engines, setup.files.about, {job.plan, options.threads, 0, options.bin}, chunks, group,
      progress, [&](size_t chunk) {
        progress.stage(fmt::format("{}, {} tokens, chunk {}/{}, {} policies", job.text->name,
                                   job.ctx, chunk + 1, job.plan.chunks, group.size()));
      });
  if (!measured.ok()) return measured.status();
  for (size_t i = 0; i < measured->size(); ++i) {
    Json row = kld_row(job.key, options, engines, group[i], (*measured)[i]);
    row["by_depth"] = depth_json((*measured)[i].by_depth);
    ZC_TRY(setup.kept.add(row));
  }
  return ok();
}

Status run_jobs(const Options& options, EvalSetup& setup, std::vector<EvalText>& texts,
                std::vector<Job>& jobs) {
  std::vector<PolicyChoice> missing;
  for (const Job& job : jobs) missing.insert(missing.end(), job.missing.begin(), job.missing.end());
  if (missing.empty()) return ok();
  const Result<Engines> engines = open_eval_engines(options, setup, missing);
  if (!engines.ok()) return engines.status();
  ZC_TRY(plan_jobs(options, texts, jobs, engines->served.get()));

  int64_t work = 0;
  for (const Job& job : jobs) {
    ZC_TRY(for_groups(job.missing, options.together, [&](auto group) {
      work += caches_of(group) * job.plan.chunks * job.plan.ctx;
      return ok();
    }));
  }
  watch_interrupts();
  Progress progress(work);
  for (const Job& job : jobs) {
    ZC_TRY(for_groups(job.missing, options.together, [&](auto group) {
      return run_group(options, setup, job, *engines, group, progress);
    }));
    if (interrupted()) break;
  }
  return ok();
}

Status eval_kld(const Options& options) {
  ZC_TRY(check_range("--ctx-size", options.ctx, kShortestCtx, 1 << 24));
  Result<std::vector<EvalText>> texts = read_texts(options.texts);
  if (!texts.ok()) return texts.status();
  Result<EvalSetup> setup = set_up_eval(options);
  if (!setup.ok()) return setup.status();
  warn_about_length(*std::max_element(options.ctx.begin(), options.ctx.end()), setup->files.about);
  std::vector<Job> jobs = list_jobs(options, *setup, *texts);
  ZC_TRY(run_jobs(options, *setup, *texts, jobs));

  std::vector<Json> rows;
  for (const Job& job : jobs) {
    for (Json& row : rows_of(*setup, job.key)) rows.push_back(std::move(row));
  }
  return finish_eval(options, setup->format, rows);
}

}  // namespace

void add_eval_kld(CLI::App& eval, Action& action) {
  auto options = std::make_shared<Options>();
  options->task = "kld";
  options->model = kDefaultModel;
  CLI::App* command = eval.add_subcommand(
      "kld",
      "Divergence from the 16-bit cache on the same tokens, in all and by depth, with perplexity,\n"
      "agreement and the bits that the cache takes.");
  command->footer(
      "Examples:\n"
      "  zipcache eval kld -m model.gguf -f chat.txt -f code.txt -c 2048,8192 --out rows.jsonl\n"
      "  zipcache eval kld --policies 'q4_0;zip;zip,recent=64' --f32-weights\n"
      "  zipcache eval report rows.jsonl");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2 for the default model")
      ->capture_default_str();
  command->add_option("-f,--file", options->texts,
                      "text to read, may be given again; default: the book in data/text");
  command
      ->add_option("-c,--ctx-size", options->ctx,
                   "tokens of a chunk, several lengths with commas; totals are of the second half")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--chunks", options->chunks, "chunks to run, 0 for the whole text")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--depth-bin", options->bin, "tokens of a bin of depth")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command
      ->add_option(
          "--together", options->together,
          "policies in memory at a time, beside the reference; fewer lose less to Ctrl-C,\n"
          "more run the reference less often")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  add_eval_options(*command, *options);
  command->callback([options, &action] { action = [options] { return eval_kld(*options); }; });
}

}  // namespace zipcache::cli
