"""Stage `generator`: a new flow model on the tokenizer's latents. What its samples are worth is what the
latent distribution is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dmvae.inputs import Inputs, describe_latents
from dmvae.latents.store import LatentSet
from dmvae.runtime.random import Random
from dmvae.training.contract import Batch, Networks, Update
from dmvae.training.flow import FlowTraining, flow_update

NAME = "generator"
READS = ("latents",)
USES: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(FlowTraining):
    """Training of the generator."""


def build(config: GeneratorConfig, inputs: Inputs) -> Networks:
    generator = config.model.build(describe_latents(inputs.recipe), inputs.num_classes)
    return Networks(
        {"generator": generator},
        trains={"generator": [p for p in generator.parameters() if p.requires_grad]},
        averaged=("generator",),
        extra={"dataset": LatentSet(inputs.reads["latents"] / "latents"), "config": config},
    )


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    yield flow_update("generator", networks.generator, batch.data, batch.labels, networks.config, rng)
