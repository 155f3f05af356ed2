"""The golden networks under the authors' names, for the tests of their weights; a small tokenizer and some images."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dmvae import Autoencoder
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


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    encoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "stride": 4, "out_channels": 8}
    model = Autoencoder(
        encoder=encoder,
        image_size=16,
        latent_channels=3,
        bottleneck_width=8,
        decoder={"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1},
    ).eval()
    model.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat/a.1.png", "cat/b.png", "dog/c.jpg", "dog/d.png", "dog/e.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"
