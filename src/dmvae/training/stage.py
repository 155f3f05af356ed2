"""The base classes of stages, and the contract between a training stage and the loop.

A stage is a class decorated with `@stage("name")`; the name is that of its section in recipes and of its command.
`dmvae.stages.STAGES` lists the package's stages in order; a plugin's stage says which stage it comes `after`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from itertools import pairwise
from keyword import iskeyword
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from torch import Tensor, nn

from dmvae.config import Values, added
from dmvae.datasets import Items, Split
from dmvae.inputs import Inputs
from dmvae.ranges import BatchSize, Count, Decay, Range, Rate, Wait, Weight
from dmvae.registry import Registered, register
from dmvae.runtime.random import Random
from dmvae.runtime.transfer import Loggable
from dmvae.sections import Sections
from dmvae.training.health import Bound

Facts = Values
"""What done.json says of a finished stage."""
C = TypeVar("C")
S = TypeVar("S", bound="type[Stage[Any]]")


class Buildable(Protocol):
    """A config whose `build` may need a package or weights that this machine lacks."""

    def build(self) -> object:
        """Raises ValueError that says what to install or fetch."""


def stage(name: str, *, after: str | None = None) -> Callable[[S], S]:
    """Class decorator: register a `Stage` as the section and the command `name`. A plugin's stage names the stage that
    it comes `after`. Raises ValueError for an invalid or taken name, and for a class that lacks a required member."""
    if not re.fullmatch(r"[a-z]\w*", name) or iskeyword(name):
        raise ValueError(f"stage {name!r}: the name becomes a section and a command; use a-z, 0-9 and _")

    def add(cls: S) -> S:
        if not is_dataclass(getattr(cls, "Config", TrainingConfig)):
            raise ValueError(f"stage {name!r}: its Config needs @dataclass(frozen=True, kw_only=True) above it")
        cls.name, cls.after = name, after
        return register(name)(cls)

    return add


class Stage(Registered, Generic[C]):
    """One stage of one variant. Subclasses define `Config`, and `run`; or derive from `TrainingStage`."""

    required: ClassVar[tuple[str, ...]] = ("Config", "run|updates")

    name: ClassVar[str]
    after: ClassVar[str | None]
    Config: ClassVar[type]
    """The dataclass of its section."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Stages whose folders it may read, where the variant has them."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Stages that a variant with this one must have."""
    uses: ClassVar[tuple[str, ...]] = ()
    """The shared sections of a recipe that it depends on, besides `data` and `seed`; dotted names are parts of them."""
    splits: ClassVar[tuple[Split, ...]] = ("train",)
    """The splits of the data set that it reads."""
    makes_encoder: ClassVar[bool] = False
    """Whether the stage is left out of recipes that take a finished tokenizer (`pretrained`)."""
    trains_decoder: ClassVar[bool] = False
    """Whether it uses the reconstruction loss, and so the networks of that loss."""
    keeps_latents: ClassVar[bool] = False
    """Whether it leaves latents unchanged, as one that trains only a decoder."""
    of_latents: ClassVar[bool] = False
    """Whether it depends on latents and not on their decoder: then a change of a stage that `keeps_latents` does not
    make it run again."""

    def __init__(self, config: C, inputs: Inputs) -> None:
        self.config, self.inputs = config, inputs

    @classmethod
    def reads_of(cls, config: C) -> tuple[str, ...]:
        """`reads`, and what this config makes it read besides."""
        return cls.reads

    def run(self) -> Facts:
        """Do the stage's work, writing into `inputs.out`; returns what done.json keeps besides the time."""
        raise NotImplementedError

    @classmethod
    def usual(cls, values: Values) -> Values:
        """A recipe's values, with defaults of this stage that depend on other fields or sections (a field's own default
        cannot). Called before the values are read; most stages change nothing."""
        return values

    @classmethod
    def parts(cls, config: C, sections: Sections) -> Iterable[tuple[str, Buildable]]:
        """(place in the recipe, config) of everything that the stage will `build()` and that may need a package or
        weights which this machine lacks."""
        return ()

    @classmethod
    def code(cls, config: C) -> Iterable[type]:
        """Classes whose code decides the result, besides those of the config's sections. The file of one that is not
        ours counts in the stage's fingerprint."""
        return (cls,)

    @classmethod
    def problems(cls, config: C, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        """Yield a sentence for each setting that does not fit the data, the latents or the stages that this one reads,
        whose configs are `others`. Called before any stage has run: `inputs` has no folders of other stages yet."""
        yield from ()

    @classmethod
    def require(cls, config: C, inputs: Inputs) -> None:
        """Raise ValueError if the finished stages, in `inputs.reads`, lack something that this one needs. Called before
        any stage runs."""


AnyStage = type[Stage[Any]]
"""The class of some stage."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Fields that every training stage has."""

    steps: Count
    """Training steps."""
    batch_size: BatchSize = 256
    """Images per step, over all ranks."""
    learning_rate: Rate = 1e-4
    """AdamW's step size after warm-up."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's momentum and second-moment decay."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled weight decay."""
    warmup: Wait = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the learning rate does after warm-up; "cosine" and "linear" fall to `final_learning_rate`, which is reached
    one step after the last."""
    final_learning_rate: Rate = added(0.0)
    """Where a falling `learning_rate` ends. A network's own rate, as the discriminator's, falls by the same factor."""
    decay_from: Annotated[float, Range(0, 1, "[)")] = added(0.0)
    """Share of the steps after which the learning rate begins to fall; 0 is as soon as warm-up has ended."""
    clip: Weight = 1.0
    """Largest gradient norm of one update; 0 turns clipping off."""
    ema: Decay = 0.9999
    """Decay of the averaged weights that are saved; early on min(ema, (1 + n) / (10 + n)) is used."""
    keep_at: tuple[Count, ...] = ()
    """Steps, ascending, at which a snapshot of the networks, averaged where they are, is kept in STAGE/snapshots,
    besides those of `run.keep_every`. `sample.snapshot` draws from one: so one training gives figures after 64, 400 and
    800 epochs."""

    def __post_init__(self) -> None:
        if any(later <= step for step, later in pairwise(self.keep_at)):
            raise ValueError(f"keep_at: {list(self.keep_at)} does not ascend; give each step once, in order")
        if self.keep_at and self.keep_at[-1] > self.steps:
            last = self.keep_at[-1]
            raise ValueError(f"keep_at: step {last} comes after the last of {self.steps}; leave it out, or raise steps")
        for name in ("final_learning_rate", "decay_from"):
            if self.schedule == "constant" and getattr(self, name):
                raise ValueError(f"{name}: schedule: constant does not fall; set linear or cosine, or leave it out")
        if self.final_learning_rate > self.learning_rate:
            above = f"{self.final_learning_rate:g} is above the learning_rate of {self.learning_rate:g}"
            raise ValueError(f"final_learning_rate: {above}, from which it falls; give at most that")
        if 0 < self.decay_from * self.steps < self.warmup:
            within = f"{self.decay_from:g} of {self.steps} steps is within the {self.warmup} of warmup"
            raise ValueError(f"decay_from: {within}, after which the fall begins anyway; leave it out, or raise it")

    def identity(self, values: Values) -> Values:
        """`keep_at` is left out: it changes no step, so a training that has begun goes on when it changes."""
        return {name: value for name, value in values.items() if name != "keep_at"}

    def keeps(self, step: int, every: int) -> bool:
        """Whether a snapshot is kept after that step. every: `run.keep_every`."""
        return step in self.keep_at or (every > 0 and step % every == 0)

    def kept(self, last: int, every: int) -> set[int]:
        """The steps up to `last` after which `keeps` holds."""
        regular = range(every, last + 1, every) if every > 0 else ()
        return {*regular, *(step for step in self.keep_at if step <= last)}


class Networks(nn.Module):
    """The networks of a training stage, each an attribute, declared with its type by a subclass. Those that train
    are saved under their attribute's name when the stage ends."""

    def __init__(self) -> None:
        super().__init__()
        self.trains: dict[str, list[nn.Parameter]] = {}
        """Update name -> the parameters it moves. Each gets an AdamW of its own."""
        self.learning_rates: dict[str, float] = {}
        """Update name -> learning rate where it differs from the stage's."""
        self.averaged: tuple[str, ...] = ()
        """Networks whose exponential moving average is kept; the average is what is saved."""
        self.decays: dict[str, float] = {}
        """Averaged network -> its decay where it differs from the stage's `ema`."""
        self.remembers: tuple[str, ...] = ()
        """Modules whose buffers carry state from step to step. Only checkpoints hold them."""

    def state(self) -> dict[str, nn.Module]:
        """Name -> module, of all that checkpoints hold."""
        return self.saved() | {name: getattr(self, name) for name in self.remembers}

    def saved(self) -> dict[str, nn.Module]:
        """The networks that hold a trained parameter, by name."""
        moving = {id(p) for parameters in self.trains.values() for p in parameters}
        return {name: m for name, m in self.named_children() if any(id(p) in moving for p in m.parameters())}


@dataclass
class Batch:
    """One step's data on the device."""

    data: Tensor
    """Images [n, c, h, w] in [-1, 1], or latents [n, C, H, W] normalised per channel."""
    labels: Tensor
    """int64 [n]."""
    step: int
    """0 at the first step."""
    steps: Count
    """Steps of the whole stage."""
    images: Tensor | None = None
    """The images of the latents, [n, c, h, w] in [-1, 1], for a stage that `sees_images`."""


@dataclass
class Update:
    """One update: the loop runs backward, clips, steps and averages for the parameters `Networks.trains[trains]`.

    Gradients are taken with respect to those parameters only; all others are frozen meanwhile.
    """

    trains: str
    loss: Tensor
    """The scalar that is differentiated."""
    log: Mapping[str, Loggable] = field(default_factory=dict)
    """Scalars to log. Tensors stay on the device until the loop writes a row; functions are called then."""
    value: Tensor | None = None
    """Logged as NAME/loss instead of `loss`, where `loss` has the right gradient but not the right value."""
    late: Mapping[str, Loggable] = field(default_factory=dict)
    """More scalars to log: a mapping that the backward pass fills."""

    def figures(self) -> dict[str, Loggable]:
        """Everything to log, once the backward pass has run."""
        shown = self.loss if self.value is None else self.value
        return {f"{self.trains}/loss": shown, **self.log, **self.late}


T = TypeVar("T", bound=TrainingConfig)
N = TypeVar("N", bound=Networks)


class TrainingStage(Stage[T], Generic[T, N]):
    """A stage that trains. It computes losses; the loop loads data, differentiates, steps, logs and saves."""

    draws: ClassVar[bool] = False
    """Whether it draws its own data, so that a batch may be larger than the data set."""
    flips: ClassVar[bool] = True
    """Whether its data are images, which are mirrored at random if `data.flip` is true; stored latents never are."""
    shows: ClassVar[str] = ""
    """The network of which `picture` shows what it makes; "" where there is nothing to see."""
    measured: ClassVar[str] = ""
    """The network of which `measure` gives figures on held-out data; "" where it gives none."""
    prolongs: ClassVar[bool] = False
    """Whether its updates do not depend on `steps`, so that a longer training may go on from a shorter one's state."""
    takes_parts: ClassVar[bool] = False
    """Whether its losses are means over images, so that `run.accumulate` may give it a batch in parts: `updates` is
    called for each part, and their updates of the same turn are averaged. False where images of a batch are compared
    with each other, or where a batch's gradients or statistics give a weight, as with an adversary."""

    def prepare(self) -> None:
        """Write the files that training reads. Called on every rank before `build`, and again on resuming."""

    def build(self) -> N:
        """Make the networks. A dry run calls this on the meta device, with `inputs` that load no weights."""
        raise NotImplementedError

    def data(self) -> Items:
        """The data set of its batches; not asked of a stage that `draws` its own."""
        return self.inputs.train_set

    @classmethod
    def items(cls, sections: Sections, images: int) -> int:
        """How many items `data` has for so many training images; for checks before any stage has run."""
        return images

    @property
    def sees_images(self) -> bool:
        """Whether its losses look at the images of its items too: `Batch.images`."""
        return False

    def images(self) -> Items:
        """The images of the items of `data`, item by item, for a stage that `sees_images`."""
        raise NotImplementedError

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of an item of its batches, for a plan, which has no data; () where the stage draws them."""
        data = self.inputs.data
        of_item = self.inputs.latent_shape if data.are_latents else (data.channels, data.size, data.size)
        return () if self.draws else of_item

    def kinds(self) -> dict[int, float]:
        """{step: share of all steps that cost the same}, of sum 1: `dmvae plan` counts the work of these alone."""
        return {1: 1.0}

    def updates(self, networks: N, batch: Batch, rng: Random) -> Iterator[Update]:
        """One step's updates, in order. The loop applies each before it asks for the next."""
        raise NotImplementedError

    def picture(self, network: nn.Module) -> Tensor:
        """What the network that it `shows` makes now: uint8 images [rows, columns, c, h, w] on the CPU. The network has
        averaged weights, is not sharded, and is in evaluation mode; one rank calls. Choose inputs that do not depend on
        the step, so that pictures of different steps compare."""
        raise NotImplementedError

    def measure(self, network: nn.Module) -> Mapping[str, Tensor | float]:
        """{name: figure} of the network that is `measured`, on data that it does not train on: logged as "test/NAME".
        The network is as in `picture`, and one rank asks, so nothing in it may wait for other ranks. Data, noise and
        times are the same at every step, so that only the weights move the figures."""
        raise NotImplementedError

    def bounds(self) -> Sequence[Bound]:
        """Figures that must stay within bounds. If one does not, or a figure or a weight is not finite, the loop goes
        back to an older checkpoint with smaller learning rates; the second time it raises. (): raises at once."""
        return ()

    def done(self, networks: N) -> bool:
        """Whether training has reached its goal and can end before the last step. Must be the same on all ranks, and
        depend only on what checkpoints hold."""
        return False

    @contextmanager
    def finished(self, networks: N) -> Iterator[None]:
        """Inside the block, networks are as they are saved: adapt them to the averaged weights, which are in place.
        Afterwards they are as before, since a training goes on after a snapshot. Entered on every rank."""
        yield


AnyTraining = TrainingStage[Any, Any]
"""Some training stage."""
