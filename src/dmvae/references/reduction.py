"""Bring a network's features to the latents' shape: the grid is resized, the channels are reduced by a fitted map.

Shapes: n items, m vectors, d feature channels, C latent channels, H W the latents' grid.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from dmvae.datasets.pixels import resized
from dmvae.models.base import EncoderOutput, PointDistribution
from dmvae.runtime.precision import full_precision
from dmvae.tokenizers.autoencoder import bottleneck

Reduction = Literal["pca", "random", "bottleneck"]


class Reducer(nn.Module):
    """A feature network that can be used like a tokenizer: `encode(data).latents` is [n, C, H, W].

    The network's attribute `layout` says what its features are:
        "map"      [n, d, h, w]: the grid is resized to H x W and d reduced to C; the default
        "vector"   [n, d, 1, 1]: each vector is reduced to C H W components
        "latents"  [n, C, H, W]: taken as they are
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.shape = network.requires_grad_(False), shape
        self.layout = getattr(network, "layout", "map")
        self.reduce: nn.Module = nn.Identity()

    @property
    def channels(self) -> int:
        """The number of channels that d is reduced to."""
        return math.prod(self.shape) if self.layout == "vector" else self.shape[0]

    @property
    def vectors_per_item(self) -> int:
        return 1 if self.layout == "vector" else self.shape[1] * self.shape[2]

    def features(self, x: Tensor) -> Tensor:
        """[n, d, H, W], or [n, d, 1, 1] where vectors are reduced as a whole; float32."""
        features = self.network(x).float()
        return features if self.layout == "vector" else resize(features, self.shape[1:])

    def encode(self, x: Tensor) -> EncoderOutput:
        features = self.features(x)
        with full_precision(features):  # bf16 would undo the whitening
            z = self.reduce(features.movedim(1, -1)).movedim(-1, 1)
        z = z.reshape(len(z), *self.shape)
        return EncoderOutput(latents=z, latent_dist=PointDistribution(z))


class AtResolution(nn.Module):
    """A feature network that first resizes its images [n, c, h, w] to `size` x `size`."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(resized(images, (self.size, self.size)))
        return features


def resize(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """[n, d, h, w] -> [n, d, *grid]: means over areas where the grid shrinks, bilinear where it grows."""
    size = features.shape[2:]
    if size == grid:
        return features
    if size[0] >= grid[0] and size[1] >= grid[1]:
        return F.interpolate(features, grid, mode="area")
    return F.interpolate(features, grid, mode="bilinear")


def fit_linear(kind: Literal["pca", "random"], rows: Tensor, channels: int, seed: int) -> nn.Linear:
    """The affine map [..., d] -> [..., channels], fitted to `rows` [m, d], that centres vectors and reduces them.

    Raises ValueError where d or the rank of the vectors' covariance is below `channels`.
    """
    d = rows.shape[1]
    require_channels(kind, d, channels)
    mean = rows.double().mean(0)
    matrix = principal(rows, channels) if kind == "pca" else random_orthogonal(d, channels, seed)
    linear = nn.Linear(d, channels)
    with torch.no_grad():
        linear.weight.copy_(matrix)
        linear.bias.copy_(-matrix @ mean)
    return linear.requires_grad_(False)


def require_channels(kind: str, d: int, channels: int) -> None:
    """Raise ValueError where features that have d channels, or span d directions, cannot give `channels` components."""
    if d < channels:
        raise ValueError(
            f"reduction: {kind!r} cannot make {channels} components of features that have {d}; use features of more "
            "channels or more items, fewer latent channels, or reduction: bottleneck"
        )


def principal(rows: Tensor, channels: int) -> Tensor:
    """W, float64 [channels, d]: the first principal directions of rows [m, d], each divided by its standard deviation,
    so that W cov W^T is the identity. Raises ValueError where the rows vary in fewer directions."""
    values, directions = torch.linalg.eigh(torch.cov(rows.double().T).reshape(rows.shape[1], rows.shape[1]))
    rank = int((values > 1e-7 * values[-1].clamp_min(1e-30)).sum())
    if rank < channels:
        raise ValueError(
            f"reduction: the {len(rows)} feature vectors vary in {rank} directions, fewer than the {channels} that "
            "whitening needs; use more data, fewer latent channels, or reduction: random"
        )
    w: Tensor = (directions[:, -channels:] / values[-channels:].sqrt()).T.flip(0)
    largest = w.gather(1, w.abs().argmax(1, keepdim=True))
    return w * largest.sign()  # fix the sign, which is arbitrary for eigenvectors


def random_orthogonal(d: int, channels: int, seed: int) -> Tensor:
    """float64 [channels, d] with orthonormal rows, uniformly distributed: Q of a Gaussian matrix, R's diagonal > 0."""
    gaussian = torch.randn(d, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rows: Tensor = (q * r.diagonal().sign()).T.contiguous()
    return rows


def learn_bottleneck(rows: Tensor, channels: int, width: int, steps: int, seed: int, device: torch.device) -> nn.Module:
    """The encoder d -> C of an MLP autoencoder trained on rows [m, d]. The paper's bottleneck has this shape, but is
    trained together with the image decoder: that is the reference `features`."""
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    d = rows.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' generators too
        down, up = bottleneck(d, width, channels).to(device), bottleneck(channels, width, d).to(device)
    optimizer = torch.optim.AdamW([*down.parameters(), *up.parameters()], lr=1e-3, betas=(0.9, 0.95), weight_decay=0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(rows), (min(1024, len(rows)),), generator=generator)
        x = ((rows[index] - mean) / std).to(device)
        (up(down(x)) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    first = down[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # fold the standardisation into the first layer
        first.weight.div_(std.to(device))
        first.bias.sub_(first.weight @ mean.to(device))
    return down.requires_grad_(False)


def load(path: Path) -> nn.Module:
    """The fitted map, from its file."""
    state = load_file(path)
    if "weight" in state:
        channels, d = state["weight"].shape
        module: nn.Module = nn.Linear(d, channels)
    else:
        width, d = state["0.weight"].shape
        module = bottleneck(d, width, len(state["2.weight"]))
    module.load_state_dict(state)
    return module.requires_grad_(False)
