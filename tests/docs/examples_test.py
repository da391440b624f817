"""Runs every shell example of the documentation that is marked ```sh test, and holds data/text to its README.

An example runs in the project's root, in bash, and stops at its first failing command.
"""

import hashlib
import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = re.compile(r"^```sh test\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples():
    for page in PAGES:
        text = page.read_text() if page.exists() else ""
        for found in EXAMPLE.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield pytest.param(found[1], id=f"{page.relative_to(ROOT)}:{line}")


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


def test_the_measured_text_is_the_one_that_its_readme_names():
    stated = re.search(r"`([0-9a-f]{64})`", (ROOT / "data/text/README.md").read_text())[1]
    assert hashlib.sha256((ROOT / "data/text/alice29.txt").read_bytes()).hexdigest() == stated
