"""Stage `reference`: the teacher, a flow model of the reference distribution.

A reference whose velocity has a closed form needs none; its stage then only records how latents are
normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from safetensors.torch import save_file

from dmvae.inputs import Inputs, describe_latents
from dmvae.references import ReferenceConfig
from dmvae.references.features import FeaturesReference
from dmvae.training.contract import Batch, Networks, Update
from dmvae.training.flow import FlowTraining, flow_update
from dmvae.training.random import Random

NAME = "reference"
READS = ("tokenizer",)
USES = ("autoencoder", "latents.dtype")

MAP_POINTS = 2000


@dataclass(frozen=True, kw_only=True)
class ReferenceTraining(FlowTraining):
    """The reference distribution and the training of its teacher."""

    distribution: ReferenceConfig = field(default_factory=FeaturesReference)
    """The distribution that latents shall have, by `type`."""
    ema: float = 0.999
    """Decay of the averaged weights that are saved."""


def build(config: ReferenceTraining, inputs: Inputs) -> Networks:
    reference = config.distribution.build(inputs)
    inputs.out.mkdir(parents=True, exist_ok=True)
    save_file({"mean": reference.mean, "std": reference.std}, inputs.out / "normalisation.safetensors")
    z, labels = reference.sample(MAP_POINTS, Random(inputs.recipe.seed, NAME, "map"))
    save_file({"latents": z.contiguous(), "labels": labels}, inputs.out / "map.safetensors")
    if reference.velocity is not None:
        return Networks({})
    teacher = config.model.build(describe_latents(inputs.recipe), inputs.num_classes)
    return Networks(
        {"teacher": teacher},
        trains={"teacher": [p for p in teacher.parameters() if p.requires_grad]},
        averaged=("teacher",),
        extra={"reference": reference, "config": config},
    )


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    z, labels = networks.reference.sample(len(batch.labels), rng)
    device = batch.labels.device
    yield flow_update("teacher", networks.teacher, z.to(device), labels.to(device), networks.config, rng)
