"""What a step of a stage takes, counted by running it on fake tensors: they have a shape, and no memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmvae.inputs import Blueprint
from dmvae.runtime import sharding
from dmvae.runtime.footprint import Footprint, as_on_a_gpu
from dmvae.training.stage import AnyTraining, Batch
from dmvae.training.trainer import Trainer


@dataclass(frozen=True)
class Cost:
    """What a stage's step takes on one rank."""

    trained: int
    """Parameters that train."""
    frozen: int
    """Parameters that do not."""
    weights: int
    """Bytes of parameters and buffers."""
    state: int
    """Bytes of the optimizers' moments and the averages."""
    working: int
    """Bytes beyond weights and state at the step's peak: activations, gradients, the batch."""
    saved: int
    """Bytes of the networks that are saved."""
    spread: int
    """Bytes of weights, moments and averages that `run.shard` spreads over the ranks."""
    spread_gradients: int
    """Bytes of the gradients that it spreads."""
    flops: float
    """Floating-point operations of matrix products and convolutions, forward and backward, averaged over steps."""

    @property
    def peak(self) -> int:
        """Bytes at the step's peak."""
        return self.weights + self.state + self.working


def cost_of(stage: type[AnyTraining], inputs: Blueprint, *, ranks: int = 1, gpu: bool = False) -> Cost:
    """What a step of the stage takes on each of `ranks` ranks, whose shares of the batch are equal.

    gpu: count as for a GPU, whatever this machine has. With `inputs.fake` False, a step is really computed.
    Raises ValueError where the stage refuses its settings.
    """
    sections = inputs.sections
    plain = replace(sections.run, compile=False, shard=False)
    inputs = Blueprint(replace(sections, run=plain), inputs.variant, inputs.configs, inputs.num_classes, inputs.fake)
    with ExitStack() as stack:
        if inputs.fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if gpu:
            stack.enter_context(as_on_a_gpu())
        count = stack.enter_context(Footprint())
        trainer = Trainer(stage(sections.section(stage), inputs))  # type: ignore[attr-defined]
        held, peak, flops = count.alive, 0, 0.0
        for step, share in trainer.stage.kinds().items():
            before, count.peak = count.flops, count.alive
            trainer.step = step
            parts = sections.run.accumulate if trainer.stage.takes_parts else 1
            local = max(1, trainer.config.batch_size // ranks // parts) * parts
            shape, labels = trainer.stage.item_shape, torch.zeros(local, dtype=torch.int64)
            batch = Batch(torch.zeros(local, *shape), labels, step, step)
            if trainer.stage.sees_images:
                data = inputs.data
                batch.images = torch.zeros(local, data.channels, data.size, data.size)
            if trainer.networks.trains:
                for _ in trainer.train_step(batch):
                    pass
            flops += share * (count.flops - before)
            peak = max(peak, count.peak)
            del batch
        parameters, buffers = list(trainer.networks.parameters()), list(trainer.networks.buffers())
        moving = {p for of in trainer.networks.trains.values() for p in of}
        trained = sum(p.numel() for p in moving)
        weights = sum(x.untyped_storage().nbytes() for x in {*parameters, *buffers})
        return Cost(
            trained,
            sum(p.numel() for p in parameters) - trained,
            weights,
            held - weights,
            max(peak - held, 0),
            sum(x.nbytes for module in trainer.networks.saved().values() for x in module.state_dict().values()),
            *_spread(trainer),
            flops,
        )


def _spread(trainer: Trainer) -> tuple[int, int]:
    """(bytes of weights, moments and averages, bytes of gradients) of all that can be sharded."""
    moving = {p for of in trainer.networks.trains.values() for p in of}
    averaged = {p for average in trainer.averages.values() for p in average.parameters}
    held = gradients = 0
    for module in trainer.networks.children():
        for part in sharding.shardable(module):
            for p in part.parameters():
                held += p.nbytes * (1 + 2 * (p in moving) + (p in averaged))
                gradients += p.nbytes * (p in moving)
    return held, gradients
