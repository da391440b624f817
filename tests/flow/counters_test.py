"""Counters of a running cache: lines in the log at an interval, and the registry's functions."""

import json
import re
import subprocess
import sys
import time

import pytest

import llama

PROMPT = json.loads(llama.LINES.open().readline())["prompt"] * 3
BYTES = ["codes", "params", "tags", "raw", "scores", "map", "padding"]


def counters(log):
    """Every line of counters as a dictionary of texts."""
    return [dict(word.split("=") for word in line.split("zipcache: ")[1].split())
            for line in llama.lines_with(log, "zipcache: cache=")]


def test_a_server_logs_its_counters_at_an_interval(tmp_path):
    with llama.Server(tmp_path, "-np", "1", "-c", "4096", policy="zip", model=llama.SMALL_MODEL,
                      env={"ZIPCACHE_LOG_INTERVAL": "0.3"}) as server:
        begin = time.monotonic()
        while len(counters(server.log())) < 3:
            assert time.monotonic() < begin + 60
            server.complete(PROMPT, n_predict=100, ignore_eos=True, cache_prompt=False)
        seconds = time.monotonic() - begin
        lines = counters(server.log())
    assert len(lines) <= seconds / 0.3 + 1
    last = {key: value if key in ["policy", "kernel"] else float(value.rstrip("%")) for key, value in lines[-1].items()}
    assert last["policy"] == "zip"
    assert last["blocks_packed"] >= 1 and last["blocks_raw"] >= 1
    # Places for twice the cells and some more (src/cache/log.cpp).
    assert last["blocks_packed"] + last["blocks_raw"] + last["blocks_free"] == 2 * 32 + 32 // 8 + 6
    assert last["rows_live"] + last["rows_dead"] <= 128 * (last["blocks_packed"] + last["blocks_raw"])
    assert last["bytes"] == sum(last[kind] for kind in BYTES)
    assert last["codes"] > 0 and last["raw"] > 0
    assert 0 < last["packing"] < 100 and last["scoring"] >= 0


def test_without_the_setting_nothing_is_logged(tmp_path):
    with llama.Server(tmp_path, "-np", "1", "-c", "4096", policy="zip", model=llama.SMALL_MODEL) as server:
        server.complete(PROMPT, n_predict=100, ignore_eos=True)
        assert counters(server.log()) == []


@pytest.mark.parametrize("value", ["often", "-1", "1e99", "nan"])
def test_a_wrong_interval_is_refused(value):
    done = llama.run("llama-completion", "-m", llama.SMALL_MODEL, "-p", "x", "-n", "1", *llama.WITH_ZIPCACHE,
                     policy="zip", env={"ZIPCACHE_LOG_INTERVAL": value})
    assert done.returncode != 0
    assert re.search(f"zipcache: ZIPCACHE_LOG_INTERVAL={value}: expected seconds", done.stderr)


def test_the_registry_gives_the_counters_as_json():
    script = llama.ROOT / "tests" / "flow" / "shapes" / "logits.py"
    env = llama.environment("zip")
    env.pop("GGML_BACKEND_PATH")
    done = subprocess.run([sys.executable, script, llama.PLUGIN, llama.SMALL_MODEL, "zip"], env=env, text=True,
                          capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cache, = json.loads(done.stdout)["policies"]["zip"]["stats"]
    assert sum(cache["bytes"].values()) == cache["bytes_allocated"]
    assert set(cache["bytes"]) == set(BYTES)
    # 448 tokens, the newest 128 raw at least: two blocks are packed, the third and fourth are not.
    assert cache["blocks"] == {"raw": 2, "packed": 2, "free": 2 * 8 + 1 + 6 - 4}
    assert cache["rows_live"] == 448 and cache["rows_dead"] == 0
    assert all(cache["seconds"][part] > 0 for part in ["attention", "packing"])
