"""`zipcache eval` with tiny numbers, as a user runs it: rows in a file, taken up again, and their report."""
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

import llama

TEXTS = llama.ROOT / "data" / "text"
LINES = llama.ROOT / "eval" / "retrieval_model" / "lines.py"


def command(*arguments):
    return [str(llama.BUILD / "zipcache"), "eval", *map(str, arguments)]


def run(*arguments, **environment):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200,
                          env=llama.environment(None) | environment, stdin=subprocess.DEVNULL, check=False)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def kld(out, *arguments, policies="f16;q4_0;uniform,k=2,v=2"):
    return run("kld", "-f", TEXTS / "code.txt", "-c", 384, "--depth-bin", 128, "-ub", 64, "-t", llama.THREADS,
               "--policies", policies, "--out", out, "-o", "jsonl", *arguments)


@pytest.fixture(scope="module")
def kld_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "kld.jsonl"
    done = kld(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == path.read_text()
    return path


def test_kld_rows_say_what_was_measured_and_how(kld_file):
    full, q4_0, two_bits = rows_of(kld_file)
    assert [row["policy"] for row in (full, q4_0, two_bits)] == ["f16", "q4_0", "uniform,k=2,v=2"]
    for row in (full, q4_0, two_bits):
        assert row["task"] == "kld" and row["text"] == "code.txt" and row["ctx"] == 384 and row["ubatch"] == 64
        assert row["n_scored"] == 384 - 1 - 192 and row["kv_tokens"] == 384
        assert {"model", "build", "cpu", "date", "attend", "seed", "kernel", "weights"} <= set(row)
        assert [(b["from"], b["to"], b["n_scored"]) for b in row["by_depth"]] == [
            (0, 128, 128), (128, 256, 128), (256, 384, 127)]
    assert full["kld_mean"] == 0 and full["ppl_ratio"] == 1 and full["bits_coded"] == 16
    assert q4_0["bits_resident"] == q4_0["bits_coded"] == 4.5 and q4_0["seed"] is None
    assert two_bits["kld_mean"] > q4_0["kld_mean"] > 0 and two_bits["kld_mean_se"] > 0
    assert two_bits["bits_coded"] < 3 < two_bits["bits_resident"]
    assert q4_0["ppl_ratio"] == pytest.approx(q4_0["ppl"] / full["ppl"])
    # Nothing is packed while the first 128 tokens are read; llama.cpp packs at once.
    assert two_bits["by_depth"][0]["kld_mean"] == 0 < q4_0["by_depth"][0]["kld_mean"]
    assert two_bits["by_depth"][2]["kld_mean"] > 0.01


def test_kld_measures_only_what_is_missing(kld_file, tmp_path):
    path = tmp_path / "again.jsonl"
    rows = kld_file.read_text().splitlines(keepends=True)
    path.write_text(rows[0] + rows[2])
    done = kld(path)
    assert done.returncode == 0, done.stderr
    assert "1 policies" in done.stderr
    assert path.read_text() == rows[0] + rows[2] + rows[1] and done.stdout == "".join(rows)
    assert kld(path).stderr == "" and path.read_text() == rows[0] + rows[2] + rows[1]


def test_kld_interrupted_keeps_the_rows_that_are_complete(tmp_path):
    path = tmp_path / "rows.jsonl"
    process = subprocess.Popen(
        command("kld", "-f", TEXTS / "chat.txt", "-c", "64,8192", "-ub", 64, "--policies", "q4_0", "--out", path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=llama.environment(None))
    for line in process.stderr:
        if "8192 tokens" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in err
    assert [row["ctx"] for row in rows_of(path)] == [64] and "64 tokens" in out


@pytest.fixture(scope="module")
def retrieval_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    made = subprocess.run([sys.executable, LINES, "--lines", "8,40", "--samples", "4", "--seed", "test"],
                          capture_output=True, text=True, check=True)
    (folder / "records.jsonl").write_text(made.stdout)
    return folder / "rows.jsonl"


def retrieval(path, *arguments):
    return run("retrieval", "--records", path.with_name("records.jsonl"), "--policies", "llama:q4_0;uniform,k=2,v=2",
               "-t", llama.THREADS, "--out", path, "-o", "jsonl", *arguments)


def test_retrieval_rows_hold_the_interval_and_the_16_bit_cache(retrieval_file):
    done = retrieval(retrieval_file)
    assert done.returncode == 0, done.stderr
    rows = rows_of(retrieval_file)
    assert [(row["lines"], row["policy"]) for row in rows] == [
        (n, policy) for n in (8, 40) for policy in ("f16", "llama:q4_0", "uniform,k=2,v=2")]
    for row in rows:
        assert row["task"] == "retrieval" and row["records_seed"] == "test" and row["n_scored"] == 4
        assert row["accuracy"] == row["right"] / 4 and row["low95"] <= row["accuracy"] <= row["high95"]
        assert row["accuracy_f16"] == 1
    # 11 tokens a line, so that 8 lines are all raw and 40 are not.
    assert rows[2]["accuracy"] == 1 and rows[5]["bits_coded"] < 3 < rows[5]["bits_resident"]
    again = retrieval(retrieval_file)
    assert again.stdout == done.stdout and again.stderr == "" and rows_of(retrieval_file) == rows


def test_the_carried_records_are_those_of_the_generator():
    carried = LINES.with_suffix(".jsonl").read_text()
    assert subprocess.run([sys.executable, LINES], capture_output=True, text=True, check=True).stdout == carried


def test_report_has_tables_and_pictures(kld_file, tmp_path):
    done = run("report", kld_file, "--plots", tmp_path / "pictures")
    if shutil.which("gnuplot") is None:
        assert done.returncode == 6 and "gnuplot-nox" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "· code.txt · 384 tokens" in done.stdout and "128 to 256" in done.stdout
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [p.suffix for p in pictures] == [".png", ".svg"] * 2
    for picture in pictures:
        assert picture.read_bytes()[:4] in (b"\x89PNG", b"<?xm")


def test_without_gnuplot_the_report_says_what_to_install(kld_file, tmp_path):
    done = run("report", kld_file, "--plots", tmp_path, PATH="/nonexistent")
    assert done.returncode == 6 and "install the package gnuplot-nox" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("arguments, said, status", [
    (["kld", "-c", "4"], "--ctx-size: found 4", 2),
    (["kld", "-f", "none.txt"], "none.txt", 6),
    (["kld", "-f", TEXTS / "chat.txt", "-c", "100000"], "'chat.txt': the text is too short", 3),
    (["kld", "--policies", "zop"], "zop", 2),
    (["retrieval", "--lines", "7"], "--lines: found no records of 7 lines", 2),
    (["retrieval", "--records", TEXTS / "chat.txt"], "line 1: found 'User:", 3),
    (["report", LINES.with_suffix(".jsonl")], "result row 1: found task nothing", 3),
    (["report", TEXTS], "no file *.jsonl", 6),
])
def test_wrong_arguments_are_told(arguments, said, status):
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr and done.stdout == ""
