#!/usr/bin/env python3
"""Decode attention on a GPU: our packed cache beside PyTorch's 16-bit kernels, in one run on one machine.

PyTorch's scaled_dot_product_attention (cuDNN and flash backends) runs from CUDA graphs over as many copies of the cache as
exceed the GPU's own cache, before and after `zipcache bench cuda` measures our policies on the same shapes. The table gives
the ratio against the faster of the two backends. Needs PyTorch with CUDA.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEAST_COPIED = 240e6  # bytes that copies of a cache have in all
MOST_BYTES = 60e9  # larger caches of 16 bits are left out
MOST_US = 5e5  # of all replays of a graph
GRID = ",".join(f"{depth}x{batch}" for depth in (4096, 32768, 131072) for batch in (1, 8, 32))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--zipcache", type=pathlib.Path, default=ROOT / "build" / "zipcache", help="the command line (default: build/zipcache)")
    option("-p", "--policies", default="zip;zipcache;uniform4;uniform2", help="policies of ours, separated by ;")
    option("--shapes", default=GRID, help=f"depth x batch, separated by commas (default: {GRID})")
    option("--d-head", type=int, default=128)
    option("--n-head", type=int, default=32)
    option("--n-head-kv", type=int, default=8)
    option("-r", "--reps", type=int, default=52, help="replays of a graph, fewer of long ones; the median counts (default: 52)")
    option("--out", type=pathlib.Path, help="file of JSON lines to append to")
    return parser.parse_args()


def replayed(torch, work, n, reps):
    """Median microseconds of one of the `n` calls work(i) of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(3):
            work(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            work(i)
    times = []
    while len(times) < reps + 3 and (len(times) < 8 or sum(times) * n < MOST_US):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / n)
    return statistics.median(times[3:])


def cache_bytes(args, depth, batch):
    return 4 * depth * batch * args.n_head_kv * args.d_head


def sdpa(torch, args, depth, batch):
    """Microseconds of each backend that runs this shape."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    attention = torch.nn.functional.scaled_dot_product_attention
    copies = int(LEAST_COPIED / cache_bytes(args, depth, batch)) + 1

    def rows(n_heads, n):
        return torch.randn(batch, n_heads, n, args.d_head, device="cuda", dtype=torch.float16)
    q = rows(args.n_head, 1)
    caches = [(rows(args.n_head_kv, depth), rows(args.n_head_kv, depth)) for _ in range(copies)]
    found = {}
    for name, backend in [("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)]:
        try:
            with sdpa_kernel(backend):
                found[name] = replayed(torch, lambda i: attention(q, *caches[i % copies], enable_gqa=True),
                                       max(12, copies), args.reps)
        except RuntimeError as error:
            print(f"cuda_peers: {name} does not run {depth} x {batch}: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


def ours(args, depth, batch):
    command = [args.zipcache.resolve(), "bench", "cuda", "-p", args.policies, "--depth", depth, "--batch", batch, "--d-head",
               args.d_head, "--n-head", args.n_head, "--n-head-kv", args.n_head_kv, "-r", args.reps, "-o", "jsonl"]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main():
    args = arguments()
    try:
        import torch
    except ImportError:
        sys.exit("cuda_peers: error: found no PyTorch, expected one with CUDA; install it, or use zipcache bench cuda alone")
    if not torch.cuda.is_available():
        sys.exit("cuda_peers: error: found no CUDA device; run on a machine with an NVIDIA GPU")
    print("| depth x batch | policy | us | vs SDPA | GB/s | of copy | error | SDPA us, before / after |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for shape in args.shapes.split(","):
        depth, batch = (int(part) for part in shape.split("x"))
        if cache_bytes(args, depth, batch) > MOST_BYTES:
            print(f"cuda_peers: left out {shape}: its 16-bit cache has {cache_bytes(args, depth, batch) / 1e9:.0f} GB", file=sys.stderr)
            continue
        before = sdpa(torch, args, depth, batch)
        torch.cuda.empty_cache()
        rows = ours(args, depth, batch)
        after = sdpa(torch, args, depth, batch)
        torch.cuda.empty_cache()
        best = min((statistics.mean([before[name], after[name]]), name) for name in before if name in after)
        for row in rows:
            row.update(sdpa_us=best[0], sdpa=best[1], sdpa_before=before, sdpa_after=after, vs_sdpa_best=best[0] / row["us"],
                       torch=torch.__version__, date=datetime.date.today().isoformat())
            print(f"| {depth} x {batch} | {row['policy']} | {row['us']:.1f} | {row['vs_sdpa_best']:.2f} | {row['gbps']:.0f} "
                  f"| {row['bw_share']:.2f} | {row['rel_err']:.1e} | {before[best[1]]:.1f} / {after[best[1]]:.1f} |", flush=True)
        if args.out:
            with open(args.out, "a") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
