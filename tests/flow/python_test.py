"""llama-cpp-python generates through the backend (the other llama.cpp version, interface 2)."""

import json
import subprocess
import sys

import pytest

import llama


def generate(tmp_path, policy, prompt):
    (tmp_path / "prompt.txt").write_text(prompt)
    script = llama.ROOT / "tests" / "flow" / "generate_in_python.py"
    return subprocess.run(
        [sys.executable, script, llama.PLUGIN, llama.MODEL, tmp_path / "prompt.txt", "16"],
        env=llama.environment(policy), capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("policy", ["f16", "zip"])
def test_it_copies_text_from_the_cache_of_the_backend(tmp_path, policy):
    prompt, expected = llama.copy_task(0)
    result = generate(tmp_path, policy, prompt)
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout)
    assert answer["loaded"]
    assert answer["text"].startswith(expected)
    assert llama.kv_buffer_mib(result.stderr, "ZipCache") > 0


def test_a_wrong_policy_is_refused_and_the_program_lives(tmp_path):
    result = generate(tmp_path, "zip,recent=banana", "The capital of France is")
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout)
    assert not answer["loaded"]
    assert len(llama.lines_with(result.stderr, "banana")) == 1
