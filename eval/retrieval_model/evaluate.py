"""Line retrieval through llama.cpp, with its own 16-bit cache or a cache of the backend's.

    python evaluate.py --lines 50,200 --samples 100
    python evaluate.py --lines 50,200 --samples 100 --plugin build/libggml-zipcache.so --policy zip

Each sample is a record of its own with one question; right is an answer whose five digits are all right,
chosen greedily. Prints one line of JSON for each number of lines. Needs llama-cpp-python and nothing else.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import pathlib
import time

import lines

MODEL = pathlib.Path(__file__).with_name("retrieval-8m.gguf")
CONTEXT = 8192


def interval(right, count, z=1.96):
    """Wilson's 95 % interval of a share."""
    share, extra = right / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def load_plugin(path, policy):
    """Loads the backend into the package's own copy of libggml."""
    from llama_cpp import llama_cpp as bindings

    os.environ["ZIPCACHE_POLICY"] = policy
    load = bindings._lib.ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not load(str(path).encode()):
        raise SystemExit(f"{path}: found a library that did not load, expected the backend; its reason stands above")


def open_model(path, threads, on_backend):
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, flash_attn=True,
                           n_gpu_layers=-1 if on_backend else 0, verbose=False)


def answer(model, prompt):
    """The digits that follow the prompt greedily, computed in an empty cache."""
    import llama_cpp

    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    model.reset()
    tokens = model.tokenize(prompt.encode(), add_bos=False)
    said = itertools.islice(model.generate(tokens, temp=0.0, repeat_penalty=1.0), lines.N_DIGITS)
    return model.detokenize(list(said)).decode(errors="replace"), len(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--lines", default="10,50,100,200", help="numbers of lines, with commas")
    parser.add_argument("--samples", type=int, default=100, help="records for each number of lines")
    parser.add_argument("--seed", default=lines.SEED)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--plugin", help="the backend's library; without it the cache is llama.cpp's own")
    parser.add_argument("--policy", default="zip", help="the backend's policy")
    options = parser.parse_args()

    if options.plugin:
        load_plugin(options.plugin, options.policy)
    model = open_model(options.model, options.threads, bool(options.plugin))
    for n_lines in map(int, options.lines.split(",")):
        begin = time.monotonic()
        right = tokens = 0
        for prompt, number in lines.samples(options.seed, n_lines, options.samples):
            said, n_tokens = answer(model, prompt)
            right += said == number
            tokens += n_tokens
        low, high = interval(right, options.samples)
        print(json.dumps({
            "policy": options.policy if options.plugin else "llama:f16", "lines": n_lines, "samples": options.samples,
            "right": right, "accuracy": right / options.samples, "low95": round(low, 4), "high95": round(high, 4),
            "tokens": round(tokens / options.samples), "seed": options.seed,
            "seconds": round(time.monotonic() - begin, 1)}), flush=True)


if __name__ == "__main__":
    main()
