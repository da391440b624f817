"""Logits of one model with llama.cpp's own caches and with the backend's, in one process; prints JSON.

usage: logits.py PLUGIN MODEL POLICY...

The exact cache holds 32-bit numbers and is read without flash attention, so that nothing in it is rounded. Every other
one is compared with it.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as bindings

N_PROMPT, N_STEPS, N_CELLS, UBATCH = 384, 64, 1024, 64
F32, F16 = 0, 1
# Changed tokens of the other text, all of them packed or out of every window by the end.
N_CHANGED = 256


def tokens(n_vocab):
    return np.random.default_rng(1).integers(3, n_vocab, N_PROMPT + N_STEPS)


def batch_of(ids, begin):
    batch = bindings.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), begin + i, 1, True
        batch.seq_id[i][0] = 0
    return batch


def decode(context, n_vocab, ids, begin):
    batch = batch_of(ids, begin)
    status = bindings.llama_decode(context, batch)
    rows = [np.ctypeslib.as_array(bindings.llama_get_logits_ith(context, i), (n_vocab,)).copy()
            for i in range(len(ids))] if status == 0 else []
    bindings.llama_batch_free(batch)
    if status:
        raise SystemExit(f"llama_decode: {status}")
    return rows


def logits(path, ids=None, *, layers, kind=F16, flash=True, inspect=lambda: None):
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
    wanted.type_k = wanted.type_v = kind
    wanted.flash_attn_type = int(flash)
    wanted.swa_full = False
    context = bindings.llama_init_from_model(model, wanted)
    if not context:
        raise SystemExit("no context")
    rows = decode(context, n_vocab, ids[:N_PROMPT], 0)
    for i in range(N_PROMPT, len(ids)):
        rows += decode(context, n_vocab, ids[i:i + 1], i)
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


def main():
    plugin, path, *policies = sys.argv[1:]
    exact, ids, _ = logits(path, layers=0, kind=F32, flash=False)
    other = ids.copy()
    other[:N_CHANGED] = other[:N_CHANGED][::-1]
    changed, _, _ = logits(path, other, layers=0, kind=F32, flash=False)
    half, _, _ = logits(path, layers=0)
    found = {"memory": distance(changed[-N_STEPS:], exact[-N_STEPS:]), "plain": distance(half, exact), "policies": {}}
    backend = Backend(plugin)
    for policy in policies:
        backend.set_policy(policy)
        rows, _, stats = logits(path, layers=99, inspect=backend.stats)
        found["policies"][policy] = {"distance": distance(rows, exact), "finite": bool(np.isfinite(rows).all()),
                                     "stats": stats}
    print(json.dumps(found))


main()
