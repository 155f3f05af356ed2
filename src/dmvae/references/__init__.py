"""Reference distributions: one file each. A reference is the distribution that the latents should have.

One rule for normalisation: a reference is a distribution of *normalised* latents, (z - mean) / std, where z are the
tokenizer's raw latents. Which mean and std:

- `features` with the tokenizer's own bottleneck: those of these features, so that raw latents are matched to the raw
  features. `noise_states`: those of the reference that it adds noise to.
- every other reference has unit scale (features of other networks are standardised per channel) and takes mean and std
  of the tokenizer's *initial* latents. So, whatever the tokenizer's scale, matching starts with latents that already
  have the reference's mean and std per channel, and changes the shape of their distribution.
- references given as formulas can describe raw latents instead (`scale: raw`): then mean is 0 and std 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dmvae.datasets import Dataset, DatasetConfig, Items
from dmvae.encoders import Encoder
from dmvae.flow.guidance import Velocity
from dmvae.models.base import Encodes, Tokenizer
from dmvae.registry import Registered
from dmvae.runtime.random import Random, seed_of
from dmvae.runtime.transfer import send


class Surroundings(Protocol):
    """What `ReferenceConfig.build` is given: the latents' shape and the data they come from. In a recipe this is an
    `Inputs`; elsewhere, any object that has the attributes which the reference uses."""

    out: Path
    """Folder for the files that the reference writes; a second `build` finds them there."""
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def num_classes(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DatasetConfig:
        """The data set's config; it has the images' `size` and `channels`."""
        ...

    @property
    def train_set(self) -> Dataset: ...

    def autoencoder(self) -> Tokenizer:
        """The tokenizer before matching."""
        ...

    def new_encoder(self) -> Encoder:
        """Its encoder with random weights. Raises ValueError for a tokenizer that the recipe did not build itself."""
        ...

    def encode(self, tokenizer: Encodes, dataset: Items, folder: Path, title: str) -> None:
        """Write a data set's latents to shards in `folder`; an interrupted pass goes on where it stopped."""
        ...

    def batches(self, dataset: Items) -> Iterator[Tensor]:
        """The data of a data set in order, in batches, on the device, as networks take them."""
        ...


class Reference(Protocol):
    """What `ReferenceConfig.build` returns.

    Samples are normalised: the tokenizer's raw latents z correspond to (z - mean) / std.
    """

    mean: Tensor
    """float32 [C], subtracted from raw latents; zeros where the reference describes raw latents."""
    std: Tensor
    """float32 [C], by which they are then divided."""

    @property
    def velocity(self) -> Velocity | None:
        """(z_t [n, C, H, W], t [n], labels [n]) -> velocity in closed form, or None: then a teacher is trained.
        The label `num_classes` means "no label"."""

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        """(latents [n, C, H, W] float32, labels int64 [n]). Every class must occur, because matching asks the teacher
        about every class. Where labels carry no information, or a class has no samples of its own, draw that label's
        samples from the whole reference."""
        ...


class Unlabelled:
    """A reference whose labels carry no information: each is replaced by `null_label`, the number of classes, so that
    nothing learns from them."""

    def __init__(self, reference: Reference, null_label: int) -> None:
        self.of, self.null_label = reference, null_label
        self.mean, self.std, self.velocity = reference.mean, reference.std, reference.velocity

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        return self._without(self.of.sample(n, rng))

    def sample_on(self, n: int, rng: Random, device: torch.device) -> tuple[Tensor, Tensor]:
        return self._without(draw(self.of, n, rng, device))

    def _without(self, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return found[0], torch.full_like(found[1], self.null_label)


def draw(reference: Reference, n: int, rng: torch.Generator, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(latents [n, C, H, W], labels [n]) of `reference.sample(n, rng)`, drawn on the CPU and copied to the device
    without waiting for it. A reference may have `sample_on(n, rng, device)`, which is called instead: it can copy
    stored latents first and normalise them on the device. No gradient flows back into the reference. Raises ValueError
    where it gives something else."""
    device, cpu = torch.device(device), Random.of(rng, rng.device).on_cpu()
    on: Callable[[int, Random, torch.device], tuple[Tensor, Tensor]] | None = getattr(reference, "sample_on", None)
    found = on(n, cpu, device) if on is not None else reference.sample(n, cpu)
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(x, Tensor) for x in found):
        raise ValueError(
            f"reference: sample(n, rng) of {type(reference).__name__} gives {type(found).__name__}; give two tensors, "
            "(latents [n, C, H, W], labels int64 [n])"
        )
    z, labels = (send(x, device) for x in found)
    return z.detach(), labels


def require_repeated(name: str, sample: Callable[[Random], tuple[Tensor, Tensor]]) -> None:
    """Raise ValueError where `sample` gives other latents the second time that it gets the same random numbers."""
    first, second = (sample(Random(seed_of("tried")))[0] for _ in range(2))
    if (first - second).abs().max() > 0.01 * first.abs().max():  # networks on a GPU may differ by rounding
        raise ValueError(
            f"{name}: the same `rng` gave other samples the second time, so no run could be repeated or go on: draw "
            "all random numbers from `rng` (rng.normal(n, ...), rng.uniform(n, ...), rng.integers(high, n))"
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Registered):
    """Base class of references. They have no fields in common."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    @property
    def closed_form(self) -> bool:
        """Whether what `build` returns has a `velocity`: no teacher is trained. For a dry run, which builds nothing."""
        return False

    @property
    def labelled(self) -> bool:
        """Whether the labels of its samples mean something, as far as that is known before it is built."""
        return True

    def labelled_for(self, inputs: Surroundings) -> bool:
        """As `labelled`, with the latents' shape known. Override it where only drawn samples show it."""
        return self.labelled

    def check(self, inputs: Surroundings) -> None:
        """Raise ValueError for mistakes that can be found before any stage has run."""

    def build(self, inputs: Surroundings) -> Reference:
        """Open the reference for latents of shape `inputs.latent_shape`, (C, H, W). Files that it writes go under
        `inputs.out`, where a second call finds them.

        Raises ValueError where it cannot have that shape, and where its data is missing.
        """
        raise NotImplementedError
