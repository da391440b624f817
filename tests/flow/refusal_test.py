"""What the backend cannot serve is refused by name, in one line with the cure, and never half served."""

import re

import pytest

import llama

PROMPT = "The capital of France is"


def generate(*arguments, policy="zip", where=("--device", "ZipCache0", "-ngl", "99")):
    return llama.run("llama-completion", "-m", llama.MODEL, "-p", PROMPT, "-n", "8", "-c", "512", "-t",
                     llama.THREADS, "--temp", "0", "-no-cnv", "--no-display-prompt", *where, *arguments,
                     policy=policy)


def check_refused(result, *words):
    """Failed without a signal, said why in one line of ours that has all `words`, gave no answer."""
    assert result.returncode > 0, f"ended with {result.returncode}:\n{result.stderr[-2000:]}"
    ours = llama.lines_with(result.stderr, "zipcache: ")
    reasons = [line for line in ours if all(re.search(word, line) for word in words)]
    assert len(reasons) == 1, ours or result.stderr[-2000:]
    assert len(reasons[0].encode()) <= 1024
    assert "Paris" not in result.stdout


def test_flash_attention_off():
    check_refused(generate("-fa", "off"), "flash", "-fa on")


@pytest.mark.parametrize("kind", ["q8_0", "bf16", "f32"])
def test_a_cache_type_that_is_not_f16(kind):
    check_refused(generate("-fa", "on", "-ctk", kind, "-ctv", kind), kind, "16-bit", "-ctk")


@pytest.mark.parametrize("policy, words", [
    ("zipp", ["zipp", "zip"]),
    ("zip,recent=-1", ["recent", "-1"]),
    ("zip,ratio=1.5", ["ratio", "1.5"]),
    ("zip,colour=blue", ["colour"]),
    ("/no/such/policy.json", ["/no/such/policy.json"]),
])
def test_a_wrong_policy(policy, words):
    # The device is not offered, so llama.cpp itself says that it is invalid and stops.
    check_refused(generate("-fa", "on", policy=policy), *words)


def test_split_mode_tensor_is_told_of_before_llama_cpp_ends():
    result = llama.run("llama-completion", "-m", llama.SMALL_MODEL, "-p", "x", "-n", "1", *llama.WITH_ZIPCACHE, "-sm",
                       "tensor", policy="zip", env={"GGML_NO_BACKTRACE": "1"})
    assert result.returncode != 0
    line, = llama.lines_with(result.stderr, "zipcache: ")
    assert "--split-mode tensor" in line and "--device none" in line


def test_split_mode_row_is_refused_by_llama_cpp():
    result = llama.run("llama-server", "-m", llama.SMALL_MODEL, *llama.WITH_ZIPCACHE, "-sm", "row", policy="zip")
    assert result.returncode == 1 and "device ZipCache0 does not support split buffers" in result.stderr
