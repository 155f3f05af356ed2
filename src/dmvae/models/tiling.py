"""Decoding of large images in tiles.

It is exact: the deepest level, whose attention sees the whole image, runs at once (it is small),
and at every GroupNorm after it the tiles wait for each other and share the mean and variance of the whole image.
So a tiled image equals the untiled one to rounding, where independent tiles would differ in tone.

Shapes: n images, c channels, H W the cells after the deepest level.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmvae.models.decoder import Decoder

Live = tuple[Tensor, ...]
Request = tuple[nn.GroupNorm, Live]
"""A norm, and the activations that a tile holds on to, the last of which is to be normalised."""


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
    return [
        Span(start, min(start + tile, length), max(start - halo, 0), min(start + tile + halo, length))
        for start in range(0, length, tile)
    ]


@torch.no_grad()
def decode_tiled(decoder: Decoder, z: Tensor, tile: int) -> Tensor:
    """`decoder(z)` for z [n, C, H, W] with the activations of one tile of tile x tile cells on the device at a
    time, the others' in main memory. No gradient."""
    x = decoder.deepest(z)
    halo = receptive_radius(decoder)
    grid = [(row, column) for row in spans(x.shape[2], tile, halo) for column in spans(x.shape[3], tile, halo)]
    walks = [_walk(decoder, x[:, :, row.low : row.high, column.low : column.high]) for row, column in grid]
    requests = [_park(next(walk), cells) for walk, cells in zip(walks, grid, strict=True)]
    while True:
        shift_scale = _whole_image(requests)
        outputs = []
        for i, (walk, cells) in enumerate(zip(walks, grid, strict=True)):
            norm, live = requests[i].norm, tuple(t.to(z.device) for t in requests[i].live)
            try:
                requests[i] = _park(walk.send((*live, _normalise(norm, live[-1], *shift_scale))), cells)
            except StopIteration as end:
                outputs.append(end.value)
        if outputs:
            return decoder.fit(_stitch(outputs, grid, x.shape), z)


def receptive_radius(decoder: Decoder) -> int:
    """Cells beyond a tile that its pixels depend on: one pixel for each 3x3 convolution, at its resolution."""
    radius, scale = 0.0, 1
    levels: Any = reversed(decoder.up)
    for level in levels:
        radius += 2 * len(level.block) / scale
        if not isinstance(level.upsample, nn.Identity):
            scale *= 2
            radius += 1 / scale
    return int(-(-(radius + 1 / scale) // 1))


def _walk(decoder: Decoder, x: Tensor) -> Generator[Request, Live, Tensor]:
    """The levels on one tile, which asks for every norm's result instead of computing it from what it sees."""
    levels: Any = reversed(decoder.up)
    for level in levels:
        for block in level.block:
            x, normed = yield block.norm1, (x,)
            h = block.conv1(F.silu(normed))
            x, h, normed = yield block.norm2, (x, h)
            x = block.conv2(F.silu(normed)) + block.shortcut(x)
        x = level.upsample(x)
    x, normed = yield decoder.norm_out, (x,)
    return decoder.conv_out(F.silu(normed))


@dataclass
class _Parked:
    """A tile that waits for a norm, with the moments [n, groups] of its own pixels."""

    norm: nn.GroupNorm
    live: Live
    count: int
    mean: Tensor
    variance: Tensor


def _park(request: Request, cells: tuple[Span, Span]) -> _Parked:
    norm, live = request
    x = live[-1]
    rows, columns = (
        span.core(length // (span.high - span.low)) for span, length in zip(cells, x.shape[2:], strict=True)
    )
    own = x[:, :, rows, columns].unflatten(1, (norm.num_groups, -1)).flatten(2).float()
    variance, mean = torch.var_mean(own, dim=2, correction=0)
    return _Parked(norm, tuple(t.cpu() for t in live), own.shape[2], mean, variance)


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
