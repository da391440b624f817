"""Runs every shell example of the documentation that is marked ```sh test, holds data/text to its README, and the table
of what llama.cpp can do with the backend to the tests that it names.

An example runs in the project's root, in bash, and stops at its first failing command. Programs that the project does not
install stand behind the mark (```sh test gnuplot); without them the example is skipped.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"^```sh test((?: \w+)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples():
    for page in PAGES:
        text = page.read_text() if page.exists() else ""
        for found in EXAMPLE.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            missing = [program for program in found[1].split() if shutil.which(program) is None]
            marks = [pytest.mark.skip(reason=f"{', '.join(missing)} not installed")] if missing else []
            yield pytest.param(found[2], id=f"{page.relative_to(ROOT)}:{line}", marks=marks)


@pytest.mark.parametrize("commands", list(examples()))
def test_example(commands):
    env = {k: v for k, v in os.environ.items() if not k.startswith("ZIPCACHE_")}
    result = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=ROOT, env=env,
                            stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            errors="replace", timeout=200, check=False)
    assert result.returncode == 0, f"{commands}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


def test_the_readme_has_examples_to_run():
    readme = ROOT / "README.md"
    assert readme.exists() and EXAMPLE.search(readme.read_text()), \
        "README.md holds no example marked ```sh test"


TEXTS = ROOT / "data" / "text"


def test_the_measured_texts_are_those_that_their_readme_names():
    stated = dict(re.findall(r"^\| `(\w+\.txt)` .*`([0-9a-f]{64})` \|$", (TEXTS / "README.md").read_text(), re.MULTILINE))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in TEXTS.glob("*.txt")}
    assert stated == found and len(found) == 4


def test_the_generator_makes_the_same_texts_again(tmp_path):
    subprocess.run([sys.executable, TEXTS / "make.py", "--folder", tmp_path], check=True)
    for name in ("chat.txt", "tools.txt"):
        assert (tmp_path / name).read_bytes() == (TEXTS / name).read_bytes()


def test_tests_that_prove_a_feature_exist():
    named = set(re.findall(r"`(\w+_test\.py)`", (ROOT / "docs/llama-cpp.md").read_text()))
    assert len(named) > 5
    assert named <= {path.name for path in (ROOT / "tests/flow").glob("*_test.py")}
