"""The carried model for line retrieval answers, so that evaluations with it speak of the cache."""

import json
import subprocess
import sys

import pytest

import llama

EVALUATE = llama.ROOT / "eval" / "retrieval_model" / "evaluate.py"


def evaluate(*arguments, n_lines=50, samples=20):
    """The row of one evaluation: `samples` records of `n_lines` lines, one question each."""
    done = subprocess.run(
        [sys.executable, EVALUATE, "--lines", str(n_lines), "--samples", str(samples), "--threads", llama.THREADS,
         *map(str, arguments)],
        env=llama.environment(None), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_with_the_16_bit_cache_every_number_is_found():
    row = evaluate()
    assert row["tokens"] > 500
    assert row["right"] == row["samples"] == 20


@pytest.mark.parametrize("policy", ["f16", "zip"])
def test_with_a_good_cache_of_the_backend_too(policy):
    assert evaluate("--plugin", llama.PLUGIN, "--policy", policy)["right"] == 20


def test_with_two_bits_many_are_lost():
    assert evaluate("--plugin", llama.PLUGIN, "--policy", "uniform,k=2,v=2")["right"] < 18


def test_a_wrong_policy_is_told():
    with pytest.raises(AssertionError, match="zop"):
        evaluate("--plugin", llama.PLUGIN, "--policy", "zop", samples=1)
