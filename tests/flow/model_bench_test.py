"""`zipcache bench model` with tiny numbers, as a user runs it."""
import json
import signal
import subprocess
import time

import pytest

import llama

FIELDS = ("kind model kernel isa policy test n_prompt n_gen depth threads ubatch tps_mean tps_sd tps vs_llama_f16 "
          "vs_llama_f16_sd kv_mib cpu date").split()


def command(*arguments):
    return [str(llama.BUILD / "zipcache"), "bench", "model", *map(str, arguments)]


def bench(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=200,
                          env=llama.environment(None), stdin=subprocess.DEVNULL, check=False)


def test_rows_have_the_fields_the_names_and_ratios_of_the_same_rounds():
    done = bench("--policies", "llama:f16;zip", "-p", 96, "-n", 2, "-d", "0,256", "-r", 2, "-t", 2, "-ub", 128,
                 "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["test"], row["policy"]) for row in rows] == [
        (test, policy) for test in ("pp96", "tg2", "pp96 @ d256", "tg2 @ d256") for policy in ("llama:f16", "zip")]
    for row in rows:
        assert list(row)[:len(FIELDS)] == FIELDS
        assert row["kind"] == "model" and row["threads"] == 2 and row["ubatch"] == 128
        assert len(row["tps"]) == 2 and min(row["tps"]) > 0
        assert row["tps_mean"] == pytest.approx(sum(row["tps"]) / 2)
    for plain, ours in zip(rows[::2], rows[1::2]):
        assert (plain["kernel"], plain["isa"], ours["kernel"]) == ("ggml", "", "zipcache") and ours["isa"]
        assert (plain["vs_llama_f16"], plain["vs_llama_f16_sd"]) == (1, 0)
        assert plain["share_attention"] is None
        assert 0 < ours["share_attention"] and ours["share_attention"] + ours["share_packing"] < 1
        ratios = [a / b for a, b in zip(ours["tps"], plain["tps"])]
        assert ours["vs_llama_f16"] == pytest.approx(sum(ratios) / 2)
        cells = plain["depth"] + plain["n_prompt"] + plain["n_gen"]
        assert plain["kv_mib"] == pytest.approx(cells * llama.BYTES_PER_TOKEN_F16 / 2**20)
    # 352 tokens, of which the older ones are packed; a repetition that added to the last would hold more.
    assert rows[5]["policy"] == "zip" and rows[5]["kv_mib"] < rows[4]["kv_mib"]


def test_without_llama_f16_there_is_no_ratio():
    done = bench("--policies", "zip", "-p", 0, "-n", 1, "-d", 0, "-r", 1, "-t", 1, "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    row, = map(json.loads, done.stdout.splitlines())
    assert row["test"] == "tg1" and row["vs_llama_f16"] is None


def test_interrupted_it_prints_what_was_measured():
    process = subprocess.Popen(command("--policies", "zip", "-p", 0, "-n", "2,4000", "-d", 0, "-r", 1, "-t", 1,
                                       "-o", "jsonl"),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=llama.environment(None))
    for line in process.stderr:
        if line.startswith("tg4000"):
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted after 1 rows" in err
    assert [json.loads(line)["test"] for line in out.splitlines()] == ["tg2"]


@pytest.mark.parametrize("arguments, said, status", [
    (["-r", "0"], "--reps: found 0, expected 1 to 10000", 2),
    (["-d", "0,8193"], "--n-depth: found 8193, expected at most 8192", 5),
    (["-p", "9000"], "--n-prompt: found 9000", 5),
    (["-p", "0", "-n", "0"], "--n-prompt, --n-gen: found 0 in both", 2),
    (["--policies", "zop"], "zop", 2),
    (["--policies", "llama:q9_9"], "q9_9", 2),
    (["-m", "none.gguf"], "none.gguf", 6),
    (["-f", "none.txt"], "none.txt", 6),
    (["-o", "xml"], "xml", 2),
    (["--n-promt", "3"], "did you mean --n-prompt?); see zipcache bench model --help", 2),
])
def test_wrong_arguments_are_told(arguments, said, status):
    done = bench(*arguments)
    assert done.returncode == status
    assert said in done.stderr and done.stdout == ""
