// The pictures of `zipcache plot`, from numbers that are there.
//
// Thread safety: pure functions.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "gnuplot.hpp"
#include "table.hpp"
#include "zipcache/status.hpp"
#include "zipcache/token_scores.hpp"

namespace zipcache::cli {

// Kinds of bytes as rows of bytes_plot() name them, from the bottom of the picture up.
inline constexpr const char* kByteKinds[] = {"codes",  "params", "tags", "sinks",
                                             "window", "scores", "map",  "padding"};

// Lengths up to `most` tokens at which bytes are computed: whole blocks, close to each other where
// a window still weighs much.
std::vector<int> plotted_lengths(int most);

// Bytes by kind over the length of the text, one column of panels for each of `policies`. Rows
// [policy, length] have `policy`, `tokens`, `elements` and the bytes of every kind.
Plot bytes_plot(const std::string& subject, const std::vector<std::string>& policies,
                const std::vector<Json>& rows);

// Rows of `zipcache bench` over depth, one picture for each machine, shape and kind of work: time,
// or with `ratio` how many times as fast as llama.cpp's 16-bit cache. BadData for rows of another
// kind.
Result<std::vector<Plot>> speed_plots(std::span<const Json> rows, bool ratio);

// Rows of `zipcache bench cuda` or bench/cuda_peers.py: operations a second over operations for
// each byte, below what a copy's bandwidth allows; one picture for each GPU and shape of heads.
// BadData for rows of another kind.
Result<std::vector<Plot>> roofline_plots(std::span<const Json> rows);

// What groups of layers bring alone, K above V, from a policy file of `zipcache tune`. BadData
// when it holds no such evidence.
Result<Plot> sensitivity_plot(const Json& policy_file, const std::string& name);

// Tokens of a layer by position: the mean over heads of the attention that a query row gave them
// (normalized) and of all of it (accumulated), side by side, for each of `layers`; and how many of
// all heads would take a token for salient by either. Layers must be there.
Plot saliency_plot(const TokenScores& scores, const std::vector<int>& layers,
                   const std::string& title, const std::string& name);

}  // namespace zipcache::cli
