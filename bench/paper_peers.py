#!/usr/bin/env python3
"""The paper's comparison on a GPU: attention of all layers of a LLaMA-3-8B, length 4096, batch 8, by method.

Each method keeps the cache of every layer as its paper describes it, in PyTorch's tensor operations: codes are packed into bytes
and unpacked at every step. `fp16` is scaled_dot_product_attention; `mikv` makes all scores of a prompt, keeps 60 % of the
tokens by accumulated attention at 4 bits and the others at 2, in groups of half a head; `kivi` has keys by channel and values by token in
groups of 32 at 2 bits; `zipcache` is the paper's method as it was released: probes, channel-separable values, unpacked for each
token. `ours` runs build/examples/gpu_stack (policy zipcache) beside the same attention of the prompt. Prints milliseconds of a prompt and
of a generated token, all layers, and the memory at most. Needs PyTorch with CUDA; --device cpu is for testing on small shapes.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
METHODS = ["fp16", "mikv", "kivi", "zipcache", "ours"]
SALIENT = 0.6  # share of tokens at 4 bits
GROUP = 32  # of kivi
RESIDUAL = 128  # newest tokens that kivi leaves at 16 bits


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}")
    option("--length", type=int, default=4096)
    option("--batch", type=int, default=8)
    option("--layers", type=int, default=32)
    option("--n-head", type=int, default=32)
    option("--n-head-kv", type=int, default=8)
    option("--d-head", type=int, default=128)
    option("--steps", type=int, default=16, help="tokens that are generated; the median counts (default: 16)")
    option("--device", default="cuda", choices=["cuda", "cpu"])
    option("--stack", type=pathlib.Path, default=ROOT / "build" / "examples" / "gpu_stack", help="for `ours`")
    option("--out", type=pathlib.Path, help="file of JSON lines to append to")
    args = parser.parse_args()
    for method in args.methods.split(","):
        if method not in METHODS:
            parser.error(f"found method '{method}', expected some of {', '.join(METHODS)}")
    return args


class Packed:
    """Codes of x [..., n] along its last dimension, `bits` each, with one range for each set along `dim`."""

    def __init__(self, torch, x, bits, dim):
        low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
        self.torch, self.bits, self.low = torch, bits, low
        self.step = ((high - low) / (2 ** bits - 1)).clamp(min=1e-4)
        codes = ((x - low) / self.step).round().to(torch.uint8)
        per_byte = 8 // bits
        codes = codes.unflatten(-1, (-1, per_byte))
        self.bytes = codes[..., 0].clone()
        for i in range(1, per_byte):
            self.bytes |= codes[..., i] << (bits * i)

    def unpacked(self):
        mask, shifts = 2 ** self.bits - 1, range(0, 8, self.bits)
        codes = self.torch.stack([(self.bytes >> shift) & mask for shift in shifts], -1).flatten(-2)
        return codes.to(self.low.dtype) * self.step + self.low

    def size(self):
        return self.bytes.numel() + 2 * (self.low.numel() + self.step.numel())


class Method:
    """One layer's cache: rows [batch, KV head, token, channel]."""

    def __init__(self, torch, args):
        self.torch, self.args = torch, args
        self.group = args.n_head // args.n_head_kv
        self.parts = []

    def attend(self, q, k, v, causal):
        return self.torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    def prefill(self, q, k, v):
        out = self.attend(q, k, v, True)
        self.compress(q, k, v)
        return out

    def decode(self, q, k, v):
        self.k, self.v = self.torch.cat([self.k, k], 2), self.torch.cat([self.v, v], 2)
        keys, values = self.unpacked()
        return self.attend(q, self.torch.cat([*keys, self.k], 2), self.torch.cat([*values, self.v], 2), False)

    def keep(self, k, v):
        """Rows that stay at 16 bits."""
        self.k, self.v = k.clone(), v.clone()

    def unpacked(self):
        return [], []

    def size(self):
        return 2 * (self.k.numel() + self.v.numel()) + sum(part.size() for part in self.parts)


class Fp16(Method):
    def compress(self, q, k, v):
        self.keep(k, v)


