"""Stage `matching`: the latents move towards the reference, and the tokenizer keeps on reconstructing.

The student is trained on the current latents in every step, the tokenizer in every `student_steps`-th. Only those
steps run the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.blank import first_tokenizer
from dmvae.evaluation.online import proxies_to_log
from dmvae.flow.guidance import Velocity
from dmvae.inputs import Inputs
from dmvae.losses.pull import Pull, held, inverse_covariance
from dmvae.losses.reconstruction import reconstruction_loss
from dmvae.matching import LAG, Context, Matching, as_promised
from dmvae.matching.dmd import DMD
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import BatchSize, Count, Decay, Range, Rate, Wait, Weight
from dmvae.references import Reference, Unlabelled
from dmvae.registry import require_members
from dmvae.runtime import distributed
from dmvae.runtime.eager import uncompiled
from dmvae.runtime.precision import full_precision
from dmvae.runtime.random import Random
from dmvae.runtime.transfer import Loggable
from dmvae.stages.approach import EVERY, RECENT, Approach, Recent, hard_to_follow, unmeasured, until_told
from dmvae.stages.bounds import BOUNDS, UNPULLED, shape_of, spread, usual_spread
from dmvae.stages.editing import DRAWN, EDITED, Editing, Encoded, arriving, as_saved, encode, unfit
from dmvae.stages.reconstruction import DecoderNetworks, DecoderStage, discriminate, reconstruct
from dmvae.stages.reference import ReferenceTraining, config_of, open_reference
from dmvae.stages.unmet import unmet
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.training.flow import FlowTraining
from dmvae.training.health import Bound
from dmvae.training.stage import Batch, Update, stage
from dmvae.transport.schedule import LIMITS
from dmvae.transport.views import tokens

SETTLING = 4096
"""Training images, at most, on which the finished tokenizer's prices and groups are computed."""


@dataclass(frozen=True, kw_only=True)
class MatchingTraining(Editing, FlowTraining):
    """Distribution matching. The student has its teacher's architecture; `model` is the student's where
    the reference has a closed form and so no teacher network. An objective may bring another network instead."""

    objective: Matching = field(default_factory=DMD)
    """The matching objective, by `type`; {type: dmd} alone is the paper's matching. If the section names none, fields
    have defaults by which latents reach any reference: `transport` of edited samples, `hand_over` of drawn latents."""
    weight: Weight = 10.0
    """lambda, the weight of the matching loss."""
    balance: Literal["fixed", "gradient", "distance"] = "fixed"
    """"fixed": loss = reconstruction + lambda * matching, as in the paper. "gradient": the matching loss is scaled so
    that lambda is the ratio of its gradient's norm to the reconstruction gradient's, both at the latents, each a root
    mean square over images. "distance": that ratio starts at lambda; then it grows while the measured distance is above
    `target`, and falls below it, within 0.2 and 10."""
    target: Annotated[float, Range(1, 1e6)] = configs.added(1.1)
    """Distance to the reference that `balance: distance` aims at and `until` waits for: the largest of four numbers on
    1024 recent latents. Three are sliced distances (whole latents, tokens, pairs of tokens), as multiples of that
    between two samples of the reference; the fourth is (accuracy - 0.5) / 0.05 of a classifier between tokens of
    latents and of the reference."""
    until: Literal["arrived"] | None = configs.added(None)
    """"arrived": the stage ends when three measurements in a row are at most `target`, or after `steps`. Not for edited
    samples, which are at the reference from the start."""
    decoded: BatchSize | None = configs.added(None)
    """Images of a batch that are reconstructed; the others are encoded for the matching loss only, which is cheap and
    needs many. null: all."""
    student_steps: Count = 5
    """Student updates per tokenizer update."""
    student_warmup: Wait = 0
    """Steps at the start that train only the student."""
    student_learning_rate: Rate | None = None
    """The student's learning rate; null is the stage's."""
    train_encoder: bool = True
    """Train the encoder too, not only the bottleneck and the decoder."""
    health_every: Count = 50
    """Tokenizer updates between measurements of the latents' rank and spread."""
    rollback: bool = configs.added(True)
    """Where latents collapse or grow without bound, the reconstruction is lost, or the student does not keep up, go
    back to an older checkpoint with smaller learning rates; the second time, stop with an error. false: go on."""
    proxy_every: Wait = 10
    """Tokenizer updates between measurements of the proxies of gFD (proxy/...), about 1 % of the time; 0 is never."""
    ema: Decay = 0.99
    """Decay of the averaged tokenizer that is saved, per tokenizer update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoded is not None and self.decoded > self.batch_size:
            raise ValueError(f"decoded: {self.decoded} images of a batch of {self.batch_size}; give at most those")

    @property
    def every(self) -> int:
        """Steps per tokenizer update."""
        return self.student_steps if self.objective.has_student else 1

    @property
    def turns(self) -> int:
        """Tokenizer updates of the stage, which the code calls turns."""
        return -(-max(0, self.steps - self.student_warmup) // self.every)


class MatchingNetworks(DecoderNetworks):
    student: nn.Module | None
    teacher: Velocity | None
    """The reference's velocity: a frozen network, or a function in closed form; None where it is not needed."""
    undone: bool
    """Whether no reconstruction depends on the part that moves latents (`Parts.undone`)."""
    approach: Approach
    inverse: Tensor
    """[C, C], the inverse covariance of the reference's tokens; only with `matching.anchor`."""
    plan: Recent
    """The images' own recent latents, where samples of the reference are assigned to images."""
    queue: Recent
    """Latents of earlier updates, for an objective that `needs_recent`."""


