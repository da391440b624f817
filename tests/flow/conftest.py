"""Every flow test needs the plug-in, the programs and the model; without them it fails, with the cure."""

import pytest

import llama


@pytest.fixture(scope="session", autouse=True)
def everything_is_there():
    problems = llama.missing()
    if problems:
        pytest.exit("; ".join(problems), returncode=1)
