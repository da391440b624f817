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

struct Text {
  std::string name, content, print;
  std::vector<llama_token> tokens = {};
};

// One text at one length with the policies that have no row yet.
struct Job {
  const Text* text;
  int ctx;
  Json key;
  std::vector<PolicyChoice> missing;
  ChunkPlan plan = {};
};

Result<std::vector<Text>> read_texts(const std::vector<std::string>& paths) {
  std::vector<Text> texts;
  for (const std::string& path : paths) {
    Result<std::string> content = read_text(path);
    if (!content.ok()) return content.status();
    const std::string print = fingerprint(*content);
    texts.push_back({std::filesystem::path(path).filename().string(), std::move(*content), print});
  }
  return texts;
}

std::vector<Job> list_jobs(const Options& options, const EvalSetup& setup,
                           const std::vector<Text>& texts) {
  std::vector<Job> jobs;
  for (const Text& text : texts) {
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
Status plan_jobs(const Options& options, std::vector<Text>& texts, std::vector<Job>& jobs,
                 const llama_model* model) {
  for (Text& text : texts) text.tokens = tokenise(model, text.content, true, false);
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

Json row_json(const Options& options, const Job& job, const Engines& engines,
              const PolicyChoice& choice, const CompareRow& measured) {
  Json row = with_policy(job.key, choice);
  row.update(bits_json(measured));
  row["kv_tokens"] = measured.cache_tokens;
  row["n_scored"] = measured.summary.tokens;
  row.update(to_json(measured.summary));
  row.update(eval_facts(options, engines, choice));
  row["by_depth"] = depth_json(measured.by_depth);
  return row;
}

// Runs `group` over the chunks of `job`; an interrupted group leaves no rows.
Status run_group(const Options& options, EvalSetup& setup, const Job& job, const Engines& engines,
                 std::span<const PolicyChoice> group, Progress& progress) {
  Comparison comparison(engines, setup.files.about, {job.plan, options.threads, 0, options.bin});
  const auto places = comparison.add_policies(group);
  if (!places.ok()) return places.status();
  const llama_vocab* vocab = llama_model_get_vocab(engines.served.get());
  for (int chunk = 0; chunk < job.plan.chunks; ++chunk) {
    progress.stage(fmt::format("{}, {} tokens, chunk {}/{}, {} policies", job.text->name, job.ctx,
                               chunk + 1, job.plan.chunks, group.size()));
    ZC_TRY(comparison.run_chunk(chunk_tokens(job.text->tokens, job.plan, chunk, vocab), progress));
    if (interrupted()) return ok();
  }
  ZC_TRY(comparison.read_caches());
  for (size_t i = 0; i < group.size(); ++i) {
    const CompareRow measured = comparison.row((*places)[i], false);
    ZC_TRY(setup.kept.add(row_json(options, job, engines, group[i], measured)));
  }
  return ok();
}

// Calls `visit` with each group of at most `together` policies.
template <class Visit>
Status for_groups(const Job& job, int together, const Visit& visit) {
  const std::span<const PolicyChoice> missing(job.missing);
  for (size_t first = 0; first < missing.size(); first += together) {
    ZC_TRY(visit(missing.subspan(first, std::min<size_t>(together, missing.size() - first))));
    if (interrupted()) break;
  }
  return ok();
}

// Tokens that are decoded for `group`, the reference included.
int64_t work_of(const Job& job, std::span<const PolicyChoice> group) {
  int64_t contexts = 1;
  for (const PolicyChoice& choice : group) contexts += choice.text == kReference ? 0 : 1;
  return contexts * job.plan.chunks * job.plan.ctx;
}

Status run_jobs(const Options& options, EvalSetup& setup, std::vector<Text>& texts,
                std::vector<Job>& jobs) {
  std::vector<PolicyChoice> missing;
  for (const Job& job : jobs) missing.insert(missing.end(), job.missing.begin(), job.missing.end());
  if (missing.empty()) return ok();
  const Result<Engines> engines = open_eval_engines(options, setup, missing);
  if (!engines.ok()) return engines.status();
  ZC_TRY(plan_jobs(options, texts, jobs, engines->served.get()));

  int64_t work = 0;
  for (const Job& job : jobs) {
    ZC_TRY(for_groups(job, options.together, [&](auto group) {
      work += work_of(job, group);
      return ok();
    }));
  }
  watch_interrupts();
  Progress progress(work);
  for (const Job& job : jobs) {
    ZC_TRY(for_groups(job, options.together, [&](auto group) {
      return run_group(options, setup, job, *engines, group, progress);
    }));
    if (interrupted()) break;
  }
  return ok();
}

Status eval_kld(const Options& options) {
  ZC_TRY(check_range("--ctx-size", options.ctx, kShortestCtx, 1 << 24));
  Result<std::vector<Text>> texts = read_texts(options.texts);
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
