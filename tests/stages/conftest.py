"""Latents that a run has left, as its stages and other projects read them."""

from pathlib import Path

import pytest
import torch
from elsewhere import PIXELS

import tiny
from dmvae import cli


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """What `dmvae export lightningdit-latents` made of the latents of a run on images, whose recipe lies beside it."""
    folder = tmp_path_factory.mktemp("images")
    tiny.run(tiny.write(folder, **PIXELS, latents={"mirrored": True, "shard_size": 20}), until="latents")
    cli.main(["export", "lightningdit-latents", str(folder / "run/main/latents"), "--out", str(folder / "theirs")])
    return folder / "theirs"


@pytest.fixture
def own(tmp_path) -> dict[str, str]:
    """A tokenizer that can be trained further."""
    return {"type": "dmvae", "path": str(tiny.variational(tmp_path / "own", torch.full((4,), 0.1)))}
