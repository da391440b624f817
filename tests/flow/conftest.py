"""Every flow test needs the plug-in, the programs and the model; without them it fails, with the cure."""

import pytest

import biased_model
import llama


@pytest.fixture(scope="session", autouse=True)
def everything_is_there():
    problems = llama.missing()
    if problems:
        pytest.exit("; ".join(problems), returncode=1)


@pytest.fixture(scope="session")
def biased(tmp_path_factory):
    """The small model with key biases in the manner of Qwen2."""
    path = tmp_path_factory.mktemp("biased") / "biased.gguf"
    biased_model.with_key_biases(llama.SMALL_MODEL, path, bias=200.0, n_channels=4)
    return path
