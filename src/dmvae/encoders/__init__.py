"""Encoders: one file each. An encoder maps images [n, c, h, w] in [-1, 1] to features
[n, channels, h / stride, w / stride] and says its `.channels` and `.stride`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from dmvae.registry import Registered


class Encoder(nn.Module):
    """What `EncoderConfig.build` returns; a module that has all this without deriving from it does too."""

    channels: int
    """Of the features."""
    stride: int
    """Image pixels per feature, along each side."""

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor:
            """images [n, c, h, w] in [-1, 1] -> features [n, channels, h / stride, w / stride]."""
            ...


def levels(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Features [n, c', h', w'] of images [n, c, h, w] at several depths of an encoder that gives them by a method
    `levels`, shallow ones first; of another one its features alone."""
    of: Callable[[Tensor], list[Tensor]] | None = getattr(encoder, "levels", None)
    return [encoder(images)] if of is None else of(images)


def require_stride(encoder: Encoder, stride: int, patch: int, place: str) -> None:
    """Raise ValueError, naming the field, unless there is a feature for each patch of latents along each side, each of
    `stride` pixels."""
    if encoder.stride != stride * patch:
        what = f"a patch of {patch} latents" if patch > 1 else "a latent"
        raise ValueError(
            f"{place}: this encoder has one feature per {encoder.stride} pixels along each side, but {what} covers "
            f"{stride * patch}; give an encoder of stride {stride * patch} (of conv its `stride`, of effnet reduce / "
            "enlarge, of timm patch_size, or what resolution makes of it)"
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Registered):
    """Fields that every encoder has."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    @property
    def starts_random(self) -> bool:
        """Whether `build(pretrained=True)` gives random weights, so that the encoder means nothing untrained."""
        return False

    def missing(self) -> list[str]:
        """What `build(pretrained=True)` would have to fetch, or lacks, for a dry run to tell."""
        return []

    def check(self, *, size: int) -> None:
        """Raise ValueError for what does not fit images of `size` pixels along each side; before anything runs."""

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Encoder:
        """The network for `size` x `size` images of `channels` channels.

        With `pretrained`, its public weights where the encoder has some (an encoder that is trained
        from scratch ignores it). An artifact is always rebuilt with `pretrained=False` and then loaded.
        """
        raise NotImplementedError


def load_public(encoder: nn.Module, config: EncoderConfig, *, size: int, channels: int) -> None:
    """Give an encoder that `config` built for such images its public weights; random ones where it has none."""
    encoder.load_state_dict(config.build(size=size, channels=channels, pretrained=True).state_dict())
