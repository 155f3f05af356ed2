"""Stage `matching`: the latents move towards the reference while they go on reconstructing.

Every step, the student learns the latents as they are; every `student_steps`-th, the tokenizer takes a
turn too. Only those turns run the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmvae import config as configs
from dmvae.evaluation.latents import effective_rank
from dmvae.evaluation.online import online_proxies
from dmvae.inputs import Inputs, describe_latents
from dmvae.losses.objective import add_objective, discriminate, new_discriminator, reconstruct
from dmvae.losses.pull import Pull
from dmvae.matching import BringsStudent, MatchingConfig
from dmvae.matching.dmd import DMDConfig
from dmvae.models.dit import LightningDiT
from dmvae.references import Reference
from dmvae.runtime.random import Random
from dmvae.training.contract import Batch, Networks, Update
from dmvae.training.flow import FlowTraining, flow_update

NAME = "matching"
READS = ("tokenizer", "reference")
USES = ("autoencoder", "losses")


@dataclass(frozen=True, kw_only=True)
class MatchingTraining(FlowTraining):
    """Distribution matching. The student has its teacher's architecture; `model` is the student's where
    the reference has a closed form and so no teacher network. An objective may bring another network instead."""

    objective: MatchingConfig = field(default_factory=DMDConfig)
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


def build(config: MatchingTraining, inputs: Inputs) -> Networks:
    assert inputs.recipe.autoencoder is not None
    if not config.train_encoder and inputs.recipe.autoencoder.latent_channels is None:
        raise ValueError(
            "matching.train_encoder: a frozen encoder without a bottleneck has nothing that could be matched; "
            "set train_encoder: true or give autoencoder.latent_channels"
        )
    autoencoder = inputs.autoencoder()
    autoencoder.encoder.requires_grad_(config.train_encoder)
    normalisation = load_file(inputs.reads["reference"] / "normalisation.safetensors")
    autoencoder.latent_mean.copy_(normalisation["mean"])
    autoencoder.latent_std.copy_(normalisation["std"])
    modules: dict[str, Any] = {"autoencoder": autoencoder}
    extra: dict[str, Any] = {"config": config, "dataset": inputs.train_set}
    extra["objective"] = objective = config.objective.build(inputs.num_classes)
    shape, folder = describe_latents(inputs.recipe), inputs.reads["reference"] / "teacher"
    if folder.exists():
        modules["teacher"] = LightningDiT.from_pretrained(folder).requires_grad_(False)
    else:
        extra["teacher"] = _reference(inputs).velocity
    if isinstance(objective, BringsStudent):
        extra["reference"] = _reference(inputs)
        modules["student"] = objective.build_student(shape, inputs.num_classes)
    elif folder.exists():
        modules["student"] = LightningDiT.from_pretrained(folder)
    else:
        modules["student"] = config.model.build(shape, inputs.num_classes)
    networks = Networks(
        modules,
        trains={
            "tokenizer": [p for p in autoencoder.parameters() if p.requires_grad],
            "student": [p for p in modules["student"].parameters() if p.requires_grad],
        },
        averaged=("autoencoder",),
        extra=extra,
    )
    if config.student_learning_rate is not None:
        networks.learning_rates["student"] = config.student_learning_rate
    losses = inputs.recipe.losses
    add_objective(networks, losses, inputs.discriminator() or new_discriminator(losses, inputs.recipe.data.channels))
    return networks


def _reference(inputs: Inputs) -> Reference:
    """The reference, opened in the folder of its own stage, where it finds what it made there."""
    assert inputs.recipe.reference is not None
    return inputs.recipe.reference.distribution.build(replace(inputs, out=inputs.reads["reference"]))


def updates(networks: Networks, batch: Batch, rng: Random) -> Iterator[Update]:
    config: MatchingTraining = networks.config
    turn, off = divmod(batch.step - config.student_warmup, config.student_steps)
    tokenizer_turn = turn >= 0 and off == 0
    with torch.set_grad_enabled(tokenizer_turn):
        raw = networks.autoencoder.encode(batch.data).latents
    latents = networks.autoencoder.normalize(raw.detach().float())
    if tokenizer_turn:
        measures = {
            "health": turn % config.health_every == 0,
            "proxies": config.proxy_every > 0 and turn % config.proxy_every == 0,
        }
        yield from _tokenizer_turns(networks, batch, raw, latents, rng, **measures)
    if isinstance(networks.objective, BringsStudent):
        yield networks.objective.student_update(networks.student, latents, batch.labels, networks.reference, rng)
    else:
        yield flow_update("student", networks.student, latents, batch.labels, config, rng)


def _tokenizer_turns(
    networks: Networks, batch: Batch, raw: Tensor, latents: Tensor, rng: Random, health: bool, proxies: bool
) -> Iterator[Update]:
    config: MatchingTraining = networks.config
    z = latents.requires_grad_()
    matching, log = networks.objective.loss(z, batch.labels, networks.teacher, networks.student, rng)
    (pull,) = torch.autograd.grad(matching, z)
    z.requires_grad_(False)
    std = networks.autoencoder.latent_std.view(1, -1, 1, 1)
    joined = Pull.apply(raw, pull / std, config.weight, config.balance == "gradient", log)
    recon = networks.autoencoder.decode(joined).sample
    loss, terms = reconstruct(networks, batch.data, recon, rng)
    log |= terms | {"matching/loss": matching.detach(), "tokenizer/loss": terms["reconstruction/total"]}
    if health:
        log |= {
            "health/effective_rank": effective_rank(latents),
            "health/std": latents.std(dim=(0, 2, 3)).mean(),
            "health/mean": latents.mean(dim=(0, 2, 3)).abs().mean(),
        }
    if proxies:
        model = networks.autoencoder
        log |= online_proxies(latents, batch.labels, lambda z: model.decode(model.denormalize(z)).sample)
    yield Update("tokenizer", loss, log)
    if networks.discriminator is not None:
        yield discriminate(networks, batch.data, recon, rng)
