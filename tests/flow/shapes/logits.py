"""Logits of one model with llama.cpp's own caches and with the backend's, in one process; prints JSON.

The exact cache holds 32-bit numbers and is read without flash attention, so that nothing in it is rounded. Every other
one is compared with it. Positions that are moved change nothing, so there its text stays where it was.
"""

import argparse
import ctypes
import json

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as bindings

N_PROMPT, N_STEPS, N_CELLS, UBATCH = 384, 64, 1024, 64
F32, F16 = 0, 1
# Changed tokens of the other text, all of them packed or out of every window by the end.
N_CHANGED = 256
# A picture of SIDE x SIDE places after half of the prompt, seen as a whole.
SIDE = 8
# How far the prompt's positions are moved before the steps.
MOVED = 300


def tokens(n_vocab):
    return np.random.default_rng(1).integers(3, n_vocab, N_PROMPT + N_STEPS)


def batch_of(ids, begin):
    batch = bindings.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), begin + i, 1, True
        batch.seq_id[i][0] = 0
    return batch


def picture_of(model, begin):
    """A batch of random embeddings at the positions of a picture, and how many positions it takes up. Models with four
    position numbers a token count time, height and width apart."""
    n, width = SIDE * SIDE, bindings.llama_model_n_embd(model)
    batch = bindings.llama_batch_init(4 * n, width, 1)  # room for four positions each
    batch.n_tokens = n
    rows = np.ctypeslib.as_array(batch.embd, (n, width))
    rows[:] = np.random.default_rng(2).standard_normal((n, width), np.float32)
    places = bindings.llama_model_rope_type(model) == bindings.LLAMA_ROPE_TYPE_MROPE
    for i in range(n):
        batch.n_seq_id[i], batch.logits[i], batch.seq_id[i][0] = 1, False, 0
        numbers = [begin, begin + i // SIDE, begin + i % SIDE, 0] if places else [begin + i]
        for axis, number in enumerate(numbers):
            batch.pos[axis * n + i] = number
    return batch, SIDE if places else n


def decode(context, batch, n_vocab=0):
    """Logits of all tokens, [n_tokens, n_vocab], none for n_vocab=0; the batch is freed."""
    status = bindings.llama_decode(context, batch)
    rows = [np.ctypeslib.as_array(bindings.llama_get_logits_ith(context, i), (n_vocab,)).copy()
            for i in range(batch.n_tokens if n_vocab else 0)] if status == 0 else []
    bindings.llama_batch_free(batch)
    if status:
        raise SystemExit(f"llama_decode: {status}")
    return rows


def logits(path, options, ids=None, *, layers, exact=False, inspect=lambda: None):
    """A prompt in micro-batches, then token after token."""
    params = bindings.llama_model_default_params()
    params.n_gpu_layers = layers
    model = bindings.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit("the model does not load")
    n_vocab = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(model))
    ids = tokens(n_vocab) if ids is None else ids
    wanted = bindings.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch, wanted.n_threads, wanted.n_threads_batch = N_CELLS, 512, UBATCH, 1, 1
    wanted.type_k = wanted.type_v = F32 if exact else F16
    wanted.flash_attn_type = int(not exact)
    wanted.swa_full = False
    context = bindings.llama_init_from_model(model, wanted)
    if not context:
        raise SystemExit("no context")
    middle = N_PROMPT // 2
    rows = decode(context, batch_of(ids[:middle], 0), n_vocab)
    at = middle
    if options.picture:
        picture, n_positions = picture_of(model, at)
        bindings.llama_set_causal_attn(context, False)
        decode(context, picture)
        bindings.llama_set_causal_attn(context, True)
        at += n_positions
    rows += decode(context, batch_of(ids[middle:N_PROMPT], at), n_vocab)
    at += N_PROMPT - middle
    if options.move and not exact:
        bindings.llama_memory_seq_add(bindings.llama_get_memory(context), 0, 0, -1, MOVED)
        at += MOVED
    for i in range(N_PROMPT, len(ids)):
        rows += decode(context, batch_of(ids[i:i + 1], at), n_vocab)
        at += 1
    seen = inspect()
    bindings.llama_free(context)
    bindings.llama_model_free(model)
    return np.array(rows), ids, seen


def distance(rows, exact):
    """Relative to the spread of the exact logits, token by token: the mean."""
    spread = np.linalg.norm(exact - exact.mean(axis=1, keepdims=True), axis=1)
    return float(np.mean(np.linalg.norm(rows - exact, axis=1) / spread))


class Backend:
    """The plug-in's registry functions."""

    def __init__(self, plugin):
        ggml = bindings._lib
        for name in ["ggml_backend_load", "ggml_backend_reg_get_proc_address"]:
            getattr(ggml, name).restype = ctypes.c_void_p
        ggml.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        registry = ggml.ggml_backend_load(plugin.encode())
        if not registry:
            raise SystemExit("the plug-in does not load")
        self.address = lambda name: ggml.ggml_backend_reg_get_proc_address(registry, name)

    def set_policy(self, text):
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)(
            self.address(b"zipcache_set_policy"))
        error = ctypes.create_string_buffer(1024)
        if function(text.encode(), error, len(error)):
            raise SystemExit(error.value.decode())

    def stats(self):
        function = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)(
            self.address(b"zipcache_stats_json"))
        text = ctypes.create_string_buffer(1 << 16)
        function(text, len(text))
        return json.loads(text.value)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plugin")
    parser.add_argument("model")
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--picture", action="store_true", help="in the middle of the prompt, not causal")
    parser.add_argument("--move", action="store_true", help="the prompt to later positions, before the steps")
    return parser.parse_args()


def main():
    options = arguments()
    path = options.model
    exact, ids, _ = logits(path, options, layers=0, exact=True)
    other = ids.copy()
    other[:N_CHANGED] = other[:N_CHANGED][::-1]
    changed, _, _ = logits(path, options, other, layers=0, exact=True)
    half, _, _ = logits(path, options, layers=0)
    found = {"memory": distance(changed[-N_STEPS:], exact[-N_STEPS:]), "plain": distance(half, exact), "policies": {}}
    backend = Backend(options.plugin)
    for policy in options.policies:
        backend.set_policy(policy)
        rows, _, stats = logits(path, options, layers=99, inspect=backend.stats)
        found["policies"][policy] = {"distance": distance(rows, exact), "finite": bool(np.isfinite(rows).all()),
                                     "stats": stats}
    print(json.dumps(found))


main()
