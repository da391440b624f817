"""`zipcache tune` with tiny numbers, as a user runs it: a policy file with its evidence, taken up again, and the check."""
import json
import shutil
import signal
import subprocess

import pytest

import llama

MODEL = llama.SMALL_MODEL
TEXT = llama.LINES
N_LAYERS = 6


def command(*arguments, model=MODEL, name="tune"):
    return [str(llama.BUILD / "zipcache"), name, "-m", str(model), *map(str, arguments)]


def run(*arguments, model=MODEL, name="tune"):
    return subprocess.run(command(*arguments, model=model, name=name), capture_output=True, text=True, timeout=200,
                          env=llama.environment(None), stdin=subprocess.DEVNULL, check=False)


def tune(policy, *arguments, rows=None):
    rows = rows or policy.with_suffix(".rows.jsonl")
    return run("-f", TEXT, "-c", 320, "-ub", 64, "--chunks", 1, "-t", llama.THREADS, "--rows", rows, "-o", policy,
               *arguments)


def evidence_of(policy):
    return json.loads(policy.read_text())["evidence"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    policy = tmp_path_factory.mktemp("tune") / "policy.json"
    done = tune(policy)
    assert done.returncode == 0, done.stderr
    return policy, done


def test_the_policy_file_is_what_was_chosen(tuned):
    policy, done = tuned
    evidence = evidence_of(policy)
    chosen = evidence["chosen"]
    assert f"Policy: {chosen}\n" in done.stdout
    file, text = (json.loads(run(p, "-c", 640, "-o", "json", name="inspect").stdout)[0] for p in (policy, chosen))
    assert file["settings"].pop("name") == "tuned" and text["settings"].pop("name") == "zip"
    assert file["settings"] == text["settings"] and file["settings"]["layers"]


def test_the_evidence_holds_what_was_measured(tuned):
    policy, _ = tuned
    evidence = evidence_of(policy)
    measured = {row["policy"]: row for row in map(json.loads, policy.with_suffix(".rows.jsonl").read_text().splitlines())
                if row["text"] == "lines.jsonl (search)"}
    assert evidence["model"] == MODEL.name and evidence["model_bytes"] == MODEL.stat().st_size
    assert {"build", "cpu", "date", "llama_cpp"} <= set(evidence) and evidence["f32_weights"] is True
    assert {"zip", "zip2", "zip3", "zip4", "zipcache", "q8_0", "q4_0"} <= {row["policy"] for row in evidence["rows"]}
    for row in evidence["rows"]:
        assert row["kld"] == measured[row["policy"]]["kld_mean"] and row["n_scored"] == 320 - 1 - 160
    layers = evidence["sensitivity"]["layers"]
    assert [row["layers"] for row in layers] == [str(i) for i in range(N_LAYERS)]
    assert all(row["k"] >= 0 and row["v"] >= 0 for row in layers) and max(row["k"] for row in layers) > 0


def test_the_choice_has_no_more_bits_than_zip_and_less_divergence_on_unseen_text(tuned):
    policy, done = tuned
    evidence = evidence_of(policy)
    held_out = {row["policy"]: row for row in evidence["held_out"]["rows"]}
    assert evidence["held_out"]["text"] == "lines.jsonl (held out)"
    chosen, zip_row = held_out[evidence["chosen"]], held_out["zip"]
    assert chosen["bits"] <= zip_row["bits"] + 0.005 and chosen["kld"] <= zip_row["kld"]
    assert f"q4_0 at 4.50 bits costs {held_out['q4_0']['kld'] / chosen['kld']:.1f} times" in done.stdout


def test_the_same_command_measures_nothing_again(tuned):
    policy, first = tuned
    rows = policy.with_suffix(".rows.jsonl").read_text()
    again = tune(policy)
    assert again.returncode == 0 and again.stderr == "" and again.stdout == first.stdout
    assert policy.with_suffix(".rows.jsonl").read_text() == rows


def test_targets_are_met_and_use_the_rows_that_are_there(tuned, tmp_path):
    policy, _ = tuned
    rows = tmp_path / "rows.jsonl"
    shutil.copy(policy.with_suffix(".rows.jsonl"), rows)
    done = tune(tmp_path / "small.json", "--target-bits", "2.6", "--output", "json", rows=rows)
    assert done.returncode == 0, done.stderr
    small, = json.loads(done.stdout)
    assert small == evidence_of(tmp_path / "small.json") and small["target"] == {"bits": 2.6}
    by_name = {row["policy"]: row for row in small["rows"]}
    assert by_name[small["best_of_search"]]["bits"] <= 2.605
    assert "layers alone" not in done.stderr and "built-in" not in done.stderr

    done = tune(tmp_path / "good.json", "--target-kld", "0.02", rows=rows)
    assert done.returncode == 0, done.stderr
    good = evidence_of(tmp_path / "good.json")
    by_name = {row["policy"]: row for row in good["rows"]}
    best = by_name[good["best_of_search"]]
    assert best["kld"] + best["kld_se"] < 0.02
    cheaper = [row for row in good["rows"] if row["bits"] < best["bits"] - 0.005]
    assert cheaper and all(row["kld"] + row["kld_se"] >= 0.02 for row in cheaper)

    done = tune(tmp_path / "none.json", "--target-bits", "1.5", rows=rows)
    assert done.returncode == 5 and "the nearest, " in done.stderr and not (tmp_path / "none.json").exists()


def test_a_picture_on_request(tuned, tmp_path):
    policy, _ = tuned
    done = tune(policy, "--plots", tmp_path / "pictures")
    if shutil.which("gnuplot") is None:
        assert done.returncode == 6 and "gnuplot-nox" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["policy.png", "policy.svg"]
    assert "chosen" in (tmp_path / "pictures" / "policy.svg").read_text()


def test_interrupted_keeps_the_rows_and_says_how_to_go_on(tmp_path):
    policy = tmp_path / "policy.json"
    process = subprocess.Popen(command("-f", TEXT, "-c", 320, "-ub", 64, "--chunks", 1, "-o", policy),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=llama.environment(None))
    for line in process.stderr:
        if "together" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "policy.rows.jsonl', the same command goes on from there" in err
    kept = [json.loads(line)["policy"] for line in (tmp_path / "policy.rows.jsonl").read_text().splitlines()]
    assert kept[:7] == ["q8_0", "q4_0", "zipcache", "zip", "zip2", "zip3", "zip4"] and len(kept) < 30
    assert not policy.exists()


def check(policy, model):
    return run("-f", TEXT, "-c", 384, "--check", policy, model=model)


def test_key_biases_do_not_collapse_silently(biased):
    done = check("zip,k_axis=token,k_round=nearest", biased)
    assert done.returncode == 4 and done.stdout == ""
    assert "collapses" in done.stderr and "K is the culprit" in done.stderr and "zipcache tune" in done.stderr
    well = check("zip,k_axis=token,k_round=nearest", MODEL)
    assert well.returncode == 0 and "no collapse on retrieval-8m.gguf" in well.stdout, well.stderr


def test_the_default_stands_key_biases(biased):
    done = check("zip", biased)
    assert done.returncode == 0 and "no collapse on biased.gguf" in done.stdout, done.stderr


def test_layers_of_a_policy_file_are_put_back_to_16_bits_too(biased, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"base": "zip", "layers": [{"layers": "0-5", "set": "k_axis=token,k_round=nearest,k=4"}]}')
    done = check(policy, biased)
    assert done.returncode == 4 and "K is the culprit" in done.stderr


@pytest.mark.parametrize("arguments, said, status", [
    (["-f", "none.txt"], "none.txt", 6),
    (["-f", TEXT, "-c", "8000", "--chunks", "3000"], "'lines.jsonl': the text is too short", 3),
    (["-f", TEXT, "-c", "64", "--rows", "/dev/null"], "packs nothing", 2),
    (["-o", "policy.txt"], "expected a name that ends in .json", 2),
    (["--target-bits", "3", "--target-kld", "0.1"], "excludes", 2),
    (["--target-kld", "-1"], "--target-kld", 2),
    (["--check", "zop"], "zop", 2),
])
def test_wrong_arguments_are_told(arguments, said, status):
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr and done.stdout == ""
