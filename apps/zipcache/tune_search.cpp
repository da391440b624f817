// The search of `zipcache tune`.
#include "tune_search.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "zipcache/policy.hpp"

namespace zipcache::cli {

namespace {

// What is shown beside the search's own policies, and the built-in ones that may be the answer.
constexpr const char* kShown[] = {"q8_0", "q4_0", "zipcache"};
constexpr const char* kBuiltIn[] = {"zip", "zip2", "zip3", "zip4"};
constexpr const char* kDefault = "zip";
// Where the search begins: the default without tiers, which come back once layers have their bits.
constexpr const char* kStart = "zip,k=4,v=2";

// Changes of the start that cost no coded bits; those that help are put together.
constexpr const char* kSwitches[] = {"k_rotate=none",   "v_rotate=none",  "k_fit=unbiased",
                                     "k_round=nearest", "v_fit=midpoint", "sinks=16"};
// Changes that are shown and never chosen: what stays at 16 bits is the user's to decide.
constexpr const char* kWindows[] = {"sinks=0", "recent=64", "recent=256"};
// A switch has helped when it takes away this share; less is luck.
constexpr double kHelps = 0.03;

// One setting for all layers: widths of K and V, and tiers by saliency on V alone or on both.
constexpr const char* kSplits[] = {"k=2,v=2",
                                   "k=3,v=2",
                                   "k=4,v=2",
                                   "k=3,v=3",
                                   "k=4,v=3",
                                   "k=4,v=4",
                                   "k=8,v=4",
                                   "k=3,v=4/2,ratio=0.5",
                                   "k=4,v=4/2,ratio=0.1",
                                   "k=4,v=4/2,ratio=0.3",
                                   "k=4,v=4/2,ratio=0.5",
                                   "k=4/2,v=2,ratio=0.5",
                                   "k=4/3,v=3/2,ratio=0.5",
                                   "k=4/2,v=4/2,ratio=0.5"};
// Of them those are measured that have at most the wanted bits, and no fewer than this below.
constexpr double kNear = 0.55;

// Widths that a group of layers may get, and those of them that are measured for all layers.
constexpr std::array<int, 4> kWidths = {2, 3, 4, 8};
constexpr int kMeasuredWidths[] = {2, 3, 4};
// Squared steps of 4 bits for one of 8: its divergence is next to nothing and not worth a run.
constexpr double kFinerAt8 = 256;
constexpr int kMostGroups = 8;
// Budgets of the assignments that are measured, beside the wanted bits.
constexpr double kBudgets[] = {0, -0.5, 0.5};
// Share of tokens whose values get 4 bits where they have 2, and the bits an element that it costs.
constexpr int kHighPermille = 100;
constexpr double kTierBits = 0.11;
// Times that an assignment is corrected towards a target of divergence.
constexpr int kCorrections = 3;

double number(const Json& row, const char* field) { return row[field].get<double>(); }

// One spelling for each policy, so that none is measured twice.
std::string spelling(const std::string& text) {
  const Result<Policy> policy = parse_policy(text);
  return policy.ok() ? to_text(*policy) : text;
}

std::string changed(const std::string& base, const char* fields) {
  return spelling(fmt::format("{},{}", base, fields));
}

class Search {
 public:
  Search(Measurer& measurer, const Part& part, const Target& target)
      : measurer_(measurer), part_(part), target_(target) {}

  Result<SearchResult> run() {
    found_.most_bits = coded_bits(kDefault, measurer_.about());
    ZC_TRY(measure_settings());
    ZC_TRY(find_base());
    ZC_TRY(measure_alone());
    ZC_TRY(measure_groups());
    ZC_TRY(target_.divergence ? assign_for_divergence() : assign_for_bits());
    ZC_TRY(measure_splits());
    ZC_TRY(choose_best());
    return std::move(found_);
  }

 private:
  Status add(const std::vector<std::string>& policies, const std::string& what, Role role) {
    return add(policies, std::vector<Role>(policies.size(), role), what);
  }

  // Measures policies and remembers them.
  Status add(const std::vector<std::string>& policies, const std::vector<Role>& roles,
             const std::string& what) {
    std::vector<std::string> fresh;
    std::vector<Role> role_of;
    for (size_t i = 0; i < policies.size(); ++i) {
      const bool listed = std::find(fresh.begin(), fresh.end(), policies[i]) != fresh.end();
      if (listed || find(policies[i]) != nullptr) continue;
      fresh.push_back(policies[i]);
      role_of.push_back(roles[i]);
    }
    const Result<std::vector<Json>> rows = measurer_.rows(part_, fresh, what);
    if (!rows.ok()) return rows.status();
    for (size_t i = 0; i < fresh.size(); ++i) {
      found_.tried.push_back(
          {fresh[i], (*rows)[i], coded_bits(fresh[i], measurer_.about()), role_of[i]});
    }
    return ok();
  }

  const Tried* find(const std::string& policy) const {
    const auto at = std::find_if(found_.tried.begin(), found_.tried.end(),
                                 [&](const Tried& t) { return t.policy == policy; });
    return at == found_.tried.end() ? nullptr : &*at;
  }

