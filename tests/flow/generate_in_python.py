"""Generates through the backend with llama-cpp-python, the way its documentation says; prints JSON.

usage: generate_in_python.py PLUGIN MODEL PROMPT_FILE N_PREDICT
"""

import ctypes
import json
import pathlib
import sys

import llama_cpp
from llama_cpp import llama_cpp as bindings

plugin, model, prompt_file, n_predict = sys.argv[1:]

# The package has its own copy of libggml open; the plug-in must be loaded into that one.
load = bindings._lib.ggml_backend_load
load.restype = ctypes.c_void_p
load.argtypes = [ctypes.c_char_p]
loaded = load(plugin.encode())

llm = llama_cpp.Llama(model, n_gpu_layers=-1, flash_attn=True, n_ctx=2048, verbose=True)
answer = llm(pathlib.Path(prompt_file).read_text(), max_tokens=int(n_predict), temperature=0)
print(json.dumps({"loaded": bool(loaded), "text": answer["choices"][0]["text"]}))
