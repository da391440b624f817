// `zipcache run`: generates text with a policy and says what the cache cost.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "backend.hpp"
#include "commands.hpp"
#include "engines.hpp"
#include "interrupt.hpp"
#include "llama_log.hpp"
#include "model.hpp"
#include "model_file.hpp"
#include "places.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = kDefaultModel;
  std::string policy = "zip";
  std::string prompt, prompt_file, system_prompt;
  bool raw = false;
  int n_predict = 128;
  int ctx = -1;  // as much as is needed
  int ubatch = 512;
  int threads = available_threads();
  float temperature = 0;
  uint32_t seed = 1;
  bool ignore_end = false;
  bool verbose = false;
};

struct SamplerFree {
  void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using Sampler = std::unique_ptr<llama_sampler, SamplerFree>;

// A run that has its model and cache.
struct Session {
  Backend backend;
  Model model;
  Context context;
  std::vector<llama_token> prompt;
};

struct Timing {
  int prompt_tokens = 0, decoded_tokens = 0;
  double prompt_seconds = 0, decode_seconds = 0;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// llama.cpp's usual chain; at temperature 0 the most likely token.
Sampler make_sampler(const Options& options) {
  Sampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  if (options.temperature <= 0) {
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    return chain;
  }
  llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(40));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(0.95F, 1));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(0.05F, 1));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(options.temperature));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(options.seed));
  return chain;
}

// The prompt as a message to an assistant, in the form that the model was trained on.
Result<std::string> chat(const llama_model* model, const Options& options,
                         const std::string& prompt) {
  const char* form = llama_model_chat_template(model, nullptr);
  std::vector<llama_chat_message> messages;
  if (!options.system_prompt.empty()) messages.push_back({"system", options.system_prompt.c_str()});
  messages.push_back({"user", prompt.c_str()});
  std::string out(2 * (prompt.size() + options.system_prompt.size()) + 1024, '\0');
  int length = -1;
  for (int attempt = 0; form != nullptr && attempt < 2; ++attempt) {
    length = llama_chat_apply_template(form, messages.data(), messages.size(), true, out.data(),
                                       static_cast<int>(out.size()));
    if (length <= static_cast<int>(out.size())) break;
    out.resize(length);
  }
  if (length < 0) {
    return Status{
        Code::Incompatible,
        form == nullptr
            ? "the model has no chat template; use --raw to give it the prompt as it stands"
            : "llama.cpp does not know the model's chat template; use --raw to give it the "
              "prompt as it stands"};
  }
  out.resize(length);
  return out;
}

Result<std::string> prompt_text(const Options& options) {
  if (!options.prompt.empty()) return options.prompt;
  return read_text(options.prompt_file);
}

