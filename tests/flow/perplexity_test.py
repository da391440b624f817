"""llama-perplexity through the backend: exact with 16 bits, close with few."""

import functools
import re

import pytest

import llama


@functools.cache
def perplexity(policy, n_streams=1):
    where = llama.PLAIN if policy is None else llama.WITH_ZIPCACHE
    # Micro-batches of 128: half of each chunk's tokens are then scored against packed blocks.
    result = llama.run("llama-perplexity", "-m", llama.MODEL, "-f", llama.TEXT, "-c", "512", "-b",
                       512 * n_streams, "-ub", "128", "--chunks", "2", "-t", llama.THREADS, *where, policy=policy)
    assert result.returncode == 0, result.stderr[-2000:]
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", result.stdout + result.stderr)
    assert found, result.stderr[-2000:]
    return float(found[1])


@pytest.mark.parametrize("n_streams", [1, 2])
def test_with_the_f16_policy_it_is_the_plain_one_to_a_thousandth(n_streams):
    # Both read 16-bit rows; they differ in the order of sums and in the width of accumulation.
    assert abs(perplexity("f16", n_streams) / perplexity(None) - 1) < 1e-3


def test_with_the_default_policy_it_is_close_and_not_equal():
    ratio = perplexity("zip") / perplexity(None)
    assert 0.97 < ratio < 1.03
    assert ratio != 1, "nothing was compressed"
