// Rows of `zipcache eval` for people: put in groups that may be compared, and as Markdown tables.
//
// Thread safety: pure functions.
#pragma once

#include <string>
#include <vector>

#include "table.hpp"
#include "zipcache/status.hpp"

namespace zipcache::cli {

// Rows of one task that differ in policy only, and for tasks with records also in the field of one
// axis (the number of lines, the depth), fewest bits first. Of rows that were measured again the
// last is here.
struct ResultGroup {
  std::string task;   // as `zipcache eval` names it
  std::string title;  // model, text, length; model, task, records
  std::string name;   // other than any other group's; fit for a file
  std::vector<Json> rows;
};

// Groups in the order of their first rows. BadData names a row that lacks a field or has an unknown
// task.
Result<std::vector<ResultGroup>> group_results(const std::vector<Json>& rows);

// Every group with its title, tables and what they were measured with.
Result<std::string> result_tables(const std::vector<Json>& rows, bool bold);

// A value and its error with as many decimals as give the error two figures.
std::string with_error(double value, double error);
// Bits of a row's packed part, "-" where there is none.
std::string coded_bits(const Json& row);
std::string group_tables(const ResultGroup& group, bool bold);

// A task with records: the values of its axis in order, what the axis is ("" for a single column),
// a row's own value, the row with the longest prompts, and policies by its bits.
std::vector<Json> axis_values(const ResultGroup& group);
std::string axis_name(const ResultGroup& group);
Json axis_value(const ResultGroup& group, const Json& row);
const Json& longest_row(const ResultGroup& group);
std::vector<std::string> policies_of(const ResultGroup& group);

}  // namespace zipcache::cli
