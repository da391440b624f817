"""`zipcache fit-rotations` on the small model, and its file in the program and in the plug-in."""
import json
import subprocess

import pytest

import llama


def zipcache(*arguments, policy=None):
    return subprocess.run([str(llama.BUILD / "zipcache"), *map(str, arguments)], capture_output=True, text=True,
                          timeout=150, env=llama.environment(policy), stdin=subprocess.DEVNULL, check=False)


def fit(path, *arguments):
    return zipcache("fit-rotations", "-m", llama.SMALL_MODEL, "-f", llama.TEXT, "-c", 256, "--chunks", 4, "-o", path,
                    *arguments)


def divergence(*policies):
    done = zipcache("eval", "kld", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", 512, "-ub", 64, "--f32-weights",
                    "--output", "json", "--policies", ";".join(policies))
    assert done.returncode == 0, done.stderr
    return {row["policy"]: row for row in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rotations")
    for name, method in (("model.rot", "oscar"), ("model.perm", "permute")):
        done = fit(folder / name, "--method", method)
        assert done.returncode == 0, done.stderr
        assert f"rotations={folder / name}" in done.stdout and "1024 tokens" in done.stdout
    return folder


def test_the_file_says_where_it_comes_from(fitted):
    content = (fitted / "model.rot").read_bytes()
    about = json.loads(content[20:20 + int.from_bytes(content[16:20], "little")])
    assert about["model"] == llama.SMALL_MODEL.name and about["method"] == "oscar" and about["tokens"] == 1024
    assert fit(fitted / "again.rot").returncode == 0
    assert (fitted / "again.rot").read_bytes() == content


def test_policies_with_the_file_are_measured(fitted):
    rot, perm = fitted / "model.rot", fitted / "model.perm"
    rows = divergence(f"oscar2,recent=0,sinks=4,rotations={rot}", f"skvq,recent=0,rotations={perm}",
                      f"zip,k=8,v=8,recent=0,rotate=file,rotations={rot}", "uniform2")
    oscar, skvq, wide, plain = rows.values()
    # Rotated codes of 8 bits are nearly exact: queries, keys, values and outputs are turned alike.
    assert wide["kld_mean"] < 0.001
    for row in (oscar, skvq):
        assert 0 < row["kld_mean"] < plain["kld_mean"]
    # 2 bits and a pair for each of 2 times 32 channels, or for a head of 64: 3 and 2.5 bits.
    assert round(skvq["bits_coded"], 1) == 3.0 and round(oscar["bits_coded"], 1) == 2.5


def test_rows_of_another_file_are_measured_again(fitted, tmp_path):
    rotations, rows = tmp_path / "model.rot", tmp_path / "rows.jsonl"

    def measured_rows(source):
        rotations.write_bytes((fitted / source).read_bytes())
        done = zipcache("eval", "kld", "-m", llama.SMALL_MODEL, "-f", llama.LINES, "-c", 256, "-ub", 64, "--out", rows,
                        "--policies", f"skvq,recent=0,rotations={rotations}")
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["rotations_print"] for line in rows.read_text().splitlines()]

    assert len(measured_rows("model.perm")) == len(measured_rows("model.perm")) == 1
    assert len(set(measured_rows("model.rot"))) == 2


def test_the_plugin_takes_the_file_and_refuses_what_does_not_fit(fitted):
    def complete(policy):
        return llama.run("llama-completion", "-m", llama.SMALL_MODEL, "-p", "l 1 2 3", "-n", 4, "-no-cnv", "-t", 1,
                         *llama.WITH_ZIPCACHE, policy=policy)

    assert complete(f"oscar2,rotations={fitted / 'model.rot'}").returncode == 0
    missing = complete("oscar2")
    assert missing.returncode != 0 and "zipcache fit-rotations -m MODEL" in missing.stderr
    other = llama.complete("Hello", 2, policy=f"zip2,rotate=file,rotations={fitted / 'model.rot'}")
    assert other.returncode != 0 and "expected 30" in other.stderr


@pytest.mark.parametrize("arguments, words", [
    (["--method", "haar"], ["haar", "oscar or permute"]),
    (["-o", "/nowhere/x.rot"], ["/nowhere/x.rot", "folder"]),
    (["-o", "a,b.rot"], ["a,b.rot", "commas"]),
    (["-f", llama.TEXT, "-c", 1 << 20], ["too short"]),
    (["-m", "missing.gguf"], ["missing.gguf"]),
])
def test_wrong_arguments_are_refused_with_the_cure(tmp_path, arguments, words):
    path = [] if "-o" in arguments else ["-o", tmp_path / "x.rot"]
    model = [] if "-m" in arguments else ["-m", llama.SMALL_MODEL]
    done = zipcache("fit-rotations", *model, *path, *arguments)
    assert done.returncode not in (0, 1) and all(word in done.stderr for word in words), done.stderr


def test_a_damaged_file_is_refused_before_the_model_is_loaded(fitted):
    content = bytearray((fitted / "model.rot").read_bytes())
    content[-5000] ^= 1
    (fitted / "damaged.rot").write_bytes(content)
    done = zipcache("compare", "-m", llama.SMALL_MODEL, "-f", llama.TEXT, "--policies",
                    f"oscar2,rotations={fitted / 'damaged.rot'}")
    assert done.returncode == 3 and "damaged.rot" in done.stderr and "check sum" in done.stderr
