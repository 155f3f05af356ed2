"""Steps of a stage one by one, without the loop around them."""

import traceback
from pathlib import Path

import torch

import tiny
from dmvae.inputs import Blueprint
from dmvae.recipe import load
from dmvae.training.stage import Batch, TrainingStage
from dmvae.training.trainer import Trainer

STAGES = ("encoder", "tokenizer", "reference", "matching", "decoder", "generator")
EDITED = {"matching__objective": {"type": "transport"}, "matching__anchor": 0.3, "matching__balance": "gradient"}


def place():
    """The line of the package that this was asked in."""
    frames = [frame for frame in traceback.extract_stack() if "/dmvae/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "here"


def trainer_of(folder, stage, device="cpu", **over):
    recipe = load(tiny.write(folder, **over))["matched"]
    kind = next(s for s in recipe.stages() if s.name == stage)
    assert issubclass(kind, TrainingStage)
    reads = {name: recipe.section(name) for name in kind.reads if recipe.section(name) is not None}
    inputs = Blueprint(recipe, "", reads, 3, fake=False)
    inputs.device = torch.device(device)
    return Trainer(kind(recipe.section(kind), inputs))


def batch_of(trainer, step, steps=1000):
    device = trainer.inputs.device
    data = torch.randn(8, *trainer.stage.item_shape, device=device)
    return Batch(data, (torch.arange(8) % 3).to(device), step, steps)