  double kld(const std::string& policy) const { return number(find(policy)->row, "kld_mean"); }
  double error(const std::string& policy) const { return number(find(policy)->row, "kld_mean_se"); }

  // What does not depend on other measurements.
  Status measure_settings() {
    std::vector<std::string> policies;
    std::vector<Role> roles;
    const auto list = [&](std::span<const char* const> texts, Role role, const std::string& base) {
      for (const char* text : texts) {
        policies.push_back(base.empty() ? text : changed(base, text));
        roles.push_back(role);
      }
    };
    list(kShown, Role::Shown, "");
    list(kBuiltIn, Role::Candidate, "");
    policies.push_back(spelling(kStart));
    roles.push_back(Role::Candidate);
    list(kSwitches, Role::Candidate, kStart);
    list(kWindows, Role::Window, kStart);
    ZC_TRY(add(policies, roles, "built-in rows, one field at a time"));
    if (kld(kDefault) > 0) return ok();
    return {Code::BadArgument,
            fmt::format("--ctx-size: {} packs nothing before the scored half of so few tokens, "
                        "expected more; use -c 1024",
                        kDefault)};
  }

  // The start with every switch that helped; the best that was seen if they do not add up.
  Status find_base() {
    const std::string start = spelling(kStart);
    std::string together = start;
    found_.base = start;
    for (const char* fields : kSwitches) {
      const std::string one = changed(start, fields);
      if (kld(one) > (1 - kHelps) * kld(start)) continue;
      together = changed(together, fields);
      if (kld(one) < kld(found_.base)) found_.base = one;
    }
    ZC_TRY(add({together}, "what helped, together", Role::Candidate));
    if (kld(together) < kld(found_.base)) found_.base = together;
    return ok();
  }

  std::string side_alone(char side, int bits) const {
    return group_alone(side, bits, {0, n_layers() - 1});
  }

  std::string group_alone(char side, int bits, const LayerGroup& group) const {
    return spelling(alone(found_.base, side, bits, group, n_layers()));
  }

  // The divergence of one side of all layers alone.
  double kld_alone(char side, int bits) const {
    return bits == 8 ? kld(side_alone(side, 4)) / kFinerAt8 : kld(side_alone(side, bits));
  }

  // K and V of all layers at every width, the other side at 16 bits.
  Status measure_alone() {
    std::vector<std::string> policies;
    for (const char side : {'k', 'v'}) {
      for (const int bits : kMeasuredWidths) policies.push_back(side_alone(side, bits));
    }
    ZC_TRY(add(policies, "K alone, V alone", Role::Alone));
    const Result<Policy> base = parse_policy(found_.base);
    if (!base.ok()) return base.status();
    found_.k_alone = kld_alone('k', base->tiers.front().k_bits);
    found_.v_alone = kld_alone('v', base->tiers.front().v_bits);
    return ok();
  }

  Status measure_groups() {
    groups_ = group_layers(n_layers(), kMostGroups);
    std::vector<std::string> policies;
    for (const LayerGroup& group : groups_) {
      policies.push_back(group_alone('k', kProbeBitsK, group));
      policies.push_back(group_alone('v', kProbeBitsV, group));
    }
    ZC_TRY(add(policies, "layers alone", Role::Alone));
    for (const LayerGroup& group : groups_) {
      const std::string k = group_alone('k', kProbeBitsK, group),
                        v = group_alone('v', kProbeBitsV, group);
      found_.layers.push_back({group, kld(k), error(k), kld(v), error(v)});
    }
    return ok();
  }

  // Widths of one side of a group. Its divergence was measured at one width; at others it is taken
  // to change as that of all layers together does.
  std::vector<WidthOption> options(char side, const LayerGroup& group, double divergence,
                                   int measured_at) const {
    const double share = share_of(side, group);
    const double all = std::max(kld_alone(side, measured_at), 1e-12);
    std::vector<WidthOption> out;
    for (const int bits : kWidths)
      out.push_back({bits * share, divergence * kld_alone(side, bits) / all});
    return out;
  }

  // Elements of one side of a group among all elements of the cache.
  double share_of(char side, const LayerGroup& group) const {
    const std::vector<LayerShape>& layers = measurer_.about().layers;
    double own = 0, all = 0;
    for (int i = 0; i < n_layers(); ++i) {
      const LayerShape& layer = layers[static_cast<size_t>(i)];
      all += layer.n_heads * (layer.k_dim + layer.v_dim);
      if (i >= group.first && i <= group.last)
        own += layer.n_heads * (side == 'k' ? layer.k_dim : layer.v_dim);
    }
    return own / all;
  }

  // K of each group, then V of each.
  std::vector<std::vector<WidthOption>> units() const {
    std::vector<std::vector<WidthOption>> out;
    for (const Sensitivity& s : found_.layers)
      out.push_back(options('k', s.group, s.k, kProbeBitsK));
    for (const Sensitivity& s : found_.layers)
      out.push_back(options('v', s.group, s.v, kProbeBitsV));
    return out;
  }

