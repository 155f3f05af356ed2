"""Stage `reference`: the teacher, a flow model of the reference distribution.

A reference whose velocity has a closed form needs no teacher; then the stage only records how latents are normalised.
Before it trains, the stage prints how far the reference is from the initial latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.datasets.mixed import fair_order
from dmvae.flow.guidance import Velocity
from dmvae.flow.path import unlike
from dmvae.inputs import Inputs
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import Decay, Wait
from dmvae.references import Reference, ReferenceConfig, draw, require_repeated
from dmvae.references.data import initial_latents
from dmvae.references.features import FeaturesReference
from dmvae.references.report import REPORT, compare
from dmvae.registry import is_ours, place_of
from dmvae.runtime import distributed
from dmvae.runtime.files import write_tensors, write_text
from dmvae.runtime.random import Random
from dmvae.runtime.words import counted
from dmvae.stages.approach import RECENT, REST
from dmvae.training.flow import FlowTraining, as_taught, flow_loss, held_out_loss
from dmvae.training.stage import Batch, Networks, TrainingStage, Update, stage
from dmvae.training.starting import Starting, misfits, start
from dmvae.training.watching import HELD_OUT
from dmvae.transport.arrival import multiples

MAP_POINTS = 2000  # samples that the report's map shows
TRIED = 8  # samples that are drawn to check a reference


@dataclass(frozen=True, kw_only=True)
class ReferenceTraining(Starting, FlowTraining):
    """The reference distribution and the training of its teacher."""

    distribution: ReferenceConfig = field(default_factory=FeaturesReference)
    """The distribution that latents should have, by `type`."""
    steps: Wait = 0
    """The teacher's training steps, for a reference that has one; 0 leaves the weights of `start_from` as they are."""
    teacher: bool = configs.added(True)
    """Train the teacher; false for a matching objective that needs none."""
    drawn: bool = configs.added(False)
    """Normalise latents by samples of the tokenizer's posteriors, not by the means. `matching.noise: posterior`, which
    matches samples, sets it."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are saved."""

    @property
    def trains(self) -> bool:
        """Whether a network is trained, as the reference has no velocity in closed form."""
        return self.teacher and not self.distribution.closed_form


class ReferenceNetworks(Networks):
    teacher: VelocityModel


