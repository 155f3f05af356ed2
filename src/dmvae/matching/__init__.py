"""Matching objectives: one file each. An objective is a loss that moves latents towards the reference.

They also work without a recipe, in your own training loop, with any velocity networks:

    objective = DMD(guidance=5.0)
    teacher_loss, log = objective.teacher_loss(teacher, y, labels)   # y are samples of the reference
    loss, log = objective.loss(z, labels, teacher, student)          # add it to the loss of the tokenizer
    student_loss, log = objective.student_loss(student, z.detach(), labels)

examples/match_autoencoder_kl.py is such a loop, and docs/own_trainer.md has all signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from dmvae import config as configs
from dmvae.flow.guidance import Velocity
from dmvae.flow.loss import (
    TimeDistribution,
    Times,
    drop_labels,
    flow_matching_loss,
    gaussian_loss,
    require_batch,
)
from dmvae.generators.flow import TransformerConfig
from dmvae.models.base import Model
from dmvae.references import Reference, ReferenceConfig
from dmvae.registry import Registered, find, names
from dmvae.runtime.random import Random

Log = dict[str, Tensor]
"""Figures by name. A figure is a scalar, or [sum, count] where not every step has it: its value is sum / count, and
there is none at count 0. Pairs of several steps are added first."""
LAG = "student/lag"
"""The figure of how little a flow student knows of the latents."""
Student = Callable[..., Tensor]
"""What `new_student` returned. Its arguments are the objective's own choice."""
M = TypeVar("M", bound=nn.Module)


@dataclass
class Context:
    """What an objective may look at besides the latents. Raises ValueError for fields out of range."""

    rng: Random
    """The step's randomness. A plain torch.Generator will do: one draw from it seeds a `Random`."""
    null_label: int
    """The label that means "no label": the number of classes."""
    progress: float = 0.0
    """Share of the training that is done, from 0 to 1, for schedules."""
    reference: Reference | None = None
    """The reference itself, for objectives that need its samples: `dmvae.references.draw` puts them on the latents'
    device."""
    label_dropout: float = 0.1
    """Share of the student's training labels that are replaced by "no label", for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How the student's training times are drawn."""
    recent: tuple[Tensor, Tensor] | None = None
    """Latents [k, C, H, W] of earlier updates of the tokenizer, of all ranks, newest first, and their labels int64 [k],
    for objectives that need them; k is 0 at first."""
    distance: float | None = None
    """The largest sliced distance of recent latents to the reference, as a multiple of chance, for objectives that need
    it; infinity until it is measured."""
    time_shift: float = 1.0
    """Shift of the student's training times towards noise; 1 is none."""
    time_mean: float = 0.0
    """Mean of the normal number that logit-normal times come from; below 0, times are nearer to noise."""
    time_std: float = 1.0
    """Its standard deviation."""

    def __post_init__(self) -> None:
        if not isinstance(self.rng, torch.Generator):
            raise ValueError(f"rng: give a torch.Generator or Random(seed), got {self.rng!r}")
        for name, value in (("label_dropout", self.label_dropout), ("progress", self.progress)):
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number, 0 to 1, got {value!r}")
        if not isinstance(self.null_label, Integral) or self.null_label < 0:
            raise ValueError(f"null_label: give the number of classes, got {self.null_label!r}")
        given = self.reference
        if isinstance(given, type) or (given is not None and not hasattr(given, "sample")):
            raise ValueError(
                "reference: give an object with sample(n, rng) -> (latents [n, C, H, W], labels int64 [n]), got "
                f"{given if isinstance(given, type) else type(given)}"
            )
        _ = self.times  # raises ValueError
        self.rng = Random.of(self.rng, self.rng.device)

    @property
    def times(self) -> Times:
        """How the student's training times are drawn."""
        return Times(self.time_distribution, self.time_shift, self.time_mean, self.time_std)

    @classmethod
    def given(cls, context: Context | None, z: Tensor, labels: Tensor, *networks: object) -> Context:
        """The context, or `default` where it is None. Raises ValueError as `require_batch` does, for a `null_label`
        that is not the networks' number of classes, and for an `rng` on another kind of device than z."""
        require_batch(z, labels)
        if context is None:
            context = cls.default(z, *networks)
        if not isinstance(context, Context):
            raise ValueError(f"context: give Context(rng, null_label), got {type(context).__name__}")
        if context.rng.device.type != z.device.type:
            raise ValueError(
                f"rng: it draws on {context.rng.device}, latents are on {z.device}; give a generator there"
            )
        for count in _numbers_of_classes(networks):
            if count != context.null_label:
                raise ValueError(
                    f"null_label: {context.null_label} is not the network's number of classes, {count}, whose label "
                    '"no label" is; give that'
                )
        return context

    @classmethod
    def default(cls, z: Tensor, *networks: object, rng: torch.Generator | None = None) -> Context:
        """For your own training loop: randomness from `rng` or torch's global generator, and the number of classes from
        a network's config (`config.num_classes`). Raises ValueError where no network has that."""
        counts = _numbers_of_classes(networks)
        if not counts:
            raise ValueError(
                'the label that means "no label" is not known, for no network\'s config has num_classes; give '
                "context=Context(rng=Random(seed, device=z.device), null_label=NUMBER_OF_CLASSES)"
            )
        return cls(Random.of(rng, z.device), counts[0])