@stage("matching")
class MatchingStage(DecoderStage[MatchingTraining, MatchingNetworks]):
    Config = MatchingTraining
    reads = ("tokenizer", "reference")
    needs = ("reference",)
    uses = ("autoencoder", "pretrained", "losses")

    @cached_property
    def reference(self) -> Reference:
        return open_reference(self.inputs)

    @cached_property
    def _labelled(self) -> bool:
        return config_of(self.inputs).distribution.labelled_for(self.inputs)

    def kinds(self) -> dict[int, float]:
        """A step with a tokenizer update, the second one, in which nothing is measured; and a step of the student
        alone."""
        every = self.config.every
        first = self.config.student_warmup + every
        return {first: 1 / every} | ({first + 1: 1 - 1 / every} if every > 1 else {})

    @contextmanager
    def finished(self, networks: MatchingNetworks) -> Iterator[None]:
        some = self.inputs.some_images(SETTLING) if self.config.noise == "assigned" else None
        with uncompiled(), as_saved(networks.autoencoder, self.config.noise in DRAWN, some):
            yield

    @property
    def measures(self) -> bool:
        """Whether anything depends on the distance to the reference."""
        config = self.config
        return config.balance == "distance" or config.until is not None or config.objective.needs_distance

    def bounds(self) -> Sequence[Bound]:
        if not self.config.rollback:
            return ()
        return BOUNDS if self.config.weight > 0 else UNPULLED

    @cached_property
    def _usual_spread(self) -> float:
        return usual_spread(self.inputs)

    def done(self, networks: MatchingNetworks) -> bool:
        return self.config.until is not None and networks.approach.arrived

    @classmethod
    def usual(cls, values: configs.Values) -> configs.Values:
        return arriving(values)

    @classmethod
    def problems(cls, config: MatchingTraining, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        reference = others["reference"]
        assert isinstance(reference, ReferenceTraining)
        name = config.objective.type
        if config.objective.needs_teacher and not (reference.teacher or reference.distribution.closed_form):
            yield f"matching.objective: {name!r} needs the reference's teacher; set reference.teacher: true"
        kind = reference.distribution.type
        if config.objective.only_for and kind not in config.objective.only_for:
            yield f"matching.objective: {name!r} is for {', '.join(config.objective.only_for)}, and not for {kind!r}"
        for field_name in ("student_warmup", "student_learning_rate"):
            if getattr(config, field_name) and not config.objective.has_student:
                yield f"matching.{field_name}: {name!r} has no student; leave it out"
        low, high = LIMITS
        if config.balance == "distance" and not low <= config.weight <= high:
            off = "" if config.weight else ", or balance: fixed too, for no pull"
            yield f"matching.weight: {config.weight:g} is where balance: distance starts; give {low:g} to {high:g}{off}"
        yield from config.objective.problems(config.batch_size, inputs.num_classes, reference.distribution)
        yield from unmet(config.objective, reference, config.label_dropout, inputs)
        if not config.turns:
            yield f"matching.student_warmup: {config.student_warmup} of {config.steps} steps leave the tokenizer none"
        yield from unmeasured(config.objective, config.until, config.steps, config.turns, config.batch_size)
        with torch.device("meta"):
            model = first_tokenizer(inputs.sections, weights=False)
        if not config.train_encoder and not model.parts().bottleneck and config.noise not in EDITED:
            yield (
                "matching.train_encoder: with a frozen encoder and no bottleneck, nothing can move the latents; "
                "set train_encoder: true"
                + (" or give autoencoder.latent_channels" if inputs.sections.pretrained is None else "")
            )
        yield from unfit(config, model, config.batch_size, config.balance != "fixed", config.until)

    def build(self) -> MatchingNetworks:
        config, inputs = self.config, self.inputs
        normalisation = inputs.tensors("reference", "normalisation.safetensors")
        mean, std = normalisation["mean"], normalisation["std"]
        autoencoder = inputs.autoencoder()
        parts = autoencoder.parts()
        assigned = config.noise == "assigned"
        if config.noise in EDITED:
            assert isinstance(autoencoder, Autoencoder)  # see editing.unfit
            bank = self.reference.sample(config.noise_bank, Random.alone(inputs.seed, self.name, "bank"))[0]
            autoencoder = autoencoder.with_editor(
                bank, mean, std, config.noise_width, assigned=assigned, groups=config.noise_groups
            )
        nn.ModuleList(parts.encoder).requires_grad_(config.train_encoder)
        autoencoder.latent_mean.copy_(mean)
        autoencoder.latent_std.copy_(std)
        if config.noise_std is not None and inputs.weights:  # a plan has no values of std
            autoencoder.fix_spread(config.noise_std * std)
        autoencoder.drawn = False  # until it is saved: in training `encode` of stages/editing.py draws
        networks = MatchingNetworks(autoencoder)
        networks.undone = parts.undone
        if config.anchor is not None:
            assert isinstance(autoencoder, Autoencoder)  # see editing.unfit
            assert autoencoder.editor is not None
            networks.register_buffer("inverse", inverse_covariance(tokens(autoencoder.editor.bank)), persistent=False)
        far = math.inf if inputs.weights else 0.0  # a plan counts updates that call teacher and student
        if inputs.weights and config.balance == "distance":
            images = RECENT if config.noise in EDITED else len(inputs.train_set)  # edited ones differ
            hard_to_follow(inputs.say, config.turns, config.batch_size, images)
        networks.approach = Approach(inputs.latent_shape, config.weight, config.target, far)
        networks.plan = Recent(inputs.latent_shape)
        networks.queue = Recent(inputs.latent_shape, config.objective.needs_recent, with_labels=True)
        # Only what is used: checkpoints of runs without the rest must still load. On "approach" see `loop.LATER`.
        used = {"approach": True, "plan": assigned, "queue": config.objective.needs_recent > 0}
        networks.remembers = tuple(name for name in used if used[name])
        teacher = inputs.generator("reference", "teacher") if inputs.has("reference", "teacher") else None
        assert teacher is None or isinstance(teacher, VelocityModel)
        networks.teacher = teacher if teacher is not None else self.reference.velocity
        networks.student = config.objective.new_student(
            inputs.latent_shape, inputs.num_classes, networks.teacher, config.model
        )
        if config.objective.has_student:
            require_members(config.objective, networks.student, ("parameters",), "matching.objective: ", "new_student")
        # Autocast keeps cast copies of weights that are not frozen. Compiled parts cast for themselves; they share the
        # student's graphs only where the teacher is not frozen either.
        if teacher is not None and (config.objective.differentiates or not inputs.sections.run.compile):
            teacher.requires_grad_(False)
        networks.trains["tokenizer"] = [p for p in autoencoder.parameters() if p.requires_grad]
        if networks.student is not None:
            networks.trains["student"] = [p for p in networks.student.parameters() if p.requires_grad]
            if config.student_learning_rate is not None:
                networks.learning_rates["student"] = config.student_learning_rate
        if not parts.undone:
            networks.add_losses(inputs, self.losses, inputs.discriminator())
        return networks

    def updates(self, networks: MatchingNetworks, batch: Batch, rng: Random) -> Iterator[Update]:
        config = self.config
        turn, off = divmod(batch.step - config.student_warmup, config.every)
        tokenizer_turn = turn >= 0 and off == 0
        progress, reference = batch.step / batch.steps, self.reference if config.objective.needs_reference else None
        null, labels = self.inputs.num_classes, batch.labels
        if not self._labelled:  # else each class would be matched to the whole reference, and latents would lose it
            labels, reference = torch.full_like(labels, null), reference and Unlabelled(reference, null)
        # Prices and groups are updated: for a few groups in every update, for single samples, which cost more, seldom.
        settle = tokenizer_turn and turn % (1 if config.noise_groups else EVERY) == 0
        # Compiled networks build a graph in the student's steps too, for no use: without it they would compile again.
        with torch.set_grad_enabled(tokenizer_turn or self.inputs.sections.run.compile):
            model, plan = networks.autoencoder, networks.plan
            drawn_from = self.reference if config.noise == "reference" else None  # else it need not be opened
            if self.inputs.data.are_latents:
                raw = model.carry(batch.data)
                encoded = Encoded(raw, model.normalize(raw.detach().float()), labels)
            else:
                encoded = encode(config, model, drawn_from, plan, batch.data, labels, rng, settle)
        context = Context(rng, null, progress, reference, config.label_dropout, config.time_distribution)
        context.time_shift, context.time_mean, context.time_std = config.time_shift, config.time_mean, config.time_std
        if tokenizer_turn:
            yield from self._tokenizer_turns(networks, batch, encoded, context, turn)
        encoded.raw = encoded.raw.detach()  # what the encoder keeps for its gradient is not the student's to hold
        if networks.student is not None:
            found = config.objective.student_loss(networks.student, encoded.latents, labels, context)
            loss, log = as_promised(config.objective.type, found)
            if turn < 0:
                log.pop(LAG, None)  # while latents stay, there is nothing to keep up with
            yield Update("student", loss, log)

    def _tokenizer_turns(
        self, networks: MatchingNetworks, batch: Batch, encoded: Encoded, context: Context, turn: int
    ) -> Iterator[Update]:
        config, model = self.config, networks.autoencoder
        raw, z, edit = encoded.raw, encoded.latents.requires_grad_(), encoded.edit
        context.recent = networks.queue.newest(turn * config.batch_size)
        context.distance = networks.approach.distance
        found = config.objective.loss(z, encoded.labels, networks.teacher, networks.student, context)
        matching, log = as_promised(config.objective.type, found)
        with full_precision(z):  # autocast would cast the products of this backward pass too
            (pull,) = torch.autograd.grad(matching, z)
        z.requires_grad_(False)
        if config.objective.needs_recent:
            networks.queue.remember(z, batch.labels)
        late: dict[str, Tensor | float] = {}
        figures: dict[str, Loggable] = {**log, "matching/loss": matching.detach()}
        if edit is not None:
            figures["matching/edit"] = edit.square().mean().sqrt()
            if config.anchor is not None:
                pull = held(pull, edit, config.anchor, networks.inverse)
        if self.measures or until_told(turn) * config.batch_size < len(networks.approach.recent):
            networks.approach.remember(z, batch.labels)
        if self.measures and turn % EVERY == 0:
            figures |= networks.approach.measure(self.reference, context.rng, follow=config.balance == "distance")
        if until_told(turn) == 0:
            own = Random(self.inputs.seed, self.name, "distance", batch.step, device=raw.device)
            classes = self.inputs.train_set.classes if self._labelled else ()
            figures |= networks.approach.tell(self.reference, own, classes, whole=not self.measures)
        figures["health/spread"] = spread(z) / self._usual_spread
        if turn % config.health_every == 0:
            figures |= shape_of(z)
        if config.proxy_every > 0 and turn % config.proxy_every == 0:
            with uncompiled():
                figures |= proxies_to_log(z, batch.labels, lambda x: model.decode(model.denormalize(x)).sample)
        std = model.latent_std.view(1, -1, 1, 1)
        if networks.undone:  # reconstructions do not change, so there is no other loss
            yield Update("tokenizer", (raw * pull / std).sum() * config.weight, figures, matching.detach())
            return
        images = batch.data[: config.decoded and config.decoded // distributed.world_size()]
        # A ratio of norms must not depend on `decoded`: the gradient of a mean over n images has a norm like n^(-1/2).
        share = 1.0 if config.balance == "fixed" else (len(images) / len(raw)) ** 0.5
        weight = share * (networks.approach.ratio if config.balance == "distance" else config.weight)
        joined = Pull.apply(raw, pull / std, weight, config.balance != "fixed", late)
        # No slice where all are decoded: the gradient of a slice has another memory format, in which convolutions round
        # differently.
        recon = model.decode(joined if len(images) == len(raw) else joined[: len(images)]).sample
        loss, terms = reconstruct(networks, self.losses, images, recon, context.rng)
        figures |= terms
        grey = reconstruction_loss(images, torch.zeros_like(images), l1=self.losses.l1, l2=self.losses.l2)
        figures["health/error"] = terms["reconstruction/pixel"] / grey.clamp_min(1e-6)
        yield Update("tokenizer", loss, figures, terms["reconstruction/total"], late)
        if networks.discriminator is not None:
            yield discriminate(networks.discriminator, self.losses.adversarial, images, recon, context.rng)
