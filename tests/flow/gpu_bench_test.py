"""zipcache bench cuda: figures where there is a GPU, and the reason where there is none."""
import json
import os
import subprocess


def bench(*arguments):
    zipcache = os.path.join(os.environ.get("ZIPCACHE_BUILD", "build"), "zipcache")
    return subprocess.run([zipcache, "bench", "cuda", *arguments], capture_output=True, text=True, timeout=300)


def test_it_measures_or_says_what_is_missing():
    done = bench("--depth", "256", "--batch", "1", "-p", "zip;zipcache", "-r", "2", "-o", "jsonl")
    if done.returncode == 6:
        assert "found no CUDA device" in done.stderr or "found a build without CUDA" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["policy"] for row in rows] == ["zip", "zipcache"]
    assert all(row["us"] > 0 and row["rel_err"] < 0.01 for row in rows)


def test_shapes_that_no_kernel_has_are_refused_by_name():
    for arguments, named in [(["--depth", "100"], "--depth"), (["--n-head", "7"], "--n-head"), (["-p", "nonsense"], "nonsense")]:
        done = bench(*arguments)
        assert done.returncode == 2 and named in done.stderr, done.stderr
