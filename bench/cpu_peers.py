"""Decode attention of other packages on this processor, beside `zipcache bench attention`.

PyTorch's scaled_dot_product_attention over 16- and 32-bit caches: one query token, 32 query heads on 8 KV
heads of 128, caches walked through in turn so that they exceed the last-level cache twice over. One JSON
object a line; needs torch (`pip install torch`).

    python bench/cpu_peers.py --depth 4096,32768 --threads 1,16
"""
import argparse
import json
import pathlib
import statistics
import time

import torch


def last_level_cache():
    sizes = [p.read_text().strip() for p in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(s[:-1]) * {"K": 2**10, "M": 2**20}[s[-1]] for s in sizes), default=32 * 2**20)


def milliseconds(depth, dtype, threads, reps):
    torch.set_num_threads(threads)
    n_bytes = 2 * 8 * depth * 128 * torch.finfo(dtype).bits // 8
    copies = max(2, 2 * last_level_cache() // n_bytes + 1)
    caches = [torch.randn(2, 1, 8, depth, 128).to(dtype) for _ in range(copies)]
    query = torch.randn(1, 32, 1, 128).to(dtype)
    samples = []
    for i in range(reps + 3):
        key, value = caches[i % copies]
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        samples.append(1e3 * (time.perf_counter() - start))
    return samples[3:], n_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", default="4096,32768", help="tokens in the cache, a list")
    parser.add_argument("--threads", default="1", help="threads, a list")
    parser.add_argument("--reps", type=int, default=20)
    options = parser.parse_args()
    for depth in map(int, options.depth.split(",")):
        for threads in map(int, options.threads.split(",")):
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                samples, n_bytes = milliseconds(depth, dtype, threads, options.reps)
                print(json.dumps({
                    "kind": "attention", "kernel": f"torch {torch.__version__} sdpa", "policy": str(dtype)[6:],
                    "d_head": 128, "n_head": 32, "n_head_kv": 8, "depth": depth, "batch": 1, "threads": threads,
                    "ms": statistics.median(samples), "ms_min": min(samples), "bytes": n_bytes}), flush=True)


if __name__ == "__main__":
    main()
