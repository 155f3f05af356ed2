"""Alignments: one file each. Latents are pulled towards a frozen encoder's features while the tokenizer trains.

Latents z [n, C, H, W]; the frozen encoder's features f [n, F, h, w] of the same images; and a projection, a network
that trains along and brings the two into one space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from dmvae import config as configs
from dmvae.encoders import EncoderConfig
from dmvae.ranges import Weight
from dmvae.registry import Registered
from dmvae.runtime.random import Random


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(Registered):
    """Alignment of the latents to the features of a frozen encoder."""

    required: ClassVar[tuple[str, ...]] = ("projection", "losses")
    unnamed: ClassVar[str] = "pointwise"

    target: EncoderConfig | None = configs.added(None)
    """The encoder whose features latents are aligned to, with its public weights: a large one, as VA-VAE has, where the
    tokenizer's own is small. Its stride must be that of the latents, or of the patches by which a generator reads them.
    null: the tokenizer's own encoder, as it was before this stage."""
    weight: Weight = 0.1
    """Weight of the alignment loss."""
    balance: Literal["fixed", "gradient"] = "gradient"
    """"gradient": the weight is the ratio of the alignment gradient's norm to the reconstruction gradient's. VA-VAE
    takes both norms at the encoder's last layer; here it is at the latents, where they cost nothing.
    "fixed": loss = reconstruction + weight * alignment."""

    @property
    def patch(self) -> int:
        """Latents along each side for one feature."""
        return 1

    def projection(self, latent_shape: tuple[int, int, int], num_classes: int, width: int) -> nn.Module:
        """The network that trains along, for latents (C, H, W) and features of F = `width` channels; `nn.Identity()`
        where nothing has to be learned."""
        raise NotImplementedError

    def losses(
        self, projection: nn.Module, z: Tensor, labels: Tensor, features: Tensor, rng: Random
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(scalar whose gradient at z moves the tokenizer, unweighted; scalar that trains the projection; figures to
        log). labels: int64 [n]."""
        raise NotImplementedError


def as_promised(name: str, given: object) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`given` as what `losses` returns, checked. Raises ValueError, naming the alignment, which may be a plugin's."""
    what = f"tokenizer.alignment: {name!r} gives"
    if not isinstance(given, tuple) or len(given) != 3:
        told = f"{len(given)} values" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise ValueError(f"{what} {told}; give three: loss for the latents, loss for the projection, figures to log")
    loss, own, log = given
    for whose, found in (("latents", loss), ("projection", own)):
        if not isinstance(found, Tensor) or found.ndim:
            told = f"of shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"{what} a loss for the {whose} that is {told}; give a scalar tensor, such as its mean")
    if not loss.requires_grad:
        raise ValueError(f"{what} a loss for the latents that does not depend on them; is it detached?")
    if not isinstance(log, dict):
        raise ValueError(f"{what} figures that are a {type(log).__name__}; give a dict, {{}} for none")
    return loss, own, log
