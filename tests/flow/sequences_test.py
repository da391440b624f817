"""Several sequences at once, each in its own stream and all in one (the unified cache)."""

import pytest

import llama


@pytest.mark.parametrize("cache", [[], ["-kvu"]], ids=["own_streams", "unified"])
def test_batched_bench_runs_one_and_three_sequences(cache):
    result = llama.run("llama-batched-bench", "-m", llama.MODEL, "-c", "1536", "-npp", "96", "-ntg", "8",
                       "-npl", "1,3", "-t", llama.THREADS, *llama.WITH_ZIPCACHE, *cache, policy="zip")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = llama.lines_with(result.stdout + result.stderr, r"^\| +96 \| +8 \|")
    assert [int(row.split("|")[3]) for row in rows] == [1, 3]
