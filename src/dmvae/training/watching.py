"""A look at a network while its stage trains, which the training does not see; and its figures on held-out data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

from dmvae.models.base import evaluating
from dmvae.runtime import distributed, sharding
from dmvae.runtime.eager import uncompiled
from dmvae.runtime.precision import autocast
from dmvae.training.logging import Figures
from dmvae.training.trainer import Trainer

HELD_OUT = 250
"""Test images, or samples, on which the package's stages are measured."""


def look(trainer: Trainer, name: str, act: Callable[[nn.Module], None], missing: str) -> None:
    """Call `act` with the network of that name as it would be saved now. All ranks must call this: a sharded network is
    gathered, as it is saved. One rank acts, and the others wait as long as that takes. What goes wrong there is a
    warning that begins with `missing`: it is no reason to end a training."""
    inputs = trainer.inputs
    with trainer.as_saved():
        network = sharding.whole_module(getattr(trainer.networks, name))
        if distributed.is_main():
            try:
                with (
                    uncompiled(),
                    evaluating(network),
                    torch.no_grad(),  # not inference_mode: what a network keeps of a pass could not be trained with
                    autocast(inputs.device, inputs.sections.run.precision),
                    torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []),
                ):
                    act(network.to(inputs.device))
            except Exception as error:  # memory, disk, data, a plugin's code, a tracker: each has classes of its own
                warnings.warn(f"{missing} ({error or type(error).__name__}); the training goes on", stacklevel=3)
    distributed.barrier()  # in the next step, the others would wait for no longer than run.timeout


def write_measured(trainer: Trainer, figures: Figures) -> None:
    """Write what the stage's `measure` finds, as test/NAME, to the log and the tracker, in a row of its own: rows of
    means are those of a training that is not measured. All ranks must call it; what cannot be measured, or is not
    finite, is a warning."""

    stage, step = trainer.stage, trainer.step

    def write(network: nn.Module) -> None:
        found = {f"test/{name}": float(value) for name, value in stage.measure(network).items()}
        for name, value in found.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        figures.write_row(step, found)

    look(trainer, stage.measured, write, f"{stage.name}, step {step}: no figures of test data")
