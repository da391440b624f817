"""llama-bench measures through the backend."""

import json

import llama


def test_llama_bench_reports_prompt_and_generation_on_our_device():
    result = llama.run("llama-bench", "-m", llama.MODEL, "-p", "64", "-n", "8", "-r", "1", "-t",
                       llama.THREADS, "-dev", "ZipCache0", "-ngl", "99", "-fa", "1", "-o", "jsonl",
                       policy="zip")
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(64, 0), (0, 8)]
    for row in rows:
        assert row["devices"] == "ZipCache0"
        assert "ZipCache" in row["backends"]
        assert row["avg_ts"] > 0
