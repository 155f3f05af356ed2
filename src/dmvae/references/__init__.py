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

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from dmvae.registry import Registered
from dmvae.runtime.random import Random

if TYPE_CHECKING:
    from dmvae.inputs import Inputs


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
    def velocity(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """(z_t [n, C, H, W], t [n], labels [n]) -> velocity in closed form, or None: then a teacher is trained.
        The label `num_classes` means "no label"."""

    def sample(self, n: int, generator: Random) -> tuple[Tensor, Tensor]:
        """(latents [n, C, H, W] float32, labels int64 [n]). Every class occurs: the teacher is asked about them all.
        Where labels carry no information, or a class has no latents of its own, its label stands for the whole
        reference."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(Registered):
    """A reference has no field in common with the others."""

    @property
    def closed_form(self) -> bool:
        """Whether what `build` returns has a `velocity`: no teacher is trained. For a dry run, which builds nothing."""
        return False

    def check(self, inputs: Inputs) -> None:
        """Raise ValueError for what is wrong with the reference and can be told before anything is trained: `inputs`
        has no stage's folder yet."""

    def build(self, inputs: Inputs) -> Reference:
        """Open the reference for the recipe's latents: `dmvae.inputs.describe_latents(inputs.recipe)` is their
        shape; files that it makes go under `inputs.out`, where a second call finds them.

        Raises:
            ValueError: when it cannot have that shape, or its data is missing.
        """
        raise NotImplementedError
