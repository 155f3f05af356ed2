"""Encoders: one file each. An encoder maps images [n, c, h, w] in [-1, 1] to features
[n, channels, h / stride, w / stride] and says its `.channels` and `.stride`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from dmvae.registry import Registered, is_ours


class Encoder(nn.Module):
    """What `EncoderConfig.build` returns. A module with these attributes need not derive from it."""

    channels: int
    """Channels of the features."""
    stride: int
    """Image pixels per feature, along each side."""

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor:
            """images [n, c, h, w] in [-1, 1] -> features [n, channels, h / stride, w / stride]."""
            ...


def levels(encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Features [n, c', h', w'] of images [n, c, h, w] at several depths of an encoder that has a method `levels`,
    shallow ones first; else its features alone."""
    of: Callable[[Tensor], list[Tensor]] | None = getattr(encoder, "levels", None)
    return [encoder(images)] if of is None else of(images)


def require_stride(encoder: Encoder, stride: int, patch: int, place: str) -> None:
    """Raise ValueError, naming the field `place`, unless the encoder has one feature for each patch of `patch` x
    `patch` latents, of `stride` pixels each."""
    if encoder.stride != stride * patch:
        what = f"a patch of {patch} latents" if patch > 1 else "a latent"
        raise ValueError(
            f"{place}: this encoder has one feature per {encoder.stride} pixels along each side, but {what} covers "
            f"{stride * patch}; give an encoder of stride {stride * patch} (of conv its `stride`, of effnet reduce / "
            "enlarge, of timm patch_size, or what resolution makes of it)"
        )


def require_features(encoder: Encoder, place: str, *, size: int, channels: int) -> None:
    """Raise ValueError, naming the field `place`, for an encoder that cannot be run on `size` x `size` images of
    `channels` channels, or gives other features than it says. Only on the meta device, where checks build networks
    before anything runs: a training finds out by its own images."""
    images = torch.empty(2, channels, size, size)
    if not images.is_meta:
        return
    try:
        found: object = encoder(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(error, ValueError) and not is_ours(type(encoder)):
            return  # a plugin's may ask for values, which meta tensors do not have
        raise ValueError(f"{place}: this encoder cannot be run on images of {size} pixels: {error}") from error
    wanted = [2, encoder.channels, size // encoder.stride, size // encoder.stride]
    if not isinstance(found, Tensor) or list(found.shape) != wanted:
        told = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"{place}: this encoder gives {told} for two images of {size} pixels, where its channels and stride say "
            f"{wanted}; choose another"
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Registered):
    """Base class of encoders' configs. They have no fields in common."""

    required: ClassVar[tuple[str, ...]] = ("build",)

    @property
    def starts_random(self) -> bool:
        """Whether `build(pretrained=True)` gives random weights, so that the encoder is of no use before training."""
        return False

    def missing(self) -> list[str]:
        """What `build(pretrained=True)` would have to download, or lacks, for a dry run to print."""
        return []

    def absent(self) -> str:
        """The local file of weights that `build(pretrained=True)` would not find, in words; "" where it finds all."""
        return ""

    def check(self, *, size: int) -> None:
        """Raise ValueError for what does not fit images of `size` x `size` pixels. Called before anything runs."""

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Encoder:
        """The network for `size` x `size` images of `channels` channels.

        With `pretrained` it has its public weights, if there are some. An artifact is always rebuilt with
        `pretrained=False` and then loaded. Raises ValueError for images that the encoder does not take.
        """
        raise NotImplementedError


def load_public(encoder: nn.Module, config: EncoderConfig, *, size: int, channels: int) -> None:
    """Give an encoder that `config` built for such images its public weights, or random ones where it has none. Raises
    ValueError for a plugin's that has none and does not say so: a frozen one would stay random in silence."""
    public = config.build(size=size, channels=channels, pretrained=True).state_dict()
    if not is_ours(type(config)) and not config.starts_random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1 + torch.initial_seed() % 2**32)
            again = config.build(size=size, channels=channels, pretrained=True).state_dict()
        matrices = [name for name, value in public.items() if value.ndim > 1]  # random norms and biases are alike, too
        if matrices and not any(torch.equal(public[name], again[name]) for name in matrices):
            raise ValueError(
                f"encoder {config.type!r}: its weights are others each time that it is built with pretrained=True, so "
                "they are random; give it the property starts_random, which returns True"
            )
    encoder.load_state_dict(public)
