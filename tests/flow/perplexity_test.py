"""llama-perplexity through the backend: exact with 16 bits, close with few.

Runs on a copy of the model with 32-bit weights. With the packaged 4-bit weights llama.cpp rounds every
activation to 8 bits, which turns a difference in the last bit into one of 0.2 % of perplexity: on
2,000 tokens of this text llama.cpp's own two ways of attention (-fa on, -fa off) differ by 0.1 %,
and by 0.25 % on 500.
"""

import pathlib
import re
import tempfile

import pytest

import llama


class Perplexity:
    def __init__(self, model):
        self.model = model
        self.known = {}

    def __call__(self, policy, n_streams=1):
        key = (policy, n_streams)
        if key not in self.known:
            self.known[key] = self.measure(policy, n_streams)
        return self.known[key]

    def measure(self, policy, n_streams):
        where = llama.PLAIN if policy is None else llama.WITH_ZIPCACHE
        # Micro-batches of 128: half of each chunk's tokens are then scored against packed blocks.
        result = llama.run("llama-perplexity", "-m", self.model, "-f", llama.TEXT, "-c", "512", "-b",
                           512 * n_streams, "-ub", "128", "--chunks", "2", "-t", llama.THREADS, *where,
                           policy=policy)
        assert result.returncode == 0, result.stderr[-2000:]
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", result.stdout + result.stderr)
        assert found, result.stderr[-2000:]
        return float(found[1])


@pytest.fixture(scope="module")
def perplexity():
    # The copy has 540 MB, so it does not stay behind.
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "f32.gguf"
        result = llama.run("llama-quantize", "--allow-requantize", llama.MODEL, model, "F32")
        assert result.returncode == 0, result.stderr[-2000:]
        yield Perplexity(model)


@pytest.mark.parametrize("n_streams", [1, 2])
def test_with_the_f16_policy_it_is_the_plain_one(perplexity, n_streams):
    # Promised is 0.1 %. With 32-bit weights llama.cpp's own two ways of attention differ by 6e-5
    # here; what is allowed is five times that.
    assert abs(perplexity("f16", n_streams) / perplexity(None) - 1) < 3e-4


def test_with_the_default_policy_it_is_close_and_not_equal(perplexity):
    ratio = perplexity("zip") / perplexity(None)
    assert 0.97 < ratio < 1.03
    assert ratio != 1, "nothing was compressed"
