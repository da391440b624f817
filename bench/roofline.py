#!/usr/bin/env python3
"""Roofline of decode attention from the JSON lines of bench/cuda_peers.py, drawn by gnuplot.

A point is a policy at one shape: floating point operations of the attention (scores and sums, 4 a query head, token and
channel) for each byte of its cache, and how many a second were reached. The roofs are the measured copy bandwidth times the
bytes, and the GPU's rate of 16-bit matrix products. Points of the 16-bit cache are the faster of PyTorch's kernels.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

COLOURS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path, help="JSON lines of cuda_peers.py")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="picture to write (.svg)")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of 16-bit matrix products (default: 989, an H100 SXM)")
    return parser.parse_args()


def read(path):
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        sys.exit(f"roofline: error: found {path} unreadable ({error}), expected JSON lines of bench/cuda_peers.py")
    rows = [row for row in rows if row.get("kind") == "gpu_attention" and "sdpa_us" in row]
    if not rows:
        sys.exit(f"roofline: error: found no row with kind gpu_attention and sdpa_us in {path}, expected those of bench/cuda_peers.py")
    return rows


def points(rows):
    """{name: [(operations a byte, TFLOP/s)]}"""
    found = {}
    for row in rows:
        tokens = row["depth"] * row["batch"]
        operations = 4 * tokens * row["n_head"] * row["d_head"] * row.get("n_queries", 1)
        half_bytes = 4 * tokens * row["n_head_kv"] * row["d_head"]
        found.setdefault(row["policy"], []).append((operations / row["bytes"], operations / row["us"] / 1e6))
        half = found.setdefault("16 bits", [])
        point = (operations / half_bytes, operations / row["sdpa_us"] / 1e6)
        if point not in half:
            half.append(point)
    return found


def script(found, bandwidth, args, gpu):
    top = max(x for series in found.values() for x, _ in series) * 2
    lines = ["set terminal svg size 800,520 font 'sans,13'", f"set output '{args.out}'", "set logscale xy",
             "set xlabel 'operations for each byte of the cache'", "set ylabel 'TFLOP/s'", "set key bottom right", "set grid",
             f"set title 'Decode attention, {gpu}'", f"set xrange [1:{top}]", "set yrange [0.1:*]"]
    plots = [f"(x * {bandwidth / 1e3} < {args.peak} ? x * {bandwidth / 1e3} : {args.peak}) with lines lw 2 lc '#000000' "
             f"title 'roof: copy at {bandwidth:.0f} GB/s'"]
    data = []
    for (name, series), colour in zip(found.items(), COLOURS):
        plots.append(f"'-' with points pt 7 ps 0.8 lc '{colour}' title '{name}'")
        data += [f"{x} {y}" for x, y in series] + ["e"]
    return "\n".join(lines + ["plot " + ", ".join(plots)] + data) + "\n"


def main():
    args = arguments()
    if not shutil.which("gnuplot"):
        sys.exit("roofline: error: found no gnuplot, expected it on the path; install the package gnuplot-nox")
    rows = read(args.results)
    found = points(rows)
    bandwidth = max(row["copy_gbps"] for row in rows)
    done = subprocess.run(["gnuplot"], input=script(found, bandwidth, args, rows[0]["gpu"]), text=True, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"roofline: error: gnuplot said: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
