"""Stage `matching`: the latents move towards the reference while they go on reconstructing.

Every step, the student learns the latents as they are; every `student_steps`-th, the tokenizer takes a
turn too. Only those turns run the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.evaluation.latents import effective_rank
from dmvae.evaluation.online import online_proxies
from dmvae.flow.guidance import Velocity
from dmvae.losses.pull import Pull
from dmvae.matching import Context, Matching
from dmvae.matching.dmd import DMD
from dmvae.models.velocity import VelocityModel
from dmvae.references import Reference
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import DecoderNetworks, DecoderStage, discriminate, reconstruct
from dmvae.stages.reference import ReferenceTraining
from dmvae.training.flow import FlowTraining
from dmvae.training.stage import Batch, Update, stage


@dataclass(frozen=True, kw_only=True)
class MatchingTraining(FlowTraining):
    """Distribution matching. The student has its teacher's architecture; `model` is the student's where
    the reference has a closed form and so no teacher network. An objective may bring another network instead."""

    objective: Matching = field(default_factory=DMD)
    """The matching objective, by `type`."""
    weight: float = 10.0
    """lambda, the weight of the matching loss."""
    balance: Literal["fixed", "gradient"] = "fixed"
    """"fixed": loss = reconstruction + lambda * matching, as in the paper. "gradient": lambda is the ratio of
    the matching gradient's norm to the reconstruction gradient's, at the latents."""
    student_steps: int = 5
    """Student updates per tokenizer update."""
    student_warmup: int = 0
    """First steps in which only the student moves."""
    student_learning_rate: float | None = None
    """The student's learning rate; null is the stage's."""
    train_encoder: bool = True
    """Let the encoder move, not only the bottleneck and the decoder."""
    health_every: int = 50
    """Tokenizer turns between measurements of the latents' rank and spread."""
    proxy_every: int = 10
    """Tokenizer turns between measurements of the proxies of gFD (proxy/...), about 1 % of the time; 0 is never."""
    ema: float = 0.99
    """Decay of the averaged tokenizer that is saved, per tokenizer update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require_positive(self, "student_steps", "health_every")


class MatchingNetworks(DecoderNetworks):
    student: nn.Module | None
    teacher: Velocity | None
    """The reference's velocity: a frozen network, or a function in closed form; None where it is not needed."""


@stage("matching")
class MatchingStage(DecoderStage[MatchingTraining, MatchingNetworks]):
    Config = MatchingTraining
    reads = ("tokenizer", "reference")
    needs = ("reference",)
    uses = ("autoencoder", "losses")

    @cached_property
    def reference(self) -> Reference:
        """The reference, opened in the folder of its own stage, where it finds what it made there."""
        inside = replace(self.inputs, out=self.inputs.reads["reference"])
        return self._reference_config.distribution.build(inside)

    @cached_property
    def _reference_config(self) -> ReferenceTraining:
        return configs.read(ReferenceTraining, self.inputs.config_of("reference"), "reference")

    def _closed_form(self) -> Velocity | None:
        """The reference's own velocity; None in a dry run, which opens no reference."""
        return self.reference.velocity if self.inputs.weights else None

    def build(self) -> MatchingNetworks:
        config, inputs = self.config, self.inputs
        if not config.train_encoder and inputs.shape.latent_channels is None:
            raise ValueError(
                "matching.train_encoder: a frozen encoder without a bottleneck has nothing that could be matched; "
                "set train_encoder: true or give autoencoder.latent_channels"
            )
        networks = MatchingNetworks(inputs.autoencoder())
        autoencoder = networks.autoencoder
        autoencoder.encoder.requires_grad_(config.train_encoder)
        normalisation = inputs.tensors("reference", "normalisation.safetensors")
        autoencoder.latent_mean.copy_(normalisation["mean"])
        autoencoder.latent_std.copy_(normalisation["std"])
        teacher = inputs.generator("reference", "teacher") if inputs.has("reference", "teacher") else None
        assert teacher is None or isinstance(teacher, VelocityModel)
        networks.teacher = teacher if teacher is not None else self._closed_form()
        networks.student = config.objective.new_student(
            inputs.latent_shape, inputs.num_classes, networks.teacher, config.model
        )
        if teacher is not None:
            teacher.requires_grad_(False)
        networks.trains["tokenizer"] = [p for p in autoencoder.parameters() if p.requires_grad]
        if networks.student is not None:
            networks.trains["student"] = [p for p in networks.student.parameters() if p.requires_grad]
        if config.student_learning_rate is not None:
            networks.learning_rates["student"] = config.student_learning_rate
        networks.add_losses(inputs, inputs.discriminator())
        return networks

    def updates(self, networks: MatchingNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        config = self.config
        turn, off = divmod(batch.step - config.student_warmup, config.student_steps)
        tokenizer_turn = turn >= 0 and off == 0
        with torch.set_grad_enabled(tokenizer_turn):
            raw = networks.autoencoder.encode(batch.data).latents
        latents = networks.autoencoder.normalize(raw.detach().float())
        context = Context(
            rng,
            self.inputs.num_classes,
            batch.step / batch.steps,
            self.reference if config.objective.needs_reference else None,
            config.label_dropout,
            config.time_distribution,
        )
        if tokenizer_turn:
            yield from self._tokenizer_turns(networks, batch, raw, latents, context, turn)
        if networks.student is not None:
            loss, log = config.objective.student_loss(networks.student, latents, batch.labels, context)
            yield Update("student", loss, log)

    def _tokenizer_turns(
        self, networks: MatchingNetworks, batch: Batch, raw: Tensor, latents: Tensor, context: Context, turn: int
    ) -> Iterator[Update]:
        config, model = self.config, networks.autoencoder
        z = latents.requires_grad_()
        matching, log = config.objective.loss(z, batch.labels, networks.teacher, networks.student, context)
        if matching.ndim:
            shape = list(matching.shape)
            raise ValueError(f"matching.objective: {config.objective.type!r} gives a loss of shape {shape}, no scalar")
        (pull,) = torch.autograd.grad(matching, z)
        z.requires_grad_(False)
        late: dict[str, Tensor | float] = {}
        std = model.latent_std.view(1, -1, 1, 1)
        joined = Pull.apply(raw, pull / std, config.weight, config.balance == "gradient", late)
        recon = model.decode(joined).sample
        loss, terms = reconstruct(networks, self.losses, batch.data, recon, context.rng)
        log |= terms | {"matching/loss": matching.detach()}
        if turn % config.health_every == 0:
            log |= {
                "health/effective_rank": effective_rank(latents),
                "health/std": latents.std(dim=(0, 2, 3)).mean(),
                "health/mean": latents.mean(dim=(0, 2, 3)).abs().mean(),
            }
        if config.proxy_every > 0 and turn % config.proxy_every == 0:
            log |= online_proxies(latents, batch.labels, lambda z: model.decode(model.denormalize(z)).sample)
        yield Update("tokenizer", loss, log, terms["reconstruction/total"], late)
        if networks.discriminator is not None:
            yield discriminate(networks.discriminator, self.losses.adversarial, batch.data, recon, context.rng)