  std::string text_of(const Assignment& assignment) const {
    std::vector<int> widths;
    for (const size_t option : assignment.chosen) widths.push_back(kWidths[option]);
    const std::span<const int> all(widths);
    return spelling(
        with_widths(found_.base, groups_, all.first(groups_.size()), all.subspan(groups_.size())));
  }

  // The policy with 4 bits for the values of the tokens that probes attend to most, in layers that
  // have 2 for all. Unchanged when the widths written for all layers are others.
  std::string with_tiers(const std::string& text) const {
    Result<Policy> policy = parse_policy(text);
    if (!policy.ok() || policy->tiers.size() != 1 || policy->tiers[0].v_bits != 2) return text;
    policy->tiers = {{policy->tiers[0].k_bits, 4}, policy->tiers[0]};
    policy->shares = {kHighPermille};
    return to_text(*policy);
  }

  // Bits of parameters and tags beside the codes.
  double overhead() const {
    const std::string plain = changed(found_.base, "k=4,v=4");
    return coded_bits(plain, measurer_.about()) - 4;
  }

  Status assign_for_bits() {
    wanted_bits_ = target_.bits.value_or(found_.most_bits);
    std::vector<std::string> policies;
    const auto assigned = [&](double bits) {
      return text_of(assign(units(), {bits - overhead(), 0}));
    };
    for (const double more : kBudgets) policies.push_back(assigned(wanted_bits_ + more));
    policies.push_back(with_tiers(assigned(wanted_bits_ - kTierBits)));
    return add(policies, "bits for each layer", Role::Candidate);
  }

  // Predictions are sums of what layers bring alone; each measurement corrects their scale.
  Status assign_for_divergence() {
    double limit = 0.9 * *target_.divergence;
    for (int i = 0; i < kCorrections; ++i) {
      const Assignment assignment = assign(units(), {.divergence = limit});
      const std::string policy = text_of(assignment);
      ZC_TRY(add({policy}, "bits for each layer", Role::Candidate));
      wanted_bits_ = find(policy)->bits;
      limit *= 0.9 * *target_.divergence / std::max(kld(policy) + error(policy), 1e-12);
    }
    return ok();
  }

  Status measure_splits() {
    std::vector<std::string> policies;
    for (const char* fields : kSplits) {
      std::string policy = changed(found_.base, fields);
      const double bits = coded_bits(policy, measurer_.about());
      if (bits < wanted_bits_ + 0.01 && bits > wanted_bits_ - kNear)
        policies.push_back(std::move(policy));
    }
    return add(policies, "one setting for all layers", Role::Candidate);
  }

  // The best policy that `may` allows; empty when none meets the target.
  template <class May>
  std::string best(const May& may) const {
    std::vector<Candidate> candidates;
    std::vector<std::string> names;
    for (const Tried& tried : found_.tried) {
      if (!may(tried)) continue;
      candidates.push_back(
          {tried.bits, number(tried.row, "kld_mean"), number(tried.row, "kld_mean_se")});
      names.push_back(tried.policy);
    }
    const auto at = choose(candidates, target_, found_.most_bits);
    return at ? names[*at] : "";
  }

  Status choose_best() {
    found_.chosen = best([](const Tried& t) { return t.role == Role::Candidate; });
    found_.fallback = best([](const Tried& t) {
      return std::find(std::begin(kBuiltIn), std::end(kBuiltIn), t.policy) != std::end(kBuiltIn);
    });
    if (!found_.chosen.empty()) return ok();
    return {Code::OverLimit,
            fmt::format("no policy that was measured meets the target; {}", nearest())};
  }

  // The policy that comes nearest to a target that none meets.
  std::string nearest() const {
    const Tried* best = nullptr;
    const auto cost = [&](const Tried& t) {
      return target_.divergence ? number(t.row, "kld_mean") : t.bits;
    };
    for (const Tried& tried : found_.tried) {
      if (tried.role == Role::Candidate && (best == nullptr || cost(tried) < cost(*best)))
        best = &tried;
    }
    return fmt::format(
        "the nearest, {}, has {:.2f} coded bits and a divergence of {:.4f} ± {:.4f}; "
        "ask for more",
        best->policy, best->bits, number(best->row, "kld_mean"), number(best->row, "kld_mean_se"));
  }

  int n_layers() const { return static_cast<int>(measurer_.about().layers.size()); }

  Measurer& measurer_;
  const Part& part_;
  Target target_;
  SearchResult found_;
  std::vector<LayerGroup> groups_;
  double wanted_bits_ = 0;
};

}  // namespace

int planned_caches(const ModelFile& about, int together) {
  const size_t groups = group_layers(static_cast<int>(about.layers.size()), kMostGroups).size();
  const size_t policies = std::size(kShown) + std::size(kBuiltIn) + std::size(kSwitches) +
                          std::size(kWindows) + 1 + 2 * std::size(kMeasuredWidths) + 2 * groups +
                          std::size(kBudgets) + 8;
  return static_cast<int>(policies + policies / static_cast<size_t>(together) + 4);
}

Result<SearchResult> search(Measurer& measurer, const Part& part, const Target& target) {
  return Search(measurer, part, target).run();
}

}  // namespace zipcache::cli
