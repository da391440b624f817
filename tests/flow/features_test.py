"""What users of llama.cpp's programs turn on beside the cache: offload, drafts, slots, micro-batches, files, reuse.

The small model looks up a number in a list of 50, most of it packed; a cache that mixes anything up finds another.
"""

import concurrent.futures
import json
import re

import pytest

import llama

RECORDS = [record for record in map(json.loads, llama.LINES.open()) if record["lines"] == 50]
N_LAYERS, BYTES_PER_TOKEN = 6, 3072


def serve(folder, *arguments, policy="zip", cells=4096, slots=1):
    return llama.Server(folder, "-np", str(slots), "-c", str(cells), *arguments, policy=policy, model=llama.SMALL_MODEL)


def ask(server, record, prompt=None, **fields):
    answer = server.complete(prompt or record["prompt"], **({"n_predict": 6} | fields))
    assert answer["content"].startswith(record["answer"])
    return answer["timings"]


def complete(*arguments, policy=None):
    where = llama.PLAIN if policy is None else llama.WITH_ZIPCACHE
    done = llama.run("llama-completion", "-m", llama.SMALL_MODEL, "-p", RECORDS[0]["prompt"], "-n", "12", "-c", "1024",
                     "-t", llama.THREADS, "--temp", "0", "-no-cnv", "--no-display-prompt", *where, *arguments,
                     policy=policy)
    assert done.returncode == 0, done.stderr[-2000:]
    # On a busy machine the program may end before its last words are written.
    done.stdout = done.stdout[:24]
    return done


@pytest.mark.parametrize("arguments, on_us", [(["--no-kv-offload"], 0), (["-ngl", "3"], 2),
                                              (["-ngl", "3", "-fa", "auto"], 2)])
def test_layers_that_are_not_offloaded_keep_llama_cpps_cache(tmp_path, arguments, on_us):
    # llama.cpp counts the output as a layer.
    with serve(tmp_path, *arguments, cells=2048) as server:
        ask(server, RECORDS[0])
        log = server.log()
    layer = 2048 * BYTES_PER_TOKEN / N_LAYERS / 2**20
    assert llama.kv_buffer_mib(log, "CPU") == pytest.approx((N_LAYERS - on_us) * layer, abs=0.01)
    assert bool(llama.lines_with(log, "ZipCache KV buffer size")) == (on_us > 0)
    if on_us:
        assert llama.kv_buffer_mib(log, "ZipCache") < on_us * layer


def test_a_device_that_is_named_twice_shares_the_layers_with_itself():
    assert complete("--device", "ZipCache0,ZipCache0", policy="f16").stdout == complete().stdout


@pytest.mark.parametrize("policy", ["f16", "zip"])
def test_a_draft_model_on_the_same_device(tmp_path, biased, policy):
    # The draft answers like the model, from keys that are far away from the model's: its proposals are right, unless
    # the caches, whose tensors have the same names, are mixed up or rejected rows kept.
    draft = ["--spec-type", "draft-simple", "-md", biased, "--device-draft", "ZipCache0", "-ngld", "99",
             "--spec-draft-n-max", "6"]
    with serve(tmp_path, *draft, policy=policy) as server:
        timings = ask(server, RECORDS[0], n_predict=24)
        ask(server, RECORDS[1], n_predict=24)
        assert len(llama.lines_with(server.log(), "ZipCache KV buffer size")) == 2
        assert not llama.lines_with(server.log(), "sliding-window"), "the draft's cache was taken for a window"
    assert timings["draft_n"] > 10
    assert timings["draft_n_accepted"] > 0.8 * timings["draft_n"]


@pytest.mark.parametrize("form", [["-kvu"], ["-no-kvu"]], ids=["unified", "own_streams"])
@pytest.mark.parametrize("ubatch", ["33", "512"])
def test_four_slots_at_once(tmp_path, form, ubatch):
    with serve(tmp_path, "-ub", ubatch, *form, slots=4, cells=8192) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for answer in [pool.submit(ask, server, record) for record in RECORDS[:8]]:
                answer.result()


@pytest.mark.parametrize("policy", ["f16", "zip"])
def test_a_prompt_cache_file_is_read_back(tmp_path, policy):
    file = ["--prompt-cache", tmp_path / "prompt.bin"]
    first, again = complete(*file, policy=policy), complete(*file, policy=policy)
    assert first.stdout.startswith(RECORDS[0]["answer"])
    assert again.stdout == first.stdout
    # The file holds 16-bit rows, whatever the cache holds.
    assert file[1].stat().st_size > 500 * BYTES_PER_TOKEN
    assert llama.lines_with(again.stderr, "session file")


def test_a_moved_part_of_a_prompt_is_reused(tmp_path):
    # The first twenty lines go; the others move forward, their keys rotated.
    record = RECORDS[0]
    first, *lines = record["prompt"].splitlines(keepends=True)
    with serve(tmp_path, "--cache-reuse", "32", "--cache-ram", "0") as server:
        ask(server, record)
        moved = ask(server, record, first + "".join(lines[20:]))
        assert llama.lines_with(server.log(), "shifting KV cache")
    assert moved["cache_n"] > 300 and moved["prompt_n"] < 20


def test_self_extend_divides_positions_as_without_the_backend():
    extend = ["--grp-attn-n", "2", "--grp-attn-w", "128"]
    plain = complete(*extend)
    assert plain.stdout != complete().stdout
    assert complete(*extend, policy="f16").stdout == plain.stdout
    assert complete(*extend, policy="zip,recent=32").stdout.strip()


# --- programs beside the server


def test_llama_cli_answers():
    done = llama.run("llama-cli", "-m", llama.MODEL, "-st", "-p", "What is the capital of France?", "-n", "16", "-c",
                     "512", "-t", llama.THREADS, "--temp", "0", "--simple-io", *llama.WITH_ZIPCACHE, policy="zip")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Paris" in done.stdout


def test_activations_can_be_watched(tmp_path):
    # llama-imatrix looks at every operation while it runs, for which llama.cpp hands over one at a time.
    def perplexity(policy):
        where = llama.PLAIN if policy is None else llama.WITH_ZIPCACHE
        done = llama.run("llama-imatrix", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", "512", "-ub", "128",
                         "--chunks", "2", "-t", llama.THREADS, "-o", tmp_path / "matrix.gguf", *where, policy=policy)
        assert done.returncode == 0, done.stderr[-2000:]
        return float(re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)[1])

    plain = perplexity(None)
    assert perplexity("f16") == pytest.approx(plain, rel=3e-4)
    assert 0.97 < perplexity("zip") / plain < 1.03
