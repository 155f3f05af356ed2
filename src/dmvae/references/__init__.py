"""Reference distributions: one file each. A reference says how the latents shall be distributed.

How latents are normalised, the one rule: a reference is a distribution of *normalised* latents, (z - mean) / std of
the tokenizer's raw ones. `features` with the tokenizer's own bottleneck has the mean and std of those features: raw
latents shall follow them as they are; `noise_states` has those of what it noises. Every other reference comes at unit
scale, foreign features because they are standardised per channel, and takes mean and std from the tokenizer's *initial*
latents: then matching starts with latents whose per-channel mean and std are the reference's already, whatever scale
the tokenizer happens to have, and moves their shape. The references written as formulas can be had for raw latents
instead (`scale: raw`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dmvae.datasets import Dataset, DatasetConfig, Items
from dmvae.encoders import Encoder
from dmvae.flow.guidance import Velocity
from dmvae.models.base import Encodes
from dmvae.registry import Registered
from dmvae.runtime.random import Random
from dmvae.tokenizers.autoencoder import Autoencoder


class Surroundings(Protocol):
    """What a reference is built in: the latents that shall follow it, and the data they come from. `Inputs` is one;
    outside of a recipe any object with what the reference asks for will do."""

    out: Path
    """Folder for the files that it makes; a second call finds them there."""
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
        """The images' size and channels, among the rest."""
        ...

    @property
    def train_set(self) -> Dataset: ...

    def autoencoder(self) -> Autoencoder:
        """The tokenizer before matching."""
        ...

    def new_encoder(self) -> Encoder:
        """Its encoder with random weights."""
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
    """float32 [C]: what is subtracted from raw latents before they are compared; zeros where raw latents
    shall follow the reference as it is."""
    std: Tensor
    """float32 [C]: what they are divided by."""

    @property
    def velocity(self) -> Velocity | None:
        """(z_t [n, C, H, W], t [n], labels [n]) -> velocity in closed form, or None: then a teacher is trained.
        The label `num_classes` means "no label"."""

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        """(latents [n, C, H, W] float32, labels int64 [n]). Every class occurs: the teacher is asked about them all.
        Where labels carry no information, or a class has no latents of its own, its label stands for the whole
        reference."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Registered):
    """A reference has no field in common with the others."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    @property
    def closed_form(self) -> bool:
        """Whether what `build` returns has a `velocity`: no teacher is trained. For a dry run, which builds nothing."""
        return False

    def check(self, inputs: Surroundings) -> None:
        """Raise ValueError for what is wrong with the reference and can be told before anything is trained: `inputs`
        has no stage's folder yet."""

    def build(self, inputs: Surroundings) -> Reference:
        """Open the reference for the recipe's latents: `dmvae.inputs.inputs.latent_shape` is their
        shape; files that it makes go under `inputs.out`, where a second call finds them.

        Raises:
            ValueError: when it cannot have that shape, or its data is missing.
        """
        raise NotImplementedError
