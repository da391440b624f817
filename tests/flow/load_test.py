"""bench/load.py, for some seconds."""

import json
import signal
import subprocess
import sys
import time

import pytest

import llama
from shapes import models

SCRIPT = llama.ROOT / "bench" / "load.py"


def command(*arguments, model=llama.SMALL_MODEL):
    return [sys.executable, SCRIPT, "-m", model, "--plugin", llama.PLUGIN, *map(str, arguments)]


def load(*arguments, **options):
    return subprocess.run(command(*arguments, **options), env=llama.environment(None), capture_output=True, text=True,
                          timeout=120, check=False)


def test_both_caches_stand_a_short_load(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = load("--minutes", "0.3", "--rounds", "1", "--cancel", "0.3", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.open()]
    assert [row["cache"] for row in rows] == ["llama:f16", "zip"]
    for row in rows:
        assert row["errors"] == []
        assert row["requests"] > row["cancelled"] > 0
        assert row["reused"] > 0, "no conversation found its prefix again"
        assert len(row["resident_mib"]) >= 8 and min(row["resident_mib"]) > 10
        assert 0 < row["first_token_ms"]["p50"] <= row["first_token_ms"]["p99"]
        assert f"| {row['cache']} | 1 | {row['requests']} ({row['cancelled']}) | 0 |" in done.stdout
    assert rows[0]["backend"] is None
    assert "policy zip" in rows[1]["backend"]


@pytest.mark.parametrize("name", ["gemma2", "jamba"])
def test_windows_and_states_stand_a_short_load(tmp_path, name):
    # Random weights answer nonsense, some of which is no message; that is not an error of the server.
    done = load("--minutes", "0.07", "--rounds", "1", "--caches", "zip", "--cancel", "0.3",
                model=models.make(name, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "| zip | 1 |" in done.stdout


def test_a_server_that_cannot_start_ends_the_load_with_its_log():
    done = load("--minutes", "0.1", "--caches", "zipp")
    assert done.returncode == 1
    assert "zipp" in done.stderr and "did not start" in done.stderr


def test_answers_that_fail_are_counted_and_told():
    # 128 cells a slot are fewer than any conversation needs.
    done = load("--minutes", "0.05", "--rounds", "1", "--caches", "zip", "-c", "256", "--clients", "2")
    assert done.returncode == 1
    assert "exceed" in done.stderr and "| zip | 1 |" in done.stdout


def test_ctrl_c_leaves_what_was_measured_and_no_server():
    process = subprocess.Popen(command("--minutes", "0.2", "--rounds", "2", "--caches", "zip"),
                               env=llama.environment(None), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "round 0" in process.stderr.readline()
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=40)
    assert process.returncode == 130
    assert "stopped" in error and "| zip | 1 |" in out


def test_wrong_arguments_are_told():
    for wrong in [["--minutes", "0"], ["--cancel", "2"], ["--server", "/no/such"]]:
        done = load(*wrong)
        assert done.returncode == 2 and "error: " in done.stderr