class Tiers(Method):
    """60 % of each head's tokens, those of the largest scores, at 4 bits, the others at 2, in the order of tokens in each."""

    def compress_tiers(self, scores, k, v):
        n = k.shape[2]
        n_high = int(SALIENT * n)
        order = scores.argsort(dim=2, descending=True)
        self.sides = []
        for bits, rows in ((4, order[:, :, :n_high]), (2, order[:, :, n_high:])):
            index = rows.sort(dim=2).values.unsqueeze(-1).expand(-1, -1, -1, k.shape[3])
            self.sides.append((self.pack_keys(k.gather(2, index), bits), self.pack_values(v.gather(2, index), bits)))
        self.parts = [part for side in self.sides for part in side]
        self.keep(k[:, :, :0], v[:, :, :0])

    # Attention does not ask in which order the tokens stand.
    def unpacked(self):
        return [self.keys_of(k) for k, _ in self.sides], [self.values_of(v) for _, v in self.sides]


class Mikv(Tiers):
    def grouped(self, x, bits):
        return Packed(self.torch, x.unflatten(-1, (2, -1)), bits, -1)

    def pack_keys(self, k, bits):
        return self.grouped(k * self.balance, bits)

    def pack_values(self, v, bits):
        return self.grouped(v, bits)

    def keys_of(self, packed):
        return packed.unpacked().flatten(-2) / self.balance

    def values_of(self, packed):
        return packed.unpacked().flatten(-2)

    def scores(self, q, k, causal):
        """Probabilities [batch, query head, query, token] of standard attention."""
        keys = k.repeat_interleave(self.group, 1)
        scores = q @ keys.transpose(2, 3) * self.args.d_head ** -0.5
        if causal:
            n = q.shape[2]
            later = self.torch.ones(n, n, dtype=self.torch.bool, device=q.device).triu(1)
            scores.masked_fill_(later, float("-inf"))
        return self.torch.softmax(scores, -1, dtype=self.torch.float32).to(q.dtype)

    def prefill(self, q, k, v):
        weights = self.scores(q, k, True)
        out = weights @ v.repeat_interleave(self.group, 1)
        sums = weights.sum(2, dtype=self.torch.float32).unflatten(1, (-1, self.group)).sum(2)
        largest = q.abs().amax(2, keepdim=True).unflatten(1, (-1, self.group)).amax(2)
        self.balance = (largest / k.abs().amax(2, keepdim=True).clamp(min=1e-4)).sqrt()
        self.compress_tiers(sums, k, v)
        self.sums = sums
        return out

    def decode(self, q, k, v):
        self.k, self.v = self.torch.cat([self.k, k], 2), self.torch.cat([self.v, v], 2)
        keys, values = self.unpacked()
        weights = self.scores(q, self.torch.cat([*keys, self.k], 2), False)
        # Accumulated, for the next round of compression.
        given = weights.float().unflatten(1, (-1, self.group)).sum((2, 3))
        self.sums = self.torch.nn.functional.pad(self.sums, (0, given.shape[2] - self.sums.shape[2])) + given
        return weights @ self.torch.cat([*values, self.v], 2).repeat_interleave(self.group, 1)


