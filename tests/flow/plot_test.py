"""`zipcache plot` as a user runs it: pictures with their data, scores of tokens, and policies that rank by them."""
import csv
import json
import shutil
import struct
import subprocess

import pytest

import llama

needs_gnuplot = pytest.mark.skipif(shutil.which("gnuplot") is None, reason="gnuplot is not installed")
BENCH = llama.ROOT / "bench" / "results"
TUNED = llama.ROOT / "eval" / "results" / "tune-smollm2-135m-2026-11-25.json"
TEXTS = llama.ROOT / "data" / "text"
N_LAYERS, N_TOKENS = 6, 384


def run(*arguments, **environment):
    return subprocess.run([str(llama.BUILD / "zipcache"), *map(str, arguments)], capture_output=True, text=True,
                          timeout=200, env=llama.environment(None) | environment, stdin=subprocess.DEVNULL, check=False)


def plot(folder, *arguments):
    """The rows of the pictures that a command drew, by the pictures' names."""
    done = run("plot", *arguments, "-o", folder)
    assert done.returncode == 0, done.stderr
    rows = {}
    for data in sorted(folder.glob("*.csv")):
        assert data.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "<svg" in data.with_suffix(".svg").read_text()
        assert str(data.with_suffix("")) in done.stdout
        rows[data.stem] = list(csv.DictReader(data.open()))
    assert not list(folder.glob("*.gnuplot")) and not list(folder.glob("*.tsv")) and rows
    return rows


