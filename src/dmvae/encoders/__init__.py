"""Encoders: one file each. An encoder maps images [n, c, h, w] in [-1, 1] to features
[n, channels, h / stride, w / stride] and says its `.channels` and `.stride`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dmvae.registry import Registered


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

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> nn.Module:
        """The network for `size` x `size` images of `channels` channels.

        With `pretrained`, its public weights where the encoder has some (an encoder that is trained
        from scratch ignores it). An artifact is always rebuilt with `pretrained=False` and then loaded.
        """
        raise NotImplementedError
