"""Pictures of what a stage's network makes while it trains, so that days of training can be watched."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torchvision.utils import make_grid

from dmvae.datasets.image_file import write_png
from dmvae.models.base import evaluating
from dmvae.runtime import distributed, sharding
from dmvae.runtime.precision import autocast
from dmvae.training.ema import Average, as_saved
from dmvae.training.logging import Figures
from dmvae.training.preparing import uncompiled
from dmvae.training.stage import N, T, TrainingStage

PICTURES = "pictures"
"""The folder of pictures in a stage's folder."""
COLUMNS = 8
"""Images side by side."""


def write_picture(
    stage: TrainingStage[T, N], networks: N, averages: Iterable[Average], step: int, figures: Figures
) -> None:
    """Write a picture of what the network that the stage `shows` makes, with the weights that would be saved now, to a
    PNG file and the tracker. All ranks must call it, to gather a sharded network; one rank draws. An error in drawing
    is a warning: it must not end a training."""
    inputs, run = stage.inputs, stage.inputs.sections.run
    path = inputs.out / PICTURES / f"step-{step:08d}.png"
    with as_saved(stage, networks, averages):
        network = sharding.whole_module(getattr(networks, stage.shows))
        if not distributed.is_main():
            return
        try:
            # not inference_mode: tensors that a network keeps from a pass could not be trained with
            with uncompiled(), evaluating(network), torch.no_grad(), autocast(inputs.device, run.precision):
                rows = stage.picture(network.to(inputs.device))
            picture = make_grid(rows.flatten(0, 1), nrow=rows.shape[1])
            write_png(path, picture)
            figures.show(step, picture)
        except Exception as error:  # memory, disk, data, a plugin's code, a tracker: each has classes of its own
            warnings.warn(f"{path}: no picture ({error or type(error).__name__}); the training goes on", stacklevel=2)
