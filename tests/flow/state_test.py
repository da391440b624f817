"""Sequences that were saved, restored or copied go on as if they had not been."""

import json
import random
import subprocess
import sys
import urllib.error

import pytest

import llama
from shapes import models

CHAT = llama.ROOT / "data" / "text" / "chat.txt"
N_PREDICT = 200
# Beside the named ones a policy that keeps half of the tokens.
POLICIES = ["zip", "zipcache", "kivi2", "h2o,bits=4/0,ratio=0.5"]
OWN_STREAMS = ["-np", "2", "-c", "3072", "-no-kvu", "--cache-ram", "0", "-ub", "256"]


def prompt(n_characters=2700):
    """A conversation that waits for an answer: some 700 tokens, of which the first 500 are packed."""
    text = CHAT.read_text()
    return text[:text.index("Assistant:", n_characters)] + "Assistant:"


def steps(tmp_path, policy, *names, n_predict=N_PREDICT, model=llama.MODEL, text=None, env=None):
    """What the steps of state_in_python.py gave, done in a process of their own."""
    (tmp_path / "text.txt").write_text(text or prompt())
    script = llama.ROOT / "tests" / "flow" / "state_in_python.py"
    result = subprocess.run(
        [sys.executable, script, llama.PLUGIN, model, tmp_path / "text.txt", str(n_predict),
         *names], env=llama.environment(policy) | (env or {}), capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_sequence_goes_on_with_the_same_tokens(tmp_path, policy):
    state = tmp_path / "state.bin"
    unsaved, size, restored, equal, stats = steps(
        tmp_path, policy, "read", f"save={state}", "generate=0", f"restore={state}:0", "generate=0",
        f"again={state}:10", "stats")
    assert size == state.stat().st_size
    assert restored == unsaved
    assert equal, "a state changed by being restored and saved again"
    assert stats[0]["rows_packed"] > 400
    assert steps(tmp_path, policy, f"restore={state}:1", "generate=1")[1] == unsaved


def test_a_copied_sequence_goes_on_with_the_same_tokens(tmp_path):
    copied, original, stats = steps(tmp_path, "zip", "read", "copy=0:1", "generate=1", "generate=0",
                                    "stats", n_predict=100)
    assert copied == original
    assert stats[0]["rows_packed"] > 800


# The last two have blocks that no 16-bit rows can carry, or none.
@pytest.mark.parametrize("policy", [*POLICIES, "uniform,bits=8", "f16"])
def test_a_state_on_the_device_goes_on_with_the_same_tokens_at_packed_size(tmp_path, policy):
    before, after, unsaved, size, restored, last = steps(
        tmp_path, policy, "read", "stats", "save_on_device", "stats", "generate=0", "restore_on_device=0",
        "generate=0", "stats")
    assert 0 < size < 100000, "the state was not kept on the device"
    assert restored == unsaved
    held, live = before[0]["bytes"], before[0]["rows_live"]
    packed = held["codes"] + held["params"] + held["tags"] + held["raw"]
    assert before[0]["bytes_states"] == 0
    assert after[0]["bytes_states"] == last[0]["bytes_states"]
    # Beside them scores, what queries are like, and where parts begin.
    assert packed <= after[0]["bytes_states"] <= 1.1 * packed
    assert after[0]["bytes_allocated"] == before[0]["bytes_allocated"], "the cache itself grew"
    assert policy == "f16" or after[0]["bytes_states"] < 0.75 * live * llama.BYTES_PER_TOKEN_F16


def test_keys_that_moved_come_back_from_the_device_and_from_a_file(tmp_path):
    state = tmp_path / "state.bin"
    _, unsaved, on_device, restored, stats = steps(
        tmp_path, "zip", "read", "shift=0:300", "generate=0", "save_on_device", f"save={state}", "generate=0",
        "restore_on_device=0", "generate=0", "stats", n_predict=50)
    assert restored == unsaved
    assert stats[0]["rows_packed"] > 400
    anew = steps(tmp_path, "zip", f"restore={state}:1", "generate=1", n_predict=50)
    assert anew[1] == unsaved


# Windows at 16 bits and packed, state-space layers, convolutions.
KINDS = [("gemma2", "f16"), ("gemma2", "policy"), ("jamba", "f16"), ("lfm2", "f16")]


@pytest.mark.parametrize("policy", ["f16", "zip"])
@pytest.mark.parametrize("name, windows", KINDS)
def test_sequences_of_other_kinds_of_models_go_on_with_the_same_tokens(tmp_path, name, windows, policy):
    # Copied; restored in place, in the other stream, from memory on the device, and again.
    state = tmp_path / "state.bin"
    results = steps(
        tmp_path, policy, "read", f"save={state}", "copy=0:1", "generate=0", "generate=1", f"restore={state}:0",
        "generate=0", f"restore={state}:1", "generate=1", f"restore={state}:0", "save_on_device", "generate=0",
        "restore_on_device=0", "generate=0", f"again={state}:2", n_predict=60, model=models.make(name, tmp_path),
        text=llama.TEXT.read_text()[5000:5500], env={"ZIPCACHE_WINDOW": windows})
    unsaved, *others = [tokens for tokens in results if isinstance(tokens, list)]
    assert len(unsaved) == 60 and others == [unsaved] * 5
    assert results[-1], "a state changed by being restored and saved again"


def answer(server, slot):
    result = server.complete(prompt(), N_PREDICT, id_slot=slot, cache_prompt=True, ignore_eos=True)
    assert result["tokens_predicted"] == N_PREDICT
    return result["content"], result["timings"]["prompt_n"]


def test_a_saved_slot_answers_the_same_in_any_slot_and_server(tmp_path):
    with llama.Server(tmp_path, *OWN_STREAMS, policy="zip") as server:
        server.complete(prompt(), 1, id_slot=0, cache_prompt=True)
        server.post("/slots/0?action=save", filename="slot.bin")
        unsaved, _ = answer(server, 0)
        server.post("/slots/1?action=restore", filename="slot.bin")
        other, n_read = answer(server, 1)
        assert n_read <= 2, "the prompt was computed anew"
        assert other == unsaved
    with llama.Server(tmp_path, *OWN_STREAMS, policy="zip") as server:
        server.post("/slots/0?action=restore", filename="slot.bin")
        anew, n_read = answer(server, 0)
        assert n_read <= 2, "the prompt was computed anew"
        assert anew == unsaved


def test_damaged_states_leave_other_sequences_alone(tmp_path):
    state, after = tmp_path / "state.bin", tmp_path / "after.bin"
    n_refused, unsaved, _, restored = steps(
        tmp_path, "zip", "read", f"save={state}", f"damage={state}:40", f"save={after}", "generate=0",
        f"restore={state}:1", "generate=1", n_predict=50)
    assert n_refused >= 20, "states that were cut off were accepted"
    assert after.read_bytes() == state.read_bytes(), "another sequence changed"
    assert restored == unsaved


def damaged(data, generator):
    """Copies of a saved slot: cut off in front of its rows, or with bits turned over in them."""
    for _ in range(6):
        yield data[:generator.randrange(2000)]
    for n_bits in [1, 1, 10, 1000, 100000]:
        copy = bytearray(data)
        for _ in range(n_bits):
            copy[generator.randrange(len(data) // 10, len(data))] ^= 1 << generator.randrange(8)
        yield bytes(copy)


def test_damaged_slot_files_leave_the_server_and_other_slots_alone(tmp_path):
    with llama.Server(tmp_path, *OWN_STREAMS, policy="zip") as server:
        question, expected = llama.copy_task(0)
        server.complete(question, 1, id_slot=0, cache_prompt=True)
        server.complete(prompt(), 1, id_slot=1, cache_prompt=True)
        for slot, name in enumerate(["before.bin", "slot.bin"]):
            server.post(f"/slots/{slot}?action=save", filename=name)
        n_refused = 0
        for content in damaged((tmp_path / "slot.bin").read_bytes(), random.Random(5)):
            (tmp_path / "damaged.bin").write_bytes(content)
            try:
                server.post("/slots/1?action=restore", filename="damaged.bin")
            except urllib.error.HTTPError as error:
                assert error.code == 400
                n_refused += 1
            server.complete("Hello", 2, id_slot=1, cache_prompt=True)
        assert n_refused >= 6
        server.post("/slots/0?action=save", filename="after.bin")
        assert (tmp_path / "after.bin").read_bytes() == (tmp_path / "before.bin").read_bytes()
        assert server.complete(question, id_slot=0)["content"].startswith(expected)
        server.post("/slots/1?action=restore", filename="slot.bin")
        assert server.complete(prompt(), 4, id_slot=1)["timings"]["prompt_n"] <= 2