@needs_gnuplot
def test_bytes_are_those_of_inspect(tmp_path):
    shape = ["--layers", 4, "--heads", 2, "--head-dim", 64]
    rows, = plot(tmp_path, "bytes", "--policies", "f16;zip;zip,recent=64", "-c", 4096, *shape).values()
    assert [row["policy"] for row in rows[::len(rows) // 3]] == ["f16", "zip", "zip,recent=64"]
    kinds = ["codes", "params", "tags", "sinks", "window", "scores", "map", "padding"]
    for policy in ("f16", "zip", "zip,recent=64"):
        last = [row for row in rows if row["policy"] == policy][-1]
        known = json.loads(run("inspect", policy, "-c", 4096, *shape, "-o", "json").stdout)[0]
        assert last["tokens"] == "4096" and sum(int(last[kind]) for kind in kinds) == known["kv_bytes"]
        assert int(last["sinks"]) == (0 if policy == "f16" else 4 * 4 * 2 * 128 * 2)
        assert int(last["sinks"]) + int(last["window"]) == known["bytes"]["raw"]


@needs_gnuplot
def test_speed_and_sensitivity_show_what_was_measured(tmp_path):
    files = plot(tmp_path / "ratio", "speed", "--ratio", BENCH / "2026-11-25-model-epyc.jsonl")
    generation, = (rows for name, rows in files.items() if "-tg-" in name)
    measured = [json.loads(line) for line in (BENCH / "2026-11-25-model-epyc.jsonl").read_text().splitlines()]
    for row in generation:
        same, = (m for m in measured if m["n_gen"] > 0 and m["policy"] == row["policy"]
                 and m["depth"] == float(row["depth"]))
        assert float(row["value"]) == same["vs_llama_f16"] and float(row["spread"]) == same["vs_llama_f16_sd"]
    assert {row["policy"] for row in generation} == {"llama:f16", "zip", "zipcache"}

    rows, = plot(tmp_path / "layers", "sensitivity", TUNED).values()
    found = json.loads(TUNED.read_text())["evidence"]["sensitivity"]["layers"]
    assert [float(row["divergence"]) for row in rows if row["side"] == "V"] == [group["v"] for group in found]


@needs_gnuplot
def test_roofline_is_what_was_measured(tmp_path):
    results = BENCH / "2026-11-28-gpu-h100-4.jsonl"
    measured = [json.loads(line) for line in results.read_text().splitlines()]
    files = plot(tmp_path, "roofline", results)
    assert len(files) == len({(row["n_head"], row["n_head_kv"], row["d_head"]) for row in measured})
    rows, = (rows for name, rows in files.items() if "-32-8-128-" in name)
    assert len(rows) == 5 * 9
    for row in rows:
        depth, batch = int(row["depth"]), int(row["batch"])
        operations = 4 * depth * batch * 32 * 128
        same, = (m for m in measured if (m["n_head_kv"], m["d_head"], m["depth"], m["batch"]) == (8, 128, depth, batch)
                 and m["policy"] == (row["policy"] if row["policy"] != "16 bits" else "zipcache"))
        us, held = (same["sdpa_us"], 4 * depth * batch * 8 * 128) if row["policy"] == "16 bits" else (same["us"], same["bytes"])
        assert float(row["tflops"]) == pytest.approx(operations / us / 1e6)
        assert float(row["operations_per_byte"]) == pytest.approx(operations / held)
        assert float(row["tflops"]) < 1.05 * float(row["roof"])  # a copy writes too
    done = run("plot", "roofline", BENCH / "2026-11-25-model-epyc.jsonl", "-o", tmp_path)
    assert done.returncode != 0 and "expected \"kind\" gpu_attention" in done.stderr


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of the small model over its text, and what the command said."""
    folder = tmp_path_factory.mktemp("scores")
    done = run("plot", "saliency", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", N_TOKENS, "-ub", 64,
               "-t", llama.THREADS, "--scores", folder / "lines.zcs", "-o", folder)
    assert f"token scores: {folder / 'lines.zcs'}" in done.stdout, done.stderr
    assert done.returncode == (0 if shutil.which("gnuplot") else 6), done.stderr
    return folder / "lines.zcs"


@needs_gnuplot
def test_saliency_is_attention_over_all_rows(scores):
    picture, = (list(csv.DictReader(p.open())) for p in scores.parent.glob("*.csv"))
    for panel in ("layer 0", "layer 1", "layer 3", "layer 5", "all heads"):
        rows = [row for row in picture if row["panel"] == panel]
        assert [int(row["position"]) for row in rows] == list(range(N_TOKENS))
        if panel == "all heads":
            chosen = [sum(float(row[column]) for row in rows) for column in ("normalized", "accumulated")]
            # 40 % of tokens, rounded up.
            assert chosen == pytest.approx([154, 154], rel=1e-4)
            continue
        for i, row in enumerate(rows):
            assert float(row["accumulated"]) == pytest.approx(float(row["normalized"]) * (N_TOKENS - i), rel=1e-4)
        # Every row gives 1 in each query head, and each layer has as many query heads as share a KV head.
        mass = sum(float(row["accumulated"]) for row in rows) / N_TOKENS
        assert mass == pytest.approx(round(mass), rel=1e-4) and round(mass) >= 1


@needs_gnuplot
def test_saved_scores_are_drawn_without_a_model(scores, tmp_path):
    rows, = plot(tmp_path, "saliency", "--from", scores, "--layers", "2,4").values()
    assert {row["panel"] for row in rows} == {"layer 2", "layer 4", "all heads"}


def kld(policies, *arguments, text=llama.LINES, ctx=N_TOKENS, out=""):
    return run("eval", "kld", "-m", llama.SMALL_MODEL, "-f", text, "-c", ctx, "-ub", 64, "-t", llama.THREADS,
               "--policies", policies, "-o", "jsonl", "--out", out, *arguments)


def test_the_oracle_beats_chance(scores, tmp_path):
    by_file = f"zipcache,score=file:{scores}"
    done = kld(f"random-tiers;{by_file}", out=tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    chance, oracle = map(json.loads, done.stdout.splitlines())
    assert oracle["policy"] == by_file and oracle["bits_coded"] == chance["bits_coded"]
    assert oracle["kld_mean"] < 0.7 * chance["kld_mean"]
    # Another content of the file is measured again.
    other = tmp_path / "other.zcs"
    shutil.copy(scores, other)
    assert kld(f"zip,score=file:{other}", out=tmp_path / "rows.jsonl").returncode == 0
    with_packed = run("plot", "saliency", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", N_TOKENS, "-ub", 64,
                      "--packed-after", 128, "--scores", other, "-o", tmp_path, PATH="/nonexistent")
    assert with_packed.returncode == 6 and "install the package gnuplot-nox" in with_packed.stderr
    again = kld(f"zip,score=file:{other}", out=tmp_path / "rows.jsonl")
    assert again.returncode == 0 and "1 policies" in again.stderr
    assert kld(f"zip,score=file:{other}", out=tmp_path / "rows.jsonl").stderr == ""


def test_a_replay_finds_what_a_repetition_needs(scores, tmp_path):
    replayed = tmp_path / "replay.zcs"
    done = run("plot", "saliency", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", N_TOKENS, "-ub", 64,
               "-t", llama.THREADS, "--replay", "--scores", replayed, "-o", tmp_path)
    assert f"token scores: {replayed}" in done.stdout, done.stderr
    n_layers, n_tokens = struct.unpack_from("<II", replayed.read_bytes(), 12)
    heads = struct.unpack_from(f"<{n_layers}I", replayed.read_bytes(), 20)
    at = 20 + 4 * n_layers + 4 * n_tokens
    for n_heads in heads:
        seen = struct.unpack_from(f"<{n_tokens}I", replayed.read_bytes(), at)
        most = struct.unpack_from(f"<{n_heads * n_tokens}f", replayed.read_bytes(), at + 4 * n_tokens)
        assert set(seen) == {1} and all(0 <= value <= 1 + 1e-5 for value in most)
        at += 4 * n_tokens * (1 + n_heads)
    # A row repeated word for word looks at its first reading, in some head of some layer.
    assert max(most) > 0.5
    # Whether these scores choose well is measured on real text: this model falls apart under any eviction.
    rows = kld(f"kvzip,score=file:{replayed}")
    assert rows.returncode == 0, rows.stderr
    (kvzip,) = map(json.loads, rows.stdout.splitlines())
    assert kvzip["bits_coded"] < 6 and kvzip["kld_mean"] > 0


def test_a_row_without_its_scores_says_how_to_make_them():
    done = kld("kvzip")
    assert done.returncode == 2 and "zipcache plot saliency" in done.stderr and "--replay" in done.stderr


def test_scores_of_something_else_are_refused(scores, tmp_path):
    policy = f"zip,score=file:{scores}"
    damaged = tmp_path / "damaged.zcs"
    damaged.write_bytes(scores.read_bytes()[:-9])
    for done, said, status in [
            (kld(policy, text=TEXTS / "alice29.txt", ctx=320), "are of another text", 4),
            (kld(policy, ctx=512), "scores of 384 tokens, expected at least the 512", 4),
            (kld(policy, "--chunks", 2, ctx=256), "are of another text", 4),
            (kld(f"zip,score=file:{damaged}"), "damaged.zcs", 3),
            (kld(f"zip,score=file:{tmp_path / 'none.zcs'}"), "none.zcs", 6),
            (run("eval", "kld", "-f", TEXTS / "code.txt", "-c", 64, "--policies", policy),
             "scores of 6 layers, expected 30", 4),
            (run("eval", "retrieval", "--samples", 1, "--policies", policy), "found score=file", 2),
            (run("run", "-m", llama.SMALL_MODEL, "-p", "x", "--policy", policy), "found score=file", 2)]:
        assert done.returncode == status, done.stderr
        assert said in done.stderr and done.stdout == ""


@pytest.mark.parametrize("arguments, said, status", [
    (["bytes", "--policies", "q4_0"], "found q4_0, llama.cpp's own cache", 2),
    (["bytes", "--policies", "zop"], "zop", 2),
    (["bytes", "--policies", "f16;zip;zip2;zip3;zip4;zipcache"], "at most 5", 2),
    (["speed", BENCH / "2026-11-24-compare-epyc.jsonl"], "row 1: found no kind", 3),
    (["speed", BENCH / "2026-11-25-peers-epyc.jsonl"], "row 1: ", 3),
    (["speed", "none.jsonl"], "none.jsonl", 6),
    (["sensitivity", llama.LINES], "lines.jsonl': evidence: ", 3),
    (["saliency", "--from", TUNED], "expected token scores", 3),
    (["saliency", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "--layers", "6"], "--layers: found 6, expected 0 to 5", 2),
    (["saliency", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", "1000000"], "the text is too short", 3),
    (["saliency", "--from", "a.zcs", "-c", "64"], "excludes", 2),
])
def test_wrong_arguments_are_told(arguments, said, status, tmp_path):
    done = run("plot", *arguments, "-o", tmp_path / "pictures")
    assert done.returncode == status, done.stderr
    assert said in done.stderr and done.stdout == ""
    assert not (tmp_path / "pictures").exists()