def bare(network: object) -> object:
    """The network inside what torch.compile, DataParallel, DistributedDataParallel and AveragedModel put around it."""
    wrapped = isinstance(network, (DistributedDataParallel, nn.DataParallel, AveragedModel))
    inner = getattr(network, "module" if wrapped else "_orig_mod", None)
    return network if inner is None else bare(inner)


def beside(module: M, other: object) -> M:
    """The module, moved to the device of another network's parameters, if that has any. `to` is not called where the
    device is the same: it fails on the tensors of a plan, which have no memory."""
    network = bare(other)
    first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if first is None or all(p.device == first.device for p in module.parameters()):
        return module
    return module.to(first.device)


@contextmanager
def known_labels(labels: Tensor, null_label: int) -> Iterator[None]:
    """Turns the IndexError of an embedding that lacks a label into a ValueError that says which labels there are. To
    check labels beforehand would make a GPU wait."""
    try:
        yield
    except IndexError as error:
        if 0 <= labels.min() <= labels.max() <= null_label:
            raise
        raise ValueError(
            f"labels: they go from {labels.min()} to {labels.max()}; the classes are 0 to {null_label - 1}, and "
            f'{null_label} is "no label"'
        ) from error


def _numbers_of_classes(networks: Sequence[object]) -> list[int]:
    """`config.num_classes` of the networks that have it."""
    found = (getattr(getattr(bare(network), "config", None), "num_classes", None) for network in networks)
    return [int(number) for number in found if number is not None]


