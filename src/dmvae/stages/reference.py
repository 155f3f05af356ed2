"""Stage `reference`: the teacher, a flow model of the reference distribution.

A reference whose velocity has a closed form needs none; its stage then only records how latents are
normalised. Before any training it says how far the reference is from the latents as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from dmvae.inputs import Inputs, describe_latents
from dmvae.references import Reference, ReferenceConfig
from dmvae.references.data import initial_latents
from dmvae.references.features import FeaturesReference
from dmvae.references.report import compare
from dmvae.runtime import distributed
from dmvae.runtime.files import write_tensors
from dmvae.runtime.random import Random
from dmvae.training.contract import Batch, Networks, Update
from dmvae.training.flow import FlowTraining, flow_update

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
    # What a reference makes is made once, and then found: the teacher's first weights must not depend on that.
    with torch.random.fork_rng(devices=[]):
        reference = config.distribution.build(inputs)
        _record(reference, inputs)
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
    z, labels = networks.reference.sample(len(batch.labels), rng.on_cpu())
    device = batch.labels.device
    yield flow_update("teacher", networks.teacher, z.to(device), labels.to(device), networks.config, rng)


def _record(reference: Reference, inputs: Inputs) -> None:
    """Write how latents are normalised and some samples, and say how the reference and the latents compare."""
    z, labels = reference.sample(MAP_POINTS, Random(inputs.recipe.seed, NAME, "map"))
    initial = initial_latents(inputs)
    if not distributed.is_main():
        return
    inputs.out.mkdir(parents=True, exist_ok=True)
    write_tensors(inputs.out / "normalisation.safetensors", {"mean": reference.mean, "std": reference.std})
    write_tensors(inputs.out / "map.safetensors", {"latents": z.contiguous(), "labels": labels})
    raw = initial.__getitems__(range(min(MAP_POINTS, len(initial))))[0] * _column(initial.std) + _column(initial.mean)
    report = compare(z, (raw - _column(reference.mean)) / _column(reference.std))
    (inputs.out / "report.json").write_text(json.dumps(asdict(report), indent=1))
    for line in report.lines():
        inputs.say(line)


def _column(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1)
