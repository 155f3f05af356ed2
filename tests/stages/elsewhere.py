"""Recipes of latents that were encoded elsewhere."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

import tiny
from dmvae import checks
from dmvae.jobs import plan
from dmvae.recipe import load

TRAINED = ("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants")
PIXELS = dict.fromkeys(TRAINED) | {"pretrained": {"type": "identity", "patch": 2}, "run__precision": "float32"}
"""Latents without a training: 2x2 pixels of 3 colours are 12 channels at 6x6."""
IMAGES = {"type": "shapes", "num_classes": 3, "count": 48, "test_count": 24}
NOTHING = {"evaluate": None, "sample": None}


def write(folder: Path, root: Path, data=None, **over) -> Path:
    """A recipe of latents at `root`."""
    folder.mkdir(exist_ok=True)
    path = tiny.write(folder, **(PIXELS | over))
    recipe = yaml.safe_load(path.read_text())
    recipe["data"] = {"type": "latents", "root": str(root), "size": 12, "test": IMAGES} | (data or {})
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def whole(theirs: Path, tensor="latents") -> tuple[torch.Tensor, torch.Tensor]:
    shards = [load_file(path) for path in sorted(theirs.glob("*.safetensors"))]
    return torch.cat([shard[tensor] for shard in shards]), torch.cat([shard["labels"] for shard in shards])


def refused(path: Path) -> list[str]:
    """What is wrong with a recipe before it runs."""
    recipe = load(path)["main"]
    try:
        plan({"main": recipe}, Path(recipe.run.dir))
        return list(checks.problems(recipe, recipe.stages()))
    except ValueError as error:
        return [str(error)]