@dataclass(frozen=True, kw_only=True)
class Matching(Registered):
    """Base class of every objective. By default its student is a flow model that starts as a copy of the teacher and is
    trained by flow matching on the current latents."""

    required: ClassVar[tuple[str, ...]] = ("loss",)

    needs_teacher: ClassVar[bool] = True
    """Whether `loss` needs the reference's velocity."""
    needs_reference: ClassVar[bool] = False
    """Whether `loss` or `student_loss` needs samples of the reference: `context.reference`."""
    has_student: ClassVar[bool] = True
    """Whether a second network is trained beside the tokenizer."""
    learns_velocity: ClassVar[bool] = True
    """Whether that network predicts velocities: `matching.model`, `label_dropout` and the times are for those alone."""
    differentiates: ClassVar[bool] = True
    """Whether `loss` backpropagates through the teacher; then its weights are frozen. False: with `run.compile` they
    are not frozen, like the student's, so that teacher and student share compiled graphs."""
    needs_distance: ClassVar[bool] = False
    """Whether `loss` needs the measured distance: `context.distance`."""
    only_for: ClassVar[tuple[str, ...]] = ()
    """The `type`s of the references that it can match; empty is all."""

    def __post_init__(self) -> None:
        configs.checked(self)

    @property
    def needs_recent(self) -> int:
        """How many latents of earlier updates `loss` needs: `context.recent`."""
        return 0

    def parts(self) -> dict[str, Matching]:
        """The objectives whose gradients move latents, by the end of their place in a recipe: "" for this one itself,
        ".far" for its field `far`."""
        return {"": self}

    def problems(self, batch_size: int, num_classes: int, reference: ReferenceConfig) -> Iterator[str]:
        """Messages for what does not fit `batch_size` images of `num_classes` classes, or the reference. Asked before
        any stage runs."""
        yield from ()

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """(scalar loss, figures to log, see `Log`). Its gradient with respect to z moves the tokenizer; no gradient may
        reach teacher or student. z [n, C, H, W] is normalised as the reference's samples are; labels are int64 [n].
        """
        raise NotImplementedError

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: TransformerConfig
    ) -> nn.Module | None:
        """The student for latents (C, H, W): a copy of the teacher where that is a network, else a new `model`; None
        where `has_student` is False. What an objective keeps from one step to the next must be a parameter or a buffer
        of the student, so that checkpoints hold it. Raises ValueError where neither teacher nor `model` gives one."""
        if not self.has_student:
            return None
        teacher = bare(teacher)
        if isinstance(teacher, nn.Module):
            return copy_of(teacher)
        if not isinstance(model, TransformerConfig):
            raise ValueError(f"model: the teacher is no network to copy; give a FlowModelConfig, got {model!r}")
        return model.build(latent_shape, num_classes)

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        """(scalar loss of the student, figures to log), on detached latents z [n, C, H, W].

        "student/lag" is the loss divided by `gaussian_loss`, that of the best velocity which knows only the mean and
        the spread of z: above 1 the student knows less than that of the latents as they are now.
        """
        loss, log = self.teacher_loss(student, z, labels, context)
        times = context.times if context is not None else Times()
        return loss, log | {LAG: loss.detach() / gaussian_loss(z, times).clamp_min(1e-12)}

    def teacher_loss(
        self, teacher: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        """The flow-matching loss of a velocity network on samples z [n, C, H, W] of the reference, with a share of the
        labels dropped: (scalar, figures to log). In a recipe the stage `reference` trains teachers by the same loss."""
        context = Context.given(context, z, labels, teacher)
        kept = drop_labels(labels, context.label_dropout, context.null_label, context.rng)
        t = context.times.sample(len(z), context.rng)
        noise = context.rng.normal(*z.shape)
        with known_labels(labels, context.null_label):
            return flow_matching_loss(teacher, z=z, labels=kept, t=t, noise=noise), {}


def as_promised(name: str, given: object) -> tuple[Tensor, Log]:
    """`given` as (loss, figures). Raises ValueError, naming the objective, unless the loss is a scalar tensor with a
    gradient and the figures are a dict of scalars or [sum, count]: the objective may be a plugin's."""
    what = f"matching.objective: {name!r} gives"
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"{what} {_named(given)}; give a pair, (loss, figures to log)")
    loss, log = given
    if not isinstance(loss, Tensor) or loss.ndim:
        raise ValueError(f"{what} a loss that is {_named(loss)}; give a scalar tensor, such as its mean")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(f"{what} a loss that depends on nothing that is trained; is it detached?")
    if not isinstance(log, dict):
        raise ValueError(f"{what} figures that are {_named(log)}; give a dict, {{}} for none")
    for figure, value in log.items():
        if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.shape in ((), (2,))):
            raise ValueError(f"{what} a figure {figure!r} that is {_named(value)}; give a scalar, or [sum, count]")
    return loss, log


def _named(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def compared(what: str, context: Context | None, z: Tensor, labels: Tensor) -> tuple[Context, Reference]:
    """The context and its reference. Raises ValueError where there is none, naming `what`, which needs samples."""
    require_batch(z, labels)
    if not isinstance(context, Context) or context.reference is None:
        raise ValueError(f"{what} compares latents with samples: give context=Context(rng, null_label, reference=...)")
    return context, context.reference


def require_gradient(z: Tensor) -> None:
    """Raise ValueError for latents from which no gradient goes on to a tokenizer: their loss would move nothing."""
    if torch.is_grad_enabled() and not z.requires_grad:
        raise ValueError(
            "z: it has no gradient, so its loss would move nothing; give what the encoder returned, not z.detach(); "
            "for the value alone call loss under torch.no_grad()"
        )


def copy_of(network: nn.Module) -> nn.Module:
    """A trainable copy of the network."""
    if isinstance(network, Model):  # built anew, so that parameters which never train, as positions, stay fixed
        weights = network.state_dict()
        like = next((w for w in weights.values() if w.is_floating_point()), torch.empty(()))
        copy: nn.Module = network.from_config(network.config).to(like.device, like.dtype)
        copy.load_state_dict(weights)
        return copy
    return deepcopy(network).requires_grad_(True).train()


def __getattr__(name: str) -> type:
    """`from dmvae.matching import DMD`, and every other objective by its class's name."""
    for known in names(Matching):
        cls = find(Matching, known)
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'dmvae.matching' has no attribute {name!r}")
