"""Saves, restores and copies sequences with llama.cpp's own functions; prints JSON.

usage: state_in_python.py PLUGIN MODEL TEXT_FILE N_PREDICT STEP...

Two sequences, each in a stream of its own. Steps, done in order:
  read             the text, but for its last token, into sequence 0
  save=FILE        the state of sequence 0 to a file
  restore=FILE:SEQ from the file into a sequence, which is emptied first
  again=FILE:N     saves and restores sequence 0 N times; prints whether all files are equal
  damage=FILE:N    restores N damaged copies into sequence 1: cut off, and with bits turned over in
                   the rows; prints how many llama.cpp refused
  copy=FROM:TO     one sequence to another
  clear            everything
  save_on_device, restore_on_device=SEQ
                   the same as save and restore, in memory that the backend gave
  shift=SEQ:BY     moves all tokens of a sequence by so many positions
  generate=SEQ     N_PREDICT tokens, greedy, after the text's last token; prints them
  stats            what the backend says about its cache
  resident         bytes of memory that the process holds, without what is free inside it
"""

import ctypes
import json
import pathlib
import random
import resource
import sys

import llama_cpp
import numpy
from llama_cpp import llama_cpp as bindings

N_CELLS = 1536  # of each sequence
ON_DEVICE = 2  # LLAMA_STATE_SEQ_FLAGS_ON_DEVICE


def function(name, result, *arguments):
    found = getattr(bindings._lib, name)
    found.restype, found.argtypes = result, arguments
    return found


class Session:
    def __init__(self, plugin, model):
        load = function("ggml_backend_load", ctypes.c_void_p, ctypes.c_char_p)
        self.registry = load(plugin.encode())
        assert self.registry, "the plug-in was not loaded"
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 99
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), parameters)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = 2 * N_CELLS, 2, False
        settings.n_batch = settings.n_ubatch = 256
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        settings.n_threads = settings.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context, "no context"
        self.memory = llama_cpp.llama_get_memory(self.context)

    def tokens(self, text):
        data = text.encode()
        found = (llama_cpp.llama_token * (3 * len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), found, len(found), True, False)
        return list(found[:n])

    def decode(self, tokens, first, sequence):
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, first + i, i == len(tokens) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0, f"llama_decode: {status}"

    def read(self, tokens, sequence=0):
        for first in range(0, len(tokens), 256):
            self.decode(tokens[first:first + 256], first, sequence)

    def generate(self, token, sequence, n):
        first = llama_cpp.llama_memory_seq_pos_max(self.memory, sequence) + 1
        n_words = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        found = []
        for i in range(n):
            self.decode([token], first + i, sequence)
            logits = llama_cpp.llama_get_logits_ith(self.context, -1)
            token = int(numpy.ctypeslib.as_array(logits, (n_words,)).argmax())
            found.append(token)
        return found

    def save(self, sequence=0, flags=0):
        size = llama_cpp.llama_state_seq_get_size_ext(self.context, sequence, flags)
        data = (ctypes.c_uint8 * size)()
        n = llama_cpp.llama_state_seq_get_data_ext(self.context, data, size, sequence, flags)
        assert n == size, f"saved {n} of {size} bytes"
        return bytes(data)

    def restore(self, state, sequence, flags=0):
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return llama_cpp.llama_state_seq_set_data_ext(self.context, data, len(state), sequence, flags)

    def stats(self):
        address = function("ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p,
                           ctypes.c_char_p)(self.registry, b"zipcache_stats_json")
        ask = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)(address)
        out = ctypes.create_string_buffer(1 << 16)
        ask(out, len(out))
        return json.loads(out.value)


def damage(session, state, n):
    """Restores damaged copies of a state and decodes a token after each."""
    generator, n_refused = random.Random(5), 0
    for i in range(n):
        copy = bytearray(state)
        if i % 2:
            del copy[generator.randrange(len(copy)):]
        else:
            for _ in range([1, 10, 1000, 100000][i // 2 % 4]):
                # Behind the words that say which cells there are.
                copy[generator.randrange(len(copy) // 10, len(copy))] ^= 1 << generator.randrange(8)
        llama_cpp.llama_memory_seq_rm(session.memory, 1, -1, -1)
        n_refused += session.restore(bytes(copy), 1) == 0
        session.decode([100], llama_cpp.llama_memory_seq_pos_max(session.memory, 1) + 1, 1)
    return n_refused


def main():
    plugin, model, text_file, n_predict, *steps = sys.argv[1:]
    session = Session(plugin, model)
    *text, last = session.tokens(pathlib.Path(text_file).read_text())
    results, device_state = [], None
    for step in steps:
        name, _, values = step.partition("=")
        values = values.split(":")
        if name == "read":
            session.read(text)
        elif name == "save":
            pathlib.Path(values[0]).write_bytes(session.save())
        elif name == "restore":
            llama_cpp.llama_memory_seq_rm(session.memory, int(values[1]), -1, -1)
            results.append(session.restore(pathlib.Path(values[0]).read_bytes(), int(values[1])))
        elif name == "save_on_device":
            device_state = session.save(flags=ON_DEVICE)
        elif name == "restore_on_device":
            llama_cpp.llama_memory_seq_rm(session.memory, int(values[0]), -1, -1)
            results.append(session.restore(device_state, int(values[0]), ON_DEVICE))
        elif name == "again":
            first = pathlib.Path(values[0]).read_bytes()
            equal = True
            for _ in range(int(values[1])):
                llama_cpp.llama_memory_seq_rm(session.memory, 0, -1, -1)
                session.restore(first, 0)
                equal = equal and session.save() == first
            results.append(equal)
        elif name == "damage":
            results.append(damage(session, pathlib.Path(values[0]).read_bytes(), int(values[1])))
        elif name == "copy":
            llama_cpp.llama_memory_seq_cp(session.memory, int(values[0]), int(values[1]), -1, -1)
        elif name == "shift":
            llama_cpp.llama_memory_seq_add(session.memory, int(values[0]), 0, -1, int(values[1]))
        elif name == "clear":
            llama_cpp.llama_memory_clear(session.memory, True)
        elif name == "generate":
            results.append(session.generate(last, int(values[0]), int(n_predict)))
        elif name == "stats":
            results.append(session.stats())
        elif name == "resident":
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            results.append(pages * resource.getpagesize())
        else:
            raise SystemExit(f"no step is called {name}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
