"""scripts/setup says in one line what is wrong and what to do, and has nothing to do a second time."""

import os
import pathlib
import shutil
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def setup(root, *arguments, **env):
    return subprocess.run([root / "scripts" / "setup", *arguments], env={**os.environ, **env},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
                          check=False)


@pytest.fixture
def fresh_tree(tmp_path):
    """A tree in which nothing is installed yet."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tmp_path)
    return tmp_path


def last_error(result):
    lines = [line for line in result.stderr.splitlines() if line.startswith("setup: error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_second_time_takes_seconds():
    begin = time.monotonic()
    result = setup(ROOT, "--no-build", "--with-programs")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "setup: ready\n"
    assert time.monotonic() - begin < 5


def test_an_unknown_argument_is_refused_with_the_known_ones():
    result = setup(ROOT, "--with-everything")
    assert result.returncode == 2
    assert "--with-everything" in last_error(result) and "--with-programs" in last_error(result)


@pytest.mark.parametrize("script", ["demo", "test"])
def test_the_two_commands_take_no_options(fresh_tree, script):
    # In a tree without anything, so that a script which went on would fail otherwise.
    result = subprocess.run([fresh_tree / "scripts" / script, "--fast"], stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 2, result.stderr
    assert f'{script}: error: found argument "--fast", expected none' in result.stderr


def test_without_a_network_it_says_so(fresh_tree):
    # Port 9 of this machine: nobody listens there.
    result = setup(fresh_tree, "--no-system", "--no-build", PIP_INDEX_URL="http://127.0.0.1:9/simple",
                   PIP_RETRIES="0", PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="")
    assert result.returncode == 6
    assert "cannot reach the package index; check the network" in last_error(result)


def test_without_a_compiler_it_names_the_missing_program(fresh_tree):
    # A path with all that the script itself calls, and no compiler.
    programs = fresh_tree / "programs"
    programs.mkdir()
    for name in ["bash", "env", "dirname", "flock", "nproc", "awk", "python3"]:
        (programs / name).symlink_to(shutil.which(name))
    result = setup(fresh_tree, "--no-system", "--no-build", PATH=str(programs))
    assert result.returncode == 6
    assert "found no program 'g++'" in last_error(result)


def test_where_python_cannot_make_environments_it_names_the_package(fresh_tree):
    programs = fresh_tree / "programs"
    programs.mkdir()
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\nexec {shutil.which("python3")} "$@"\n')
    python.chmod(0o755)
    result = setup(fresh_tree, "--no-system", "--no-build", PATH=f"{programs}:{os.environ['PATH']}")
    assert result.returncode == 6
    assert "install python3-venv" in last_error(result)