class Zipcache(Tiers):
    def pack_keys(self, k, bits):
        return Packed(self.torch, k, bits, 2)

    def pack_values(self, v, bits):
        return Packed(self.torch, v / self.factors, bits, 3)

    def keys_of(self, packed):
        return packed.unpacked()

    def values_of(self, packed):
        return packed.unpacked() * self.factors

    def compress(self, q, k, v):
        torch, n = self.torch, k.shape[2]
        recent = torch.arange(n - -(-n // 20), n, device=q.device)
        random = torch.randint(0, n - len(recent), (n // 20,), device=q.device)
        probes = torch.cat([random, recent])
        keys = k.repeat_interleave(self.group, 1)
        scores = q[:, :, probes] @ keys.transpose(2, 3) * self.args.d_head ** -0.5
        places = torch.arange(n, device=q.device)
        hidden = places[None, :] > probes[:, None]
        weights = torch.softmax(scores.masked_fill_(hidden, float("-inf")), -1, dtype=torch.float32)
        seen = (~hidden).sum(0).clamp(min=1)
        sums = weights.sum(2).unflatten(1, (-1, self.group)).sum(2) / seen
        self.factors = v.abs().amax(2, keepdim=True).clamp(min=1e-4).sqrt()
        self.compress_tiers(sums, k, v)


class Kivi(Method):
    def compress(self, q, k, v):
        n = max(0, k.shape[2] - RESIDUAL) // GROUP * GROUP
        self.parts = []
        if n > 0:
            self.parts = [Packed(self.torch, k[:, :, :n].unflatten(2, (-1, GROUP)), 2, 3),
                          Packed(self.torch, v[:, :, :n].unflatten(3, (-1, GROUP)), 2, 4)]
        self.keep(k[:, :, n:], v[:, :, n:])

    def unpacked(self):
        if not self.parts:
            return [], []
        k, v = self.parts
        return [k.unpacked().flatten(2, 3)], [v.unpacked().flatten(3, 4)]


CLASSES = {"fp16": Fp16, "mikv": Mikv, "kivi": Kivi, "zipcache": Zipcache}


def rows_of(torch, args, heads, n):
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    return torch.randn(args.batch, heads, n, args.d_head, device=args.device, dtype=dtype)


def timed(torch, args, work, layers):
    """Milliseconds of a call for each layer, all that they started included; results are let go."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for layer in layers:
        work(layer)
    if args.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) * 1e3


def measured(torch, args, method):
    q = rows_of(torch, args, args.n_head, args.length)
    k, v = (rows_of(torch, args, args.n_head_kv, args.length) for _ in range(2))
    CLASSES[method](torch, args).prefill(q, k, v)  # what is compiled and allocated once
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    layers = [CLASSES[method](torch, args) for _ in range(args.layers)]
    prompt_ms = timed(torch, args, lambda layer: layer.prefill(q, k, v), layers)
    one = rows_of(torch, args, args.n_head, 1)
    new = rows_of(torch, args, args.n_head_kv, 1)
    times = [timed(torch, args, lambda layer: layer.decode(one, new, new), layers) for _ in range(args.steps)]
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
    return {"prompt_ms": prompt_ms, "step_ms": statistics.median(times), "peak_mib": peak / 2 ** 20,
            "cache_mib": sum(layer.size() for layer in layers) / 2 ** 20}


def ours(torch, args):
    command = [args.stack, "zipcache", args.length, args.batch, max(args.steps, 2)]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    q = rows_of(torch, args, args.n_head, args.length)
    k, v = (rows_of(torch, args, args.n_head_kv, args.length) for _ in range(2))
    attention = Method(torch, args)
    attention.attend(q, k, v, True)
    torch.cuda.reset_peak_memory_stats()
    prompt_ms = timed(torch, args, lambda layer: attention.attend(q, k, v, True), range(args.layers))
    return {"prompt_ms": prompt_ms + found["prompt_without_ms"], "attention_ms": prompt_ms,
            "packing_ms": found["prompt_without_ms"], "own_prompt_ms": found["prompt_ms"],
            "step_ms": found["step_ms_median"], "cache_mib": found["records_mib"],
            "peak_mib": torch.cuda.max_memory_allocated() / 2 ** 20 + found["capacity_mib"]}


def main():
    args = arguments()
    try:
        import torch
    except ImportError:
        sys.exit("paper_peers: error: found no PyTorch, expected one with CUDA; install it")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("paper_peers: error: found no CUDA device; run on a machine with an NVIDIA GPU, or test with --device cpu")
    torch.manual_seed(1)
    print("| method | prompt ms | token ms | most MiB | cache MiB | prompt, token, memory against mikv |")
    print("|---|--:|--:|--:|--:|---|")
    base = None
    with torch.no_grad():
        for method in args.methods.split(","):
            row = ours(torch, args) if method == "ours" else measured(torch, args, method)
            if args.device == "cuda":
                torch.cuda.empty_cache()
            base = row if method == "mikv" else base
            against = "" if not base or method == "mikv" else ", ".join(
                f"{100 * (row[name] / base[name] - 1):+.1f} %" for name in ("prompt_ms", "step_ms", "peak_mib") if base[name])
            print(f"| {method} | {row['prompt_ms']:.1f} | {row['step_ms']:.2f} | {row['peak_mib']:.0f} | {row['cache_mib']:.0f} | {against} |",
                  flush=True)
            if args.out:
                with open(args.out, "a") as out:
                    out.write(json.dumps({"method": method, "length": args.length, "batch": args.batch, "layers": args.layers,
                                          "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
                                          "torch": torch.__version__, "date": datetime.date.today().isoformat(), **row}) + "\n")


if __name__ == "__main__":
    main()
