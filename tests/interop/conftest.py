"""The golden networks under the authors' names, for the tests of their weights."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dmvae.interop.official import import_vae

GOLDEN = Path(__file__).parents[1] / "golden"


def part_of(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def vae_data():
    return load_file(GOLDEN / "vae.safetensors")


@pytest.fixture(scope="module")
def vae_state(vae_data):
    """The golden tokenizer's state dict under the authors' names."""
    return part_of(vae_data, "vae_ema.")


@pytest.fixture(scope="module")
def vae():
    return import_vae(GOLDEN / "vae.safetensors", heads=3)


@pytest.fixture(scope="module")
def dit_data():
    return load_file(GOLDEN / "lightningdit.safetensors")


@pytest.fixture(scope="module")
def dit_state(dit_data):
    """The golden generator's state dict under the authors' names."""
    return part_of(dit_data, "model.")


@pytest.fixture
def ep64(tmp_path, dit_state):
    """A generator's checkpoint as the authors' training writes it; only its `ema` is the golden network."""
    file = tmp_path / "ep64.pt"
    other = {k: v * 2 for k, v in dit_state.items() if "feat_rope" not in k}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]}
    args = argparse.Namespace(lr=2e-4, image_size=256)
    torch.save({"ema": dit_state, "model": dit_state | other, "opt": optimizer, "args": args, "steps": 9}, file)
    return file
