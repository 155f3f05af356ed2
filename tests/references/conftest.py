"""What a reference is built from: the tiny recipe, and a tokenizer that nobody trained."""

import pytest
import torch

import tiny
from dmvae import config as configs
from dmvae.blank import build_autoencoder
from dmvae.inputs import Inputs
from dmvae.recipe import load
from dmvae.references import ReferenceConfig
from dmvae.runtime.random import seed_of


@pytest.fixture
def make(tmp_path):
    """make(type=..., ...) -> the inputs of a stage whose reference this is; make.build(...) -> the reference."""

    def inputs(**distribution) -> Inputs:
        folder = tmp_path / "tokenizer"
        path = tiny.write(tmp_path, reference__distribution=distribution)
        recipe = load(path)["matched"]
        if not folder.exists():
            torch.manual_seed(0)
            build_autoencoder(recipe).save_pretrained(folder / "autoencoder")
        out = tmp_path / f"out-{seed_of(distribution)}"
        out.mkdir(exist_ok=True)
        return Inputs(recipe, "test", out, {"tokenizer": folder}, torch.device("cpu"))

    def build(**distribution):
        given = inputs(**distribution)
        return given.sections.reference.distribution.build(given)

    inputs.build = build
    inputs.read = lambda **distribution: configs.read(ReferenceConfig, distribution)
    return inputs
