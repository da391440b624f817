"""The backend's own check of the first packed tokens, in a program that knows nothing of it."""
import subprocess

import pytest

import llama


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    """Long enough that 256 tokens are packed, window and all."""
    path = tmp_path_factory.mktemp("prompt") / "prompt.txt"
    path.write_text(llama.LINES.read_text()[:4000])
    return path


def complete(model, prompt, policy, **environment):
    done = subprocess.run(
        [str(llama.PROGRAMS / "llama-completion"), "-m", str(model), "-f", str(prompt), "-n", "2", "-c", "4096", "-t",
         llama.THREADS, "--temp", "0", "-no-cnv", "-ub", "128", "-b", "128", *llama.WITH_ZIPCACHE],
        env=llama.environment(policy) | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return llama.lines_with(done.stderr, "does not stand the policy")


def test_a_model_that_collapses_is_told_of_once(biased, prompt):
    line, = complete(biased, prompt, "zip,k_axis=token,k_round=nearest")
    assert "warning" in line and "zipcache tune" in line


@pytest.mark.parametrize("policy", ["zip", "zip2", "zipcache", "uniform2"])
def test_policies_that_work_are_not(biased, prompt, policy):
    assert complete(biased, prompt, policy) == []


def test_without_the_biases_the_same_policy_is_not(prompt):
    assert complete(llama.SMALL_MODEL, prompt, "zip,k_axis=token,k_round=nearest") == []


def test_it_can_be_turned_off(biased, prompt):
    assert complete(biased, prompt, "zip,k_axis=token,k_round=nearest", ZIPCACHE_CHECK="0") == []


def test_a_wrong_value_is_refused():
    env = llama.environment("zip") | {"ZIPCACHE_CHECK": "yes"}
    done = subprocess.run([str(llama.PROGRAMS / "llama-completion"), "-m", str(llama.SMALL_MODEL), "-p", "x", "-n", "1",
                           *llama.WITH_ZIPCACHE], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=100, check=False)
    assert done.returncode != 0 and "ZIPCACHE_CHECK=yes: expected 0 or 1" in done.stderr
