"""Decoding of large images in tiles.

It is exact. The deepest level, whose attention sees the whole image, is small and runs without tiles. At every
GroupNorm after it the tiles wait for each other and share the mean and variance of the whole image. So a tiled image
equals the untiled one up to rounding; independent tiles would differ in tone.

Shapes: n images, c channels, H W the cells after the deepest level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.models.layers import ResidualBlock

Live = tuple[Tensor, ...]
"""The activations that a tile keeps while it waits at a norm; the last one is to be normalised."""


class Tileable(Protocol):
    """What a decoder must have: a deepest level, residual levels, and a last norm and convolution."""

    norm_out: nn.GroupNorm
    conv_out: nn.Conv2d

    def deepest(self, z: Tensor) -> Tensor:
        """z [n, C, H, W] -> activations before the first level."""
        ...

    def levels(self) -> list[tuple[list[ResidualBlock], nn.Module]]:
        """(residual blocks, the step to the next level) from the deepest level on."""
        ...

    def fit(self, x: Tensor, z: Tensor) -> Tensor:
        """Images x at the size that belongs to z."""
        ...


@dataclass(frozen=True)
class Span:
    """Cells start .. stop - 1 along one axis, computed from the cells low .. high - 1."""

    start: int
    stop: int
    low: int
    high: int

    def core(self, scale: int) -> slice:
        """The span's own part of a tile whose cells have become `scale` pixels."""
        return slice((self.start - self.low) * scale, (self.stop - self.low) * scale)


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """`length` cells in spans of at most `tile`, each computed with up to `halo` more cells at both ends."""
    return [
        Span(start, min(start + tile, length), max(start - halo, 0), min(start + tile + halo, length))
        for start in range(0, length, tile)
    ]


@torch.no_grad()
def decode_tiled(decoder: Tileable, z: Tensor, tile: int) -> Tensor:
    """`decoder(z)` of a `dmvae.decoders.conv.ConvolutionalDecoder`, for z [n, C, H, W]. The activations of one tile of
    tile x tile cells are on the device at a time, those of the others in main memory. No gradient."""
    x = decoder.deepest(z)
    halo = receptive_radius(decoder)
    grid = [(row, column) for row in spans(x.shape[2], tile, halo) for column in spans(x.shape[3], tile, halo)]
    norms, works = _steps(decoder)
    tiles = [
        _park(norms[0], (x[:, :, row.low : row.high, column.low : column.high],), (row, column)) for row, column in grid
    ]
    for work, norm in zip(works, norms[1:], strict=False):  # no norm follows the last work, below
        whole = _whole_image(tiles)
        for i, cells in enumerate(grid):
            tiles[i] = _park(norm, work(*_resumed(tiles[i], *whole, z.device)), cells)
    whole = _whole_image(tiles)
    outputs = [works[-1](*_resumed(tile, *whole, z.device))[-1] for tile in tiles]
    return decoder.fit(_stitch(outputs, grid, x.shape), z)


def receptive_radius(decoder: Tileable) -> int:
    """Cells beyond a tile that its pixels depend on: one pixel for each 3x3 convolution, at its resolution."""
    radius, scale = 0.0, 1
    for blocks, upsample in decoder.levels():
        radius += 2 * len(blocks) / scale
        if not isinstance(upsample, nn.Identity):
            scale *= 2
            radius += 1 / scale
    return int(-(-(radius + 1 / scale) // 1))


def _steps(decoder: Tileable) -> tuple[list[nn.GroupNorm], list[Callable[..., Live]]]:
    """The levels cut at their norms: works[i] computes, from what was live at norms[i] and that norm's result, what is
    live at the next norm.

    Functions, not a Python generator per tile: a generator that waits would keep its tensors on the device.
    """
    norms: list[nn.GroupNorm] = []
    works: list[Callable[..., Live]] = []
    for blocks, upsample in decoder.levels():
        for block in blocks:
            norms += [block.norm1, block.norm2]
            end = upsample if block is blocks[-1] else nn.Identity()
            works += [partial(_first_half, block), partial(_second_half, block, end)]
    return [*norms, decoder.norm_out], [*works, partial(_image, decoder)]


def _first_half(block: ResidualBlock, x: Tensor, normed: Tensor) -> Live:
    return x, block.conv1(F.silu(normed))


def _second_half(block: ResidualBlock, end: nn.Module, x: Tensor, h: Tensor, normed: Tensor) -> Live:
    return (end(block.conv2(F.silu(normed)) + block.shortcut(x)),)


def _image(decoder: Tileable, x: Tensor, normed: Tensor) -> Live:
    return (decoder.conv_out(F.silu(normed)),)


@dataclass
class _Parked:
    """A tile that waits for a norm, with the moments [n, groups] of its own pixels."""

    norm: nn.GroupNorm
    live: Live
    count: int
    mean: Tensor
    variance: Tensor


def _park(norm: nn.GroupNorm, live: Live, cells: tuple[Span, Span]) -> _Parked:
    x = live[-1]
    rows, columns = (
        span.core(length // (span.high - span.low)) for span, length in zip(cells, x.shape[2:], strict=True)
    )
    own = x[:, :, rows, columns].unflatten(1, (norm.num_groups, -1)).flatten(2).float()
    variance, mean = torch.var_mean(own, dim=2, correction=0)
    return _Parked(norm, tuple(t.cpu() for t in live), own.shape[2], mean, variance)


def _resumed(tile: _Parked, mean: Tensor, variance: Tensor, device: torch.device) -> Live:
    """What the tile kept, on the device again, and the norm's result for the last of it."""
    live = tuple(t.to(device) for t in tile.live)
    return (*live, _normalise(tile.norm, live[-1], mean, variance))


def _whole_image(tiles: list[_Parked]) -> tuple[Tensor, Tensor]:
    """(mean, variance) [n, groups] over all tiles' pixels, combined as in Chan et al. 1979."""
    counts = torch.tensor([tile.count for tile in tiles], device=tiles[0].mean.device)
    weights = (counts / counts.sum())[:, None, None]
    means, variances = torch.stack([t.mean for t in tiles]), torch.stack([t.variance for t in tiles])
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0)


def _normalise(norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    per_group = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(per_group, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(per_group, 1) * scale
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)


def _stitch(tiles: list[Tensor], grid: list[tuple[Span, Span]], cells: torch.Size) -> Tensor:
    row, column = grid[0]
    scale = tiles[0].shape[2] // (row.high - row.low)
    whole = tiles[0].new_empty(len(tiles[0]), tiles[0].shape[1], cells[2] * scale, cells[3] * scale)
    for tile, (row, column) in zip(tiles, grid, strict=True):
        place = (slice(row.start * scale, row.stop * scale), slice(column.start * scale, column.stop * scale))
        whole[(slice(None), slice(None), *place)] = tile[:, :, row.core(scale), column.core(scale)]
    return whole
