"""Procedural coloured shapes: a data set without files, for a first run, tests and the documentation.

Each shape is a signed distance function of points in its own frame (negative inside, unit about
one radius), so that every size of image shows the same picture, antialiased.

Shapes: n images, H height, W width, p points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dmvae.datasets import DatasetConfig, Split
from dmvae.datasets.memory import MemoryDataset, to_channels
from dmvae.ranges import Range, Seed
from dmvae.registry import register
from dmvae.runtime.hashing import digest


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return torch.hypot(x, y) - radius


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _star(x: Tensor, y: Tensor, points: int, inner: float) -> Tensor:
    """Corners at radius 1, notches at radius `inner`; inner = cos(pi/points) is the regular polygon."""
    half = math.pi / points
    angle = (torch.remainder(torch.atan2(y, x) + half, 2 * half) - half).abs()
    radius = torch.hypot(x, y)
    edge_x, edge_y = inner * math.cos(half) - 1, inner * math.sin(half)
    cross = (radius * torch.sin(angle)) * edge_x - (radius * torch.cos(angle) - 1) * edge_y
    return -cross / math.hypot(edge_x, edge_y)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """After Inigo Quilez, 2D distance functions; y points up."""
    x, y = x.abs() * 0.65, 0.56 - y * 0.65
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    middle = (x + y).clamp(min=0) / 2
    below = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - middle, y - middle)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, below) / 0.65


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: _disc(x, y, 0.85),
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "triangle": lambda x, y: _star(x, y, 3, math.cos(math.pi / 3)),
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.68).abs() - 0.21,
    "star": lambda x, y: _star(x, y, 5, 0.42),
    "moon": lambda x, y: torch.maximum(_disc(x, y, 0.9), -_disc(x - 0.42, y, 0.72)),
    "heart": _heart,
}
_CHUNK_PIXELS = 2**21  # bounds the float work space to some 100 MB


@register("shapes")
@dataclass(frozen=True, kw_only=True)
class Shapes(DatasetConfig):
    """One shape per image, of random colour, place, size and rotation on a shaded background."""

    num_classes: Annotated[int, Range(1, len(SHAPES))] = len(SHAPES)
    """Number of classes: the first of circle, square, triangle, cross, ring, star, moon, heart."""
    count: Annotated[int, Range(1, 10**7)] = 4096
    """Images of the train split."""
    test_count: Annotated[int, Range(1, 10**7)] = 512
    """Images of the test split."""
    seed: Seed = 0
    """Another seed draws other images."""

    def build(self, split: Split) -> MemoryDataset:
        total = self.count if split == "train" else self.test_count
        n = min(total, self.limit or total)
        generator = torch.Generator().manual_seed(2 * self.seed + (split == "test"))
        uniform = torch.rand(total, 14, generator=generator)[:n]
        labels = torch.arange(n) % self.num_classes  # balanced in every prefix
        chunk = max(1, _CHUNK_PIXELS // self.size**2)
        images = [
            to_channels(draw(u, label, self.size), self.channels)
            for u, label in zip(uniform.split(chunk), labels.split(chunk), strict=True)
        ]
        # a hash of the config: pixels may differ in the last bit between machines
        fingerprint = digest("shapes", 1, self.num_classes, total, n, self.seed, self.size, self.channels, split)
        return MemoryDataset(torch.cat(images), labels, tuple(SHAPES)[: self.num_classes], fingerprint=fingerprint)


def draw(uniform: Tensor, labels: Tensor, size: int) -> Tensor:
    """uint8 images [n, 3, size, size] from `uniform`, float [n, 14] in [0, 1), and class indices [n]."""
    u = uniform.T[..., None, None]  # [14, n, 1, 1]
    radius = 0.4 + 0.32 * u[0]
    room = 0.95 - radius
    turn = 2 * math.pi * u[3]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = (grid_x - room * (2 * u[1] - 1)) / radius, (grid_y - room * (2 * u[2] - 1)) / radius
    x, y = x * torch.cos(turn) + y * torch.sin(turn), y * torch.cos(turn) - x * torch.sin(turn)
    distance = torch.empty_like(x)
    for index, shape in enumerate(SHAPES.values()):
        mine = labels == index
        distance[mine] = shape(x[mine], y[mine])
    coverage = (0.5 - distance * radius * (size / 2)).clamp(0, 1)[:, None]  # one pixel of soft edge

    # a pale or a dark background, and a colour that stands out from it in grey as well
    pale = u[4] < 0.5
    back = _hsv(u[5], 0.08 + 0.22 * u[6], torch.where(pale, 0.88 + 0.12 * u[7], 0.1 + 0.18 * u[7]))
    front = _hsv(u[8], 0.65 + 0.35 * u[9], torch.where(pale, 0.3 + 0.45 * u[10], 0.85 + 0.15 * u[10]))
    luma = (front * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    lifted = front + (1 - front) * ((0.5 - luma) / (1 - luma)).clamp(min=0)
    front = torch.where(pale[:, None], front * (0.4 / luma).clamp(max=1), lifted)
    light = 2 * math.pi * u[11]
    slope = (grid_x * torch.cos(light) + grid_y * torch.sin(light))[:, None]
    back = back * (1 + (0.05 + 0.1 * u[12][:, None]) * slope)
    front = front * (1 + (0.05 + 0.15 * u[13][:, None]) * slope)
    return ((back + (front - back) * coverage).clamp(0, 1) * 255).round().to(torch.uint8)


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1], each [n, 1, 1] -> RGB [n, 3, 1, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0]).view(3, 1, 1) + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
