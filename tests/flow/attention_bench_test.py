"""`zipcache bench attention` on tiny shapes, as a user runs it."""
import json
import os
import subprocess

import pytest

FIELDS = ("kind kernel isa policy d_head n_head n_head_kv depth batch threads ms gbps bw_share vs_ggml_f16 "
          "vs_ggml_q8_0 vs_ggml_q4_0 rel_err cpu").split()


def bench(zipcache, *arguments, **environment):
    return subprocess.run([zipcache, "bench", "attention", *arguments], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment})


@pytest.fixture
def zipcache():
    return os.path.join(os.environ.get("ZIPCACHE_BUILD", "build"), "zipcache")


def test_rows_have_the_fields_in_order_and_ratios_against_each_type(zipcache):
    done = bench(zipcache, "--depth", "300", "--d-head", "64", "--gqa", "3", "--n-head-kv", "2", "-t", "1", "-r", "1",
                 "--batch", "2", "-o", "jsonl", ZIPCACHE_ISA="plain")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["policy"] for row in rows] == ["zip", "zipcache", "llama:f16", "llama:q8_0", "llama:q4_0"]
    for row in rows:
        assert list(row)[:len(FIELDS)] == FIELDS
        assert row["ms"] > 0 and row["depth"] == 300 and row["n_head"] == 6 and row["batch"] == 2
    f16 = rows[2]
    assert f16["vs_ggml_f16"] == 1
    assert rows[0]["isa"] == "plain" and rows[0]["precision"] == "exact"
    assert rows[0]["vs_ggml_f16"] == pytest.approx(f16["ms"] / rows[0]["ms"])
    assert 0 < rows[0]["rel_err"] < 2e-3


@pytest.mark.parametrize("arguments, said", [
    (["--d-head", "40"], "multiple of 32"),
    (["--depth", "0"], "--depth: found 0, expected 1 to"),
    (["--baselines", "q5_0"], "--baselines: found q5_0"),
    (["--policy", "zop"], "zop"),
    (["-o", "xml"], "xml"),
])
def test_wrong_arguments_are_told(zipcache, arguments, said):
    done = bench(zipcache, *arguments)
    assert done.returncode != 0
    assert said in done.stderr and done.stdout == ""
