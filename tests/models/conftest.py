"""Helpers of the network tests: golden files, error, comparison of keys."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """name -> the tensors of tests/golden/name.safetensors."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture(scope="session")
def official_keys():
    """Network name -> {parameter name: shape}."""
    return json.loads((GOLDEN / "official_keys.json").read_text())


@pytest.fixture(scope="session")
def relative_error():
    return lambda a, b: ((a - b).norm() / b.norm()).item()


@pytest.fixture
def shapes():
    """A model's state dict as {name: shape}."""
    return lambda model: {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
