"""Stage `generator`: a new generator on the tokenizer's latents. The quality of its samples shows how easily the latent
distribution is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dmvae.flow.loss import drop_labels
from dmvae.generators import Generator, GeneratorConfig
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet, MirroredSet
from dmvae.models.velocity import VelocityModel
from dmvae.runtime.random import Random
from dmvae.stages.latents import MIRRORED
from dmvae.training.flow import LatentTraining
from dmvae.training.stage import Batch, Networks, TrainingStage, Update, stage


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining(LatentTraining):
    """Training of the generator."""

    model: GeneratorConfig = field(default_factory=FlowModelConfig)
    """The generator, by `type`."""


class GeneratorNetworks(Networks):
    generator: Generator


@stage("generator")
class GeneratorStage(TrainingStage[GeneratorTraining, GeneratorNetworks]):
    Config = GeneratorTraining
    reads = ("latents",)
    flips = False
    takes_parts = True

    def build(self) -> GeneratorNetworks:
        networks = GeneratorNetworks()
        networks.generator = self.config.model.build(self.inputs.latent_shape, self.inputs.num_classes)
        networks.trains["generator"] = [p for p in networks.generator.parameters() if p.requires_grad]
        networks.averaged = ("generator",)
        if isinstance(networks.generator, VelocityModel):
            networks.generator.time_distribution = self.config.time_distribution
            networks.generator.time_shift = self.config.time_shift
        return networks

    def data(self) -> LatentSet:
        folder = self.inputs.reads["latents"]
        plain, mirrored = LatentSet(folder / "latents", posteriors=True), folder / MIRRORED
        return MirroredSet(plain, LatentSet(mirrored, posteriors=True)) if mirrored.exists() else plain

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.inputs.latent_shape

    def updates(self, networks: GeneratorNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        z = batch.data
        if z.shape[1] != self.inputs.latent_shape[0]:  # posteriors: a new sample in each epoch
            mean, std = z.chunk(2, dim=1)
            z = mean + std * rng.normal(*mean.shape)
        labels = drop_labels(batch.labels, self.config.label_dropout, self.inputs.num_classes, rng)
        yield Update("generator", networks.generator.loss(z, labels, rng))

    @classmethod
    def problems(cls, config: GeneratorTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        flow = issubclass(config.model.network, VelocityModel)
        for name, usual in (("time_distribution", "uniform"), ("time_shift", 1.0)):
            if getattr(config, name) != usual and not flow:
                yield f"generator.{name}: {config.model.type!r} is no flow and draws no times; leave it out"