@stage("reference")
class ReferenceStage(TrainingStage[ReferenceTraining, ReferenceNetworks]):
    Config = ReferenceTraining
    reads = ("tokenizer",)
    uses = ("autoencoder", "pretrained", "latents.dtype")
    draws = True
    takes_parts = True
    prolongs = True
    measured = "teacher"

    @cached_property
    def reference(self) -> Reference:
        return build_reference(self.config, self._before)

    @cached_property
    def _before(self) -> Inputs:
        return replace(self.inputs, drawn=self.config.drawn) if self.inputs.weights else self.inputs

    def prepare(self) -> None:
        """Write the normalisation of latents and some samples; print how reference and latents compare. Raises
        ValueError for a reference of the wrong form."""
        inputs, reference = self.inputs, self.reference
        name = self.config.distribution.type
        require_form(name, reference, inputs.latent_shape[0])
        found = reference.sample(MAP_POINTS, Random.alone(inputs.seed, self.name, "map"))
        z, labels = require_samples(name, found, MAP_POINTS, inputs)
        require_velocity(self.config.distribution, reference, z[:TRIED], labels[:TRIED])
        initial = initial_latents(self._before)
        beside = draw(reference, 2 * RECENT + REST, Random.alone(inputs.seed, self.name, "before"), z.device)[0]
        if not distributed.is_main():
            return
        inputs.out.mkdir(parents=True, exist_ok=True)
        write_tensors(inputs.out / "normalisation.safetensors", {"mean": reference.mean, "std": reference.std})
        write_tensors(inputs.out / "map.safetensors", {"latents": z.contiguous(), "labels": labels})
        some = initial.__getitems__(fair_order(initial.labels)[:MAP_POINTS])[0]
        raw = some * _column(initial.std) + _column(initial.mean)
        z0 = (raw - _column(reference.mean)) / _column(reference.std)
        report = compare(z, z0)
        known = asdict(report)
        if len(z0) >= RECENT:  # the figures that matching logs
            known["before"] = multiples(z0[:RECENT], beside, Random.alone(inputs.seed, self.name, "told").shared)
        write_text(inputs.out / REPORT, json.dumps(known, indent=1))
        for line in report.lines():
            inputs.say(line)

    def build(self) -> ReferenceNetworks:
        networks = ReferenceNetworks()
        if self.config.teacher and self.reference.velocity is None:
            networks.teacher = self.config.model.build(self.inputs.latent_shape, self.inputs.num_classes)
            start(networks.teacher, self.config, self.config.model, self.name, self.inputs)
            networks.trains["teacher"] = [p for p in networks.teacher.parameters() if p.requires_grad]
            networks.averaged = ("teacher",)
        return networks

    def updates(self, networks: ReferenceNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        z, labels = draw(self.reference, len(batch.labels), rng, batch.labels.device)
        yield Update("teacher", flow_loss(networks.teacher, z, labels, self.config, rng))

    def measure(self, network: nn.Module) -> dict[str, float]:
        """The flow loss on samples of the reference that are drawn for this alone."""
        device = self.inputs.device
        z, labels = draw(self.reference, HELD_OUT, Random.alone(self.inputs.seed, self.name, "measure"), device)
        labels = as_taught(labels, self.config.label_dropout, self.inputs.num_classes)
        return {"loss": held_out_loss(cast(VelocityModel, network), z, labels, device)}

    @classmethod
    def problems(cls, config: ReferenceTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        try:
            config.distribution.check(inputs)
        except ValueError as error:
            yield f"reference.distribution: {error}"
            return
        try:
            if not is_ours(type(config.distribution)):
                _try(config.distribution, inputs)
        except ValueError as error:
            yield f"{error}{place_of(error)}"
        if config.trains:
            yield from misfits(config, config.model, cls.name, inputs, others)
        elif config.start_from is not None:
            yield "reference.start_from: no teacher is trained here; leave it out"


class Later(Exception):
    """Raised on access to what exists only after stages have run."""


class Beforehand:
    """The part of `Surroundings` that is known before any stage has run; the rest raises `Later`."""

    out: Path

    def __init__(self, inputs: Inputs) -> None:
        self.latent_shape, self.num_classes = inputs.latent_shape, inputs.num_classes
        self.seed, self.device, self.data = inputs.seed, inputs.device, inputs.data

    def __getattr__(self, name: str) -> NoReturn:
        raise Later(name)


def _try(config: ReferenceConfig, inputs: Inputs) -> None:
    """Raise ValueError for a distribution whose `build` returns no reference, or whose samples are no latents. One that
    needs images or the tokenizer is checked when its stage runs."""
    with suppress(Later):
        reference = config.build(Beforehand(inputs))
        require_form(config.type, reference, inputs.latent_shape[0])
        found = reference.sample(TRIED, Random.alone(inputs.seed, "tried"))
        require_velocity(config, reference, *require_samples(config.type, found, TRIED, inputs))
        require_repeated(f"reference.distribution: {config.type!r}", lambda rng: reference.sample(TRIED, rng))


def open_reference(inputs: Inputs) -> Reference:
    """The reference of the finished stage `reference`. It is built in that stage's folder, where its files are."""
    return build_reference(
        config_of(inputs), inputs if not inputs.weights else replace(inputs, out=inputs.reads["reference"])
    )


def config_of(inputs: Inputs) -> ReferenceTraining:
    """The config of that stage."""
    return configs.read(ReferenceTraining, inputs.config_of("reference"), "reference")


def build_reference(config: ReferenceTraining, inputs: Inputs) -> Reference:
    """The reference; in a dry run, which has no data, an `Unopened` one."""
    return config.distribution.build(inputs) if inputs.weights else Unopened(config.distribution, inputs)


class Unopened:
    """A reference whose samples are noise of the right shape, on which a dry run counts memory and arithmetic."""

    velocity: Velocity | None

    def __init__(self, config: ReferenceConfig, inputs: Inputs) -> None:
        self.inputs = inputs
        self.mean, self.std = torch.zeros(inputs.latent_shape[0]), torch.ones(inputs.latent_shape[0])
        self.velocity = (lambda z_t, t, labels: z_t.clone()) if config.closed_form else None

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        return rng.normal(n, *self.inputs.latent_shape), rng.integers(self.inputs.num_classes, n)


def require_form(name: str, reference: object, channels: int) -> None:
    """Raise ValueError unless what the `build` of the distribution `name` returned is a `Reference` for latents of
    `channels` channels."""
    what = f"reference.distribution: {name!r} returned"
    sample = getattr(reference, "sample", None)
    if not callable(sample):
        raise ValueError(
            f"{what} a {type(reference).__name__}, which has no `sample`; CONTRIBUTING.md shows a reference"
        )
    try:
        signature(sample).bind(1, None)
    except TypeError as error:
        raise ValueError(
            f"{what} a reference whose `sample` cannot be called as sample(n, rng): {error}; define it so"
        ) from error
    if not hasattr(reference, "velocity"):
        raise ValueError(f"{what} a reference without `velocity`; set it to None, or to its closed form")
    for part in ("mean", "std"):
        value = getattr(reference, part, None)
        if not isinstance(value, Tensor) or value.shape != (channels,) or value.dtype != torch.float32:
            shown = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{what} a reference whose `{part}` is {shown}; give a float32 tensor [{channels}]")
        if not value.isfinite().all() or (part == "std" and not (value > 0).all()):
            rule = "finite and above 0" if part == "std" else "finite"
            raise ValueError(f"{what} a reference whose `{part}` is {value.tolist()[:8]}; all of it has to be {rule}")


def require_samples(name: str, found: object, n: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """`found` as (samples [n, C, H, W], labels [n]). Raises ValueError unless it is n finite float32 samples of the
    latents' shape, with int64 labels of the data's classes."""
    shape, what = inputs.latent_shape, f"reference.distribution: {name!r} returned"
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, Tensor) for x in found)):
        told = [type(x).__name__ for x in found] if isinstance(found, tuple) else type(found).__name__
        raise ValueError(f"{what} {told}; give two tensors, latents and labels")
    z, labels = found
    if labels.ndim != 1 or z.shape != (len(labels), *shape) or z.dtype != torch.float32:
        raise ValueError(
            f"{what} samples {list(z.shape)} ({z.dtype}) and labels {list(labels.shape)}; give float32 latents "
            f"[n, {', '.join(map(str, shape))}] and labels [n]"
        )
    if not z.isfinite().all():
        raise ValueError(f"{what} samples that are not finite: {counted(int((~z.isfinite()).sum()), 'value')}")
    if len(z) != n:
        raise ValueError(f"{what} {len(z)} samples, where {n} were asked for")
    if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < inputs.num_classes:
        raise ValueError(
            f"{what} labels from {labels.min().item():g} to {labels.max().item():g} ({labels.dtype}); the data has "
            f"classes 0 to {inputs.num_classes - 1}, int64"
        )
    return z, labels


def require_velocity(config: ReferenceConfig, reference: Reference, z: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless config and reference agree whether there is a velocity in closed form, and it gives one
    for latents z [n, C, H, W] at t = 0.5."""
    what, velocity = f"reference.distribution: {config.type!r}", reference.velocity
    if (velocity is not None) != config.closed_form:
        raise ValueError(
            f"{what} has {'no' if velocity is None else 'a'} velocity, and its closed_form, by which training is "
            f"planned, is {config.closed_form}; let the two agree"
        )
    if velocity is not None and (told := unlike(velocity(z, torch.full((len(z),), 0.5), labels), z)):
        raise ValueError(f"{what} has a velocity that gives {told}; give velocities {list(z.shape)} of such latents")


def _column(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1)
