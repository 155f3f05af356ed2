"""Matching objectives: one file each. An objective says how latents move towards the reference.

They serve without recipe and folder too. In a training loop of one's own, with any velocity networks:

    objective = DMD(guidance=5.0)
    loss, log = objective.loss(z, labels, teacher, student)          # add it to the loss of the tokenizer
    student_loss, log = objective.student_loss(student, z.detach(), labels)
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmvae.flow.guidance import Velocity
from dmvae.flow.loss import TimeDistribution, drop_labels, flow_matching_loss, sample_time
from dmvae.generators.flow import FlowModelConfig
from dmvae.references import Reference
from dmvae.registry import Registered, find, names
from dmvae.runtime.random import Random

Log = dict[str, Tensor]
Student = Callable[..., Tensor]
"""What `new_student` made, called as the objective itself knows."""


@dataclass
class Context:
    """What an objective may look at besides the latents."""

    rng: Random
    """The step's randomness."""
    null_label: int
    """The label that means "no label": the number of classes."""
    progress: float = 0.0
    """Share of the training that is done, in [0, 1), for schedules."""
    reference: Reference | None = None
    """The reference itself, for objectives that need its samples."""
    label_dropout: float = 0.1
    """Share of labels that the student learns without, for guidance."""
    time_distribution: TimeDistribution = "uniform"
    """How the student's training times are drawn."""

    @classmethod
    def default(cls, z: Tensor, *networks: object, rng: torch.Generator | None = None) -> Context:
        """For loops of one's own: torch's randomness, or that of `rng`, and the number of classes that a network's
        config tells. Raises ValueError where none does."""
        configs: list[Any] = [getattr(network, "config", None) for network in networks]
        counts = [config.num_classes for config in configs if hasattr(config, "num_classes")]
        if not counts:
            raise ValueError(
                'the label that means "no label" is not known, for no network\'s config has num_classes; give '
                "context=Context(rng=Random(seed), null_label=NUMBER_OF_CLASSES)"
            )
        return cls(Random.of(rng, z.device), int(counts[0]))


@dataclass(frozen=True, kw_only=True)
class Matching(Registered):
    """Base of every objective. Its student is, unless an objective says otherwise, a flow model that starts as the
    teacher and learns the latents as they are."""

    required: ClassVar[tuple[str, ...]] = ("loss",)

    needs_teacher: ClassVar[bool] = True
    """Whether `loss` needs the reference's velocity."""
    needs_reference: ClassVar[bool] = False
    """Whether it, or the student's loss, needs samples: `context.reference`."""
    has_student: ClassVar[bool] = True

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        teacher: Velocity | None = None,
        student: Student | None = None,
        context: Context | None = None,
    ) -> tuple[Tensor, Log]:
        """(a scalar, figures to log). Its gradient with respect to the latents z [n, C, H, W], normalised as the
        reference's samples are, moves them; labels int64 [n]. No gradient reaches teacher or student.

        A figure is a scalar, or [sum, count] of what is not there at every step.
        """
        raise NotImplementedError

    def new_student(
        self, latent_shape: tuple[int, int, int], num_classes: int, teacher: object, model: FlowModelConfig
    ) -> nn.Module | None:
        """The student for latents (C, H, W): a copy of the teacher where that is a network, else a new `model`; None
        where `has_student` is False. What an objective remembers from turn to turn must be in it, so that a run can be
        resumed."""
        if not self.has_student:
            return None
        return copy_of(teacher) if isinstance(teacher, nn.Module) else model.build(latent_shape, num_classes)

    def student_loss(
        self, student: Student, z: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Log]:
        """(a scalar to descend, figures to log) of the student, on detached latents z [n, C, H, W]."""
        context = context or Context.default(z, student)
        labels = drop_labels(labels, context.label_dropout, context.null_label, context.rng)
        t = sample_time(len(z), context.time_distribution, context.rng)
        return flow_matching_loss(student, z, labels, t, context.rng.normal(*z.shape)), {}


def copy_of(network: nn.Module) -> nn.Module:
    """A network of its own with the same weights, to be trained."""
    make: Callable[[object], nn.Module] | None = getattr(network, "from_config", None)
    if make is not None:  # a diffusers model knows which of its parameters train
        copy = make(network.config)
        copy.load_state_dict(network.state_dict())
        return copy
    return deepcopy(network).requires_grad_(True)


def __getattr__(name: str) -> type:
    """`from dmvae.matching import DMD`, and every other objective by its class's name."""
    for known in names(Matching):
        cls: type = find(Matching, known)
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module 'dmvae.matching' has no attribute {name!r}")
