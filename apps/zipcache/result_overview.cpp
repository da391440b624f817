// Divergences of several texts side by side.
#include "result_overview.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "report.hpp"

namespace zipcache::cli {

namespace {

using Groups = std::vector<const ResultGroup*>;

// What texts of one table share.
Json setting(const ResultGroup& group) {
  Json out = Json::object();
  for (const char* field : {"model", "f32_weights", "ubatch", "ctx"})
    out[field] = group.rows.front()[field];
  return out;
}

std::vector<Groups> by_setting(const std::vector<ResultGroup>& groups) {
  std::vector<Groups> out;
  for (const ResultGroup& group : groups) {
    if (group.task != "kld") continue;
    const auto same = std::find_if(out.begin(), out.end(), [&](const Groups& texts) {
      return setting(*texts.front()) == setting(group);
    });
    if (same == out.end())
      out.push_back({&group});
    else
      same->push_back(&group);
  }
  std::erase_if(out, [](const Groups& texts) { return texts.size() < 2; });
  return out;
}

// The policy's row of each text; empty unless all have one.
std::vector<const Json*> rows_of(const Groups& texts, const Json& policy) {
  std::vector<const Json*> rows;
  for (const ResultGroup* group : texts) {
    for (const Json& row : group->rows) {
      if (row["policy"] == policy) rows.push_back(&row);
    }
  }
  if (rows.size() != texts.size()) rows.clear();
  return rows;
}

double divergence(const Json& row) { return row["kld_mean"].get<double>(); }

double mean_bits(const std::vector<const Json*>& rows) {
  double sum = 0;
  for (const Json* row : rows) sum += (*row)["bits_resident"].get<double>();
  return sum / static_cast<double>(rows.size());
}

// Geometric mean over texts of the divergence as a share of the other policy's.
std::string share_of(const std::vector<const Json*>& rows, const std::vector<const Json*>& other) {
  double sum = 0;
  for (size_t i = 0; i < other.size(); ++i)
    sum += std::log(divergence(*rows[i]) / divergence(*other[i]));
  return other.empty() ? "-"
                       : fmt::format("{:.2f}", std::exp(sum / static_cast<double>(rows.size())));
}

std::string overview(const Groups& texts) {
  std::vector<Column> columns = {{"policy", false}, {"bits"}, {"coded"}};
  for (const ResultGroup* group : texts)
    columns.push_back({group->rows.front()["text"].get<std::string>()});
  columns.push_back({"of q4_0's"});
  const std::vector<const Json*> q4_0 = rows_of(texts, "q4_0");
  std::vector<std::vector<std::string>> lines;
  for (const Json& any : texts.front()->rows) {
    const std::vector<const Json*> rows = rows_of(texts, any["policy"]);
    if (rows.empty() || divergence(*rows.front()) <= 0) continue;
    std::vector<std::string> line = {any["policy"].get<std::string>(),
                                     fmt::format("{:.2f}", mean_bits(rows)), coded_bits(any)};
    for (const Json* row : rows)
      line.push_back(with_error(divergence(*row), (*row)["kld_mean_se"].get<double>()));
    line.push_back(share_of(rows, q4_0));
    lines.push_back(std::move(line));
  }
  const Json& any = texts.front()->rows.front();
  return fmt::format("### {} · mean divergence on {} texts of {} tokens\n\n{}\n",
                     any["model"].get<std::string>(), texts.size(), any["ctx"].dump(),
                     markdown(columns, lines, false));
}

}  // namespace

std::string overviews(const std::vector<ResultGroup>& groups) {
  std::string out;
  for (const Groups& texts : by_setting(groups)) out += overview(texts);
  return out;
}

}  // namespace zipcache::cli
