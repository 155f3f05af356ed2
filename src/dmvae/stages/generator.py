"""Stage `generator`: a new generator on the tokenizer's latents. The quality of its samples shows how easy it is to
learn their distribution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.datasets import Items
from dmvae.datasets.mixed import balanced
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.encoders import require_features, require_stride
from dmvae.evaluation.features import CHUNK, Extractor, extractor_of
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.images import DatasetImages
from dmvae.flow.loss import drop_labels
from dmvae.flow.samplers import Sampling
from dmvae.generators import Generator, GeneratorConfig
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Inputs
from dmvae.latents.store import BothWays, LatentSet, MirroredSet, labels_of
from dmvae.losses.tokens import TokenAlignment, away, depth_of
from dmvae.models.base import Model, Tokenizer
from dmvae.models.dit import DiffusionTransformer
from dmvae.models.projector import Projector
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import Weight
from dmvae.registry import require_members
from dmvae.runtime.random import Random
from dmvae.sections import Sections
from dmvae.stages.latents import MIRRORED
from dmvae.training.flow import LatentTraining, as_taught, held_out_loss
from dmvae.training.pictures import COLUMNS
from dmvae.training.stage import Batch, Networks, TrainingStage, Update, stage
from dmvae.training.starting import ALIGNMENT, Starting, misfits, start
from dmvae.training.watching import HELD_OUT

ROWS, STEPS = 4, 25
"""Of the pictures in the log: samples per class, and the most steps of the sampler."""
AT_ONCE = 100
"""Samples in a batch that are drawn to be measured."""


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining(Starting, LatentTraining):
    """Training of the generator."""

    model: GeneratorConfig = field(default_factory=FlowModelConfig)
    """The generator, by `type`."""
    direction: Weight = configs.added(0.0)
    """Weight of the mean of 1 - cos(v, z - noise), over the channels, added to a flow model's loss, as in FasterDiT
    (arXiv 2410.10356); LightningDiT takes 1."""
    alignment: TokenAlignment | None = configs.added(None)
    """Alignment of the generator's tokens to an encoder's features of the images, as in REPA; null is off."""


class GeneratorNetworks(Networks):
    generator: Generator
    tokenizer: Tokenizer
    """The frozen tokenizer that encodes each batch, where the stage does not read stored latents."""
    target: nn.Module
    """The frozen encoder that tokens are aligned to, where there is an alignment."""
    projector: Projector
    """From tokens to its features."""
    depth: int
    """Blocks behind which tokens are taken."""


@stage("generator")
class GeneratorStage(TrainingStage[GeneratorTraining, GeneratorNetworks]):
    Config = GeneratorTraining
    reads = ("latents",)
    takes_parts = True
    prolongs = True
    shows = "generator"
    measured = "generator"
    of_latents = True

    @classmethod
    def reads_of(cls, config: GeneratorTraining) -> tuple[str, ...]:
        return (*cls.reads, "tokenizer") if config.start_from == ALIGNMENT else cls.reads

    def build(self) -> GeneratorNetworks:
        networks, model = GeneratorNetworks(), self.config.model
        networks.generator = model.build(self.inputs.latent_shape, self.inputs.num_classes)
        if not (isinstance(networks.generator, model.network) and issubclass(model.network, Model)):
            raise ValueError(
                f"generator.model: {model.type!r}: build returned a {type(networks.generator).__name__}; give what its "
                f"`network` names, {model.network.__name__}, a dmvae.models.base.Model"
            )
        require_members(model, networks.generator, ("loss", "sample"), "generator.model: ")
        start(networks.generator, self.config, model, self.name, self.inputs)
        networks.trains["generator"] = [p for p in networks.generator.parameters() if p.requires_grad]
        networks.averaged = ("generator",)
        if isinstance(networks.generator, VelocityModel):
            networks.generator.times = self.config.times
        if self.encodes:
            networks.tokenizer = self.inputs.encoding_tokenizer().requires_grad_(False).eval()
        if self.config.alignment is not None:
            self._align(networks, self.config.alignment)
        return networks

    def _align(self, networks: GeneratorNetworks, alignment: TokenAlignment) -> None:
        inputs, generator, place = self.inputs, networks.generator, "generator.alignment"
        assert isinstance(generator, DiffusionTransformer)  # see problems
        encoder = inputs.frozen_encoder(alignment.target)
        stride = inputs.data.size // inputs.latent_shape[-1]
        require_stride(encoder, stride, generator.config.patch_size, f"{place}.target")
        require_features(encoder, f"{place}.target", size=inputs.data.size, channels=inputs.data.channels)
        networks.depth = depth_of(alignment.depth, generator, f"{place}.depth")
        networks.target = encoder
        networks.projector = Projector(width=generator.config.width, hidden=alignment.width, out=encoder.channels)
        networks.trains["generator"] += list(networks.projector.parameters())

    @property
    def encodes(self) -> bool:
        """Whether its batches are images, which it encodes itself. With `latents.stored` only some latents are stored,
        for statistics and not for training."""
        return self.inputs.sections.latents.stored is not None

    def data(self) -> Items:
        return self.inputs.train_set if self.encodes else self._stored

    @cached_property
    def _stored(self) -> LatentSet:
        folder = self.inputs.reads["latents"]
        plain, mirrored = LatentSet(folder / "latents", posteriors=True), folder / MIRRORED
        return MirroredSet(plain, LatentSet(mirrored, posteriors=True)) if mirrored.exists() else plain

    @classmethod
    def items(cls, sections: Sections, images: int) -> int:
        return images * (1 + sections.latents.mirrored)

    @property
    def sees_images(self) -> bool:
        return self.config.alignment is not None and not self.encodes

    def images(self) -> Items:
        images, mirrored = self.inputs.train_set, self.inputs.has("latents", MIRRORED)
        return BothWays(images) if mirrored else images

    @property
    def item_shape(self) -> tuple[int, ...]:
        return super().item_shape if self.encodes else self.inputs.latent_shape

    def _latents(self, networks: GeneratorNetworks, batch: Batch, rng: Random) -> Tensor:
        """The batch's latents [n, C, H, W], normalised; where they are drawn, a new sample each time. Edited latents
        are decided by the image alone, as stored ones are: random draws would differ between ranks."""
        if self.encodes:
            tokenizer = networks.tokenizer
            with torch.no_grad():
                encoded = tokenizer.encode(batch.data, rng if tokenizer.drawn else None)
                return tokenizer.normalize(encoded.latents.float())
        if batch.data.shape[1] == self.inputs.latent_shape[0]:
            return batch.data
        mean, std = batch.data.chunk(2, dim=1)  # of posteriors
        return self._stored.whiten(mean + std * rng.normal(*mean.shape))

    def updates(self, networks: GeneratorNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        z = self._latents(networks, batch, rng)
        labels = drop_labels(batch.labels, self.config.label_dropout, self.inputs.num_classes, rng)
        alignment, direction, generator = self.config.alignment, self.config.direction, networks.generator
        if alignment is None and direction == 0:
            yield Update("generator", generator.loss(z, labels, rng))
            return
        assert isinstance(generator, VelocityModel)  # see problems
        found = generator.at_random_times(z, labels, rng, networks.depth if alignment is not None else None)
        loss = flow = found.flow
        log: dict[str, Tensor | float] = {}
        if direction > 0:
            turned = found.direction
            log["generator/direction"] = turned.detach()
            loss = loss + direction * turned
        if alignment is not None:
            images = batch.data if self.encodes else batch.images
            with torch.no_grad():
                features = networks.target(images).float()
            apart = away(networks.projector(found.tokens), features)
            log["alignment/cosine"] = apart.detach()
            loss = loss + alignment.weight * apart
        # Tables and curves compare generators by their flow loss, whatever else is in their loss.
        yield Update("generator", loss, log, flow.detach())

    def picture(self, network: nn.Module) -> Tensor:
        """Samples, uint8 [ROWS, COLUMNS, c, h, w], a class per column, evenly spaced among the known ones; with at most
        STEPS steps."""
        settings, known = self._sampling, self._known
        method = "euler" if settings.method == "dopri5" else settings.method  # which may need more steps to arrive
        settings = replace(settings, method=method, steps=min(settings.steps, STEPS))
        labels = known[torch.linspace(0, len(known) - 1, COLUMNS).round().long()].repeat(ROWS)
        images = self._drawn(network, labels, settings, "picture").cpu()
        return images.view(ROWS, COLUMNS, *images.shape[1:])

    def measure(self, network: nn.Module) -> dict[str, float]:
        """The loss on latents of test images, as the stage `evaluate` has it of all; and, where `run.measure_samples`
        asks for it, the Frechet distance of so many samples, of each class the same number, to as many test images."""
        found = {"loss": held_out_loss(cast(Generator, network), *self._held_out, self.inputs.device)}
        if count := self.inputs.sections.run.measure_samples:
            extractor, real = self._judged
            parts = self._known[balanced(count, len(self._known))].split(AT_ONCE)
            drawn = (self._drawn(network, part, self._sampling, "measure", i) for i, part in enumerate(parts))
            found["gfd"] = frechet_distance(real, Statistics.of(map(extractor, drawn)))
        return found

    @cached_property
    def _known(self) -> Tensor:
        """The classes of the latents that it learns, ascending."""
        known: Tensor = labels_of(self.inputs.reads["latents"] / "latents").unique()
        return known

    @property
    def _sampling(self) -> Sampling:
        """Settings of the stage `sample` at its first scale; without guidance where it has a `guide`."""
        asked = getattr(self.inputs.sections, "sample", None)
        scale = asked.guidance[0] if asked is not None and asked.guide is None else 1.0
        return Sampling() if asked is None else asked.settings(scale)

    def _drawn(self, network: nn.Module, labels: Tensor, settings: Sampling, *key: object) -> Tensor:
        """Samples of these classes, uint8 [n, c, h, w] on the device; the same noise each time for the same key."""
        inputs, tokenizer = self.inputs, self._tokenizer
        rng = Random.alone(inputs.seed, self.name, *key, device=inputs.device)

        def normal() -> Tensor:
            return rng.normal(len(labels), *inputs.latent_shape)

        taught = as_taught(labels, self.config.label_dropout, inputs.num_classes).to(inputs.device)
        z = cast(Generator, network).sample(normal(), taught, settings, normal)
        return to_uint8(tokenizer.decode(tokenizer.denormalize(z)).sample)

    @cached_property
    def _judged(self) -> tuple[Extractor, Statistics]:
        """(the network of `evaluate.features`, the statistics of its features of test images)."""
        inputs = self.inputs
        evaluate = vars(inputs.sections)["evaluate"]  # see problems
        extractor = extractor_of(evaluate.features).to(inputs.device)
        some = DatasetImages(inputs.test_set, inputs.sections.run.measure_samples, inputs.sections.run.workers)
        return extractor, Statistics.of(map(extractor, some.batches(range(len(some)), AT_ONCE)))

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        """(latents [n, C, H, W], normalised, labels [n]) of n test images, on the CPU."""
        inputs, some = self.inputs, DatasetImages(self.inputs.test_set, HELD_OUT, self.inputs.sections.run.workers)
        tokenizer = self._tokenizer
        batches = some.batches(range(len(some)), CHUNK)
        raw = (tokenizer.encode(as_input(images, inputs.device)).latents.float() for images in batches)
        assert some.labels is not None
        labels = as_taught(some.labels, self.config.label_dropout, inputs.num_classes)
        return torch.cat([tokenizer.normalize(z).cpu() for z in raw]), labels

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """What decodes the latents that it learns."""
        return self.inputs.encoding_tokenizer().to(self.inputs.device).eval()

    @classmethod
    def problems(cls, config: GeneratorTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        yield from misfits(config, config.model, cls.name, inputs, others)
        if config.start_from == ALIGNMENT and inputs.sections.latents.whitening != 0:
            yield "generator.start_from: alignment's flow model saw no whitened latents; set latents.whitening to 0"
        if inputs.sections.run.measure_samples and getattr(inputs.sections, "evaluate", None) is None:
            yield "run.measure_samples: they are compared in evaluate.features; give a section evaluate, or set it to 0"
        flow = issubclass(config.model.network, VelocityModel)
        if config.alignment is not None and not issubclass(config.model.network, DiffusionTransformer):
            yield f"generator.alignment: {config.model.type!r} has no tokens to align; set it to null"
        if config.alignment is not None and config.alignment.target.starts_random:
            yield (
                f"generator.alignment.target: {config.alignment.target.type!r} would be random; give an encoder with "
                "public weights (type: timm)"
            )
        if config.alignment is not None and (told := config.alignment.target.absent()):
            yield f"generator.alignment.target: {told}"
        if config.alignment is not None and inputs.data.are_latents:
            yield "generator.alignment: it looks at training images, and data.type: latents has none; set it to null"
        usual = {"time_distribution": "uniform", "time_mean": 0.0, "time_std": 1.0, "time_shift": 1.0, "direction": 0.0}
        for name, value in usual.items():
            if getattr(config, name) != value and not flow:
                yield f"generator.{name}: {config.model.type!r} is no flow; leave it out"
        if config.direction > 0 and inputs.latent_shape[0] == 1:
            yield "generator.direction: latents of one channel have no direction but their sign; leave it out"