// Cells for prompt and answer, in whole hundreds and twenty-eights.
Result<int> context_size(const Options& options, const llama_model* model, int n_prompt) {
  const int needed = n_prompt + options.n_predict;
  if (options.ctx < 0) return (needed + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  const int ctx = options.ctx == 0 ? llama_model_n_ctx_train(model) : options.ctx;
  if (n_prompt < ctx) return ctx;
  return Status{
      Code::OverLimit,
      fmt::format("the prompt has {} tokens and does not fit a context of {}; use a larger "
                  "-c or a shorter prompt",
                  n_prompt, ctx)};
}

Result<Session> start(const Options& options) {
  const PolicyChoice choice{options.policy, ""};
  ZC_TRY(check_policies({&choice, 1}));
  const Result<std::string> text = prompt_text(options);
  if (!text.ok()) return text.status();
  const auto path = find_model(options.model);
  if (!path.ok()) return path.status();
  const Result<ModelFile> file = read_model_file(*path);
  if (!file.ok()) return file.status();
  const auto backend_path = find_backend();
  if (!backend_path.ok()) return backend_path.status();

  llama_backend_init();
  setenv("ZIPCACHE_UBATCH", fmt::format("{}", options.ubatch).c_str(), 0);
  if (!options.verbose) setenv("ZIPCACHE_LOG", "quiet", 0);
  Result<Backend> backend = Backend::load(*backend_path);
  if (!backend.ok()) return backend.status();
  ZC_TRY(backend->set_policy(options.policy));
  Result<Model> model = load_model(*path, backend->device());
  if (!model.ok()) return model.status();
  const Result<std::string> prompt = options.raw ? text : chat(model->get(), options, *text);
  if (!prompt.ok()) return prompt.status();
  std::vector<llama_token> tokens = tokenise(model->get(), *prompt, true, !options.raw);
  if (tokens.empty())
    return Status{Code::BadData, "the prompt has no tokens; give some text with -p or -f"};
  const Result<int> n_ctx = context_size(options, model->get(), static_cast<int>(tokens.size()));
  if (!n_ctx.ok()) return n_ctx.status();
  Result<Context> context = open_context(
      model->get(), {.n_ctx = *n_ctx, .n_ubatch = options.ubatch, .n_threads = options.threads},
      options.policy);
  if (!context.ok()) return context.status();
  return Session{*backend, std::move(*model), std::move(*context), std::move(tokens)};
}

Status read_prompt(const Options& options, const Session& session, Timing& timing) {
  const auto start_time = Clock::now();
  const Result<int> read = decode_prompt(session.context.get(), session.prompt, options.ubatch);
  if (!read.ok()) return read.status();
  timing.prompt_tokens = *read;
  timing.prompt_seconds = seconds_since(start_time);
  return ok();
}

// Writes tokens as they come, until the model ends, the limit is reached or somebody interrupts.
Status generate(const Options& options, const Session& session, Timing& timing) {
  const Sampler sampler = make_sampler(options);
  const llama_vocab* vocab = llama_model_get_vocab(session.model.get());
  const int room = static_cast<int>(llama_n_ctx(session.context.get())) - timing.prompt_tokens;
  for (int i = 0; i < options.n_predict && i < room && !interrupted(); ++i) {
    const llama_token token = llama_sampler_sample(sampler.get(), session.context.get(), -1);
    if (llama_vocab_is_eog(vocab, token) && !options.ignore_end) break;
    const std::string text = piece(session.model.get(), token);
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    const auto start_time = Clock::now();
    ZC_TRY(decode(session.context.get(), {&token, 1}, timing.prompt_tokens + i, 0));
    timing.decode_seconds += seconds_since(start_time);
    ++timing.decoded_tokens;
  }
  std::fputs("\n", stdout);
  return ok();
}

std::string speed(int tokens, double seconds) {
  return fmt::format("{:5} tokens  {:8.1f} tokens/s", tokens, seconds > 0 ? tokens / seconds : 0);
}

// Closing lines, on standard error so that standard output is the text alone.
Status print_summary(const Session& session, const Timing& timing) {
  const Result<Json> cache = session.backend.newest_cache();
  if (!cache.ok()) return cache.status();
  const double bytes = cache->value("bytes_allocated", 0.0);
  const double raw = 2.0 * cache->value("elements", 0.0);
  std::fflush(stdout);
  fmt::print(stderr, "\nprompt {}\ndecode {}\n", speed(timing.prompt_tokens, timing.prompt_seconds),
             speed(timing.decoded_tokens, timing.decode_seconds));
  fmt::print(stderr,
             "cache  {} tokens in {}, {} at 16 bits: ratio {:.2f}, {:.2f} bits per element\n",
             timing.prompt_tokens + timing.decoded_tokens, bytes_text(bytes), bytes_text(raw),
             cache->value("ratio_resident", 0.0), cache->value("bits_per_element", 0.0));
  std::string kinds;
  const Json by_kind = cache->value("bytes", Json::object());
  for (const auto& [kind, value] : by_kind.items()) {
    kinds +=
        fmt::format("{}{} {}", kinds.empty() ? "" : " · ", kind, bytes_text(value.get<double>()));
  }
  fmt::print(stderr, "       {}\npolicy {}\nkernel {}, {} threads\n", kinds,
             cache->value("policy", ""), cache->value("kernel", ""),
             llama_n_threads(session.context.get()));
  return ok();
}

Status run(const Options& options) {
  if (options.prompt.empty() == options.prompt_file.empty()) {
    return {Code::BadArgument,
            fmt::format("found {} prompt, expected one; give it with -p TEXT or with -f FILE",
                        options.prompt.empty() ? "no" : "more than one")};
  }
  capture_llama_log(options.verbose);
  Result<Session> session = start(options);
  if (!session.ok()) return session.status();
  watch_interrupts();
  Timing timing;
  ZC_TRY(read_prompt(options, *session, timing));
  if (!interrupted()) ZC_TRY(generate(options, *session, timing));
  if (timing.prompt_tokens > 0) ZC_TRY(print_summary(*session, timing));
  if (interrupted())
    return {Code::Aborted,
            fmt::format("interrupted after {} generated tokens", timing.decoded_tokens)};
  return ok();
}

}  // namespace

void add_run(CLI::App& program, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = program.add_subcommand(
      "run",
      "Generates text with a compressed cache; text goes to standard output,\n"
      "speed and the cache's bytes to standard error.");
  command->footer(
      "Example:\n  zipcache run -m smollm2 --policy zip -n 64 -p \"What is a key-value cache?\"");
  command->add_option("-m,--model", options->model, "GGUF file, or smollm2")->capture_default_str();
  command
      ->add_option("--policy,--kv-policy", options->policy,
                   "policy of the cache; see zipcache policies")
      ->envname("ZIPCACHE_POLICY")
      ->capture_default_str();
  command->add_option("-p,--prompt", options->prompt, "prompt");
  command->add_option("-f,--file", options->prompt_file, "file with the prompt");
  command->add_option("--system-prompt", options->system_prompt,
                      "(-sys) message that comes before the prompt");
  command->add_flag("--raw", options->raw,
                    "give the model the prompt as it stands, without its chat template");
  command->add_option("-n,--predict,--n-predict", options->n_predict, "most tokens to generate")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("-c,--ctx-size", options->ctx,
                   "tokens of context, 0: as trained; otherwise what is needed")
      ->check(CLI::Range(0, 1 << 24));
  command->add_option("--ubatch-size", options->ubatch, "(-ub) tokens of a micro-batch")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      ->add_option("--temp,--temperature", options->temperature,
                   "temperature, 0: most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "seed of sampling")->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_end, "go on after the model's end of text");
  command->add_flag("-v,--verbose", options->verbose, "show llama.cpp's messages");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace zipcache::cli
