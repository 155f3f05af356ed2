"""Pictures of what a stage's network makes while it trains, so that days of training can be watched."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torchvision.utils import make_grid

from dmvae.datasets.image_file import write_png
from dmvae.training.ema import Average
from dmvae.training.logging import Figures
from dmvae.training.stage import N, T, TrainingStage
from dmvae.training.watching import look

PICTURES = "pictures"
"""The folder of pictures in a stage's folder."""
COLUMNS = 8
"""Images side by side."""


def write_picture(
    stage: TrainingStage[T, N], networks: N, averages: Iterable[Average], step: int, figures: Figures
) -> None:
    """Write a picture of what the network that the stage `shows` makes, with the weights that would be saved now, to a
    PNG file and the tracker. All ranks must call it. An error in drawing is a warning."""
    path = stage.inputs.out / PICTURES / f"step-{step:08d}.png"

    def draw(network: nn.Module) -> None:
        rows = stage.picture(network)
        picture = make_grid(rows.flatten(0, 1), nrow=rows.shape[1])
        write_png(path, picture)
        figures.show(step, picture)

    look(stage, networks, averages, stage.shows, draw, f"{path}: no picture")
