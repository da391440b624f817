"""llama-completion generates text through the backend, and says what it did."""

import pytest

import llama

POLICIES = ["zipcache", "zip"]


def test_with_the_f16_policy_the_text_is_the_one_without_the_backend():
    prompt, _ = llama.copy_task(0)
    plain = llama.complete(prompt, 12)
    ours = llama.complete(prompt, 12, policy="f16")
    assert ours.returncode == 0, ours.stderr[-2000:]
    assert ours.stdout == plain.stdout


@pytest.mark.parametrize("policy", POLICIES)
def test_text_is_copied_from_the_compressed_cache(policy):
    prompt, expected = llama.copy_task(1)
    result = llama.complete(prompt, 16, "-c", "2048", "-lv", "4", policy=policy)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith(expected)
    # llama.cpp's own figure: at least half of the 16-bit cache's 45 MiB is gone.
    assert llama.kv_buffer_mib(result.stderr, "ZipCache") < 2048 * llama.BYTES_PER_TOKEN_F16 / 2**20 / 2


def test_one_line_at_start_says_policy_bits_kernel_threads_and_size():
    result = llama.complete("The capital of France is", 4, policy="zip")
    assert result.returncode == 0, result.stderr[-2000:]
    lines = llama.lines_with(result.stderr, r"zipcache: ")
    assert len(lines) == 1, lines
    for word in ["policy", "zip", "bits", "kernel", "threads", "1,000 tokens"]:
        assert word in lines[0]


def test_the_backend_writes_nothing_to_standard_output():
    prompt = "The capital of France is"
    result = llama.complete(prompt, 6, policy="zip")
    assert "zipcache" not in result.stdout.lower()
    assert "Paris" in result.stdout


@pytest.mark.parametrize("policy", ["f16", "zip,recent=32", "zip,recent=32,cadence=prompt"])
def test_a_context_shift_rotates_the_keys_and_the_text_goes_on(policy):
    # Twelve words over and over: 52 tokens of them in the prompt, 190 more generated in 192 cells.
    # llama.cpp drops the older half on the way and rotates the remaining keys, packed ones included.
    words = " north window seven river copper lantern monday orange violin garden pencil winter"
    result = llama.complete((words * 4).strip(), 190, "-c", "192", "--context-shift", policy=policy)
    assert result.returncode == 0, result.stderr[-2000:]
    text = result.stdout.rstrip()
    assert len(text) > 900
    assert (words * 15).startswith(text)
