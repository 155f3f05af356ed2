"""Pictures of what a stage's network makes while it trains, so that days of training can be watched."""

from __future__ import annotations

from torch import nn
from torchvision.utils import make_grid

from dmvae.datasets.image_file import write_png
from dmvae.training.logging import Figures
from dmvae.training.trainer import Trainer
from dmvae.training.watching import look

PICTURES = "pictures"
"""The folder of pictures in a stage's folder."""
COLUMNS = 8
"""Images side by side."""


def write_picture(trainer: Trainer, figures: Figures) -> None:
    """Write a picture of what the network that the stage `shows` makes, with the weights that would be saved now, to a
    PNG file and the tracker. All ranks must call it. An error in drawing is a warning."""
    stage, step = trainer.stage, trainer.step
    path = stage.inputs.out / PICTURES / f"step-{step:08d}.png"

    def draw(network: nn.Module) -> None:
        rows = stage.picture(network)
        picture = make_grid(rows.flatten(0, 1), nrow=rows.shape[1])
        write_png(path, picture)
        figures.show(step, picture)

    look(trainer, stage.shows, draw, f"{path}: no picture")
