"""The base of discriminators, and PatchGAN (pix2pix, arXiv 1611.07004), which judges each patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae.models.base import Model
from dmvae.models.layers import group_norm
from dmvae.runtime.distributed import BatchNorm2d
from dmvae.runtime.done import require_intact
from dmvae.runtime.hub import hub_file
from dmvae.runtime.weights import check, read_tensors, state_dicts
from dmvae.spelling import nearest

if TYPE_CHECKING:
    from typing_extensions import Self

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm2d,
    "group": group_norm,
    "none": lambda channels: nn.Identity(),
}


class Discriminator(Model):
    """`forward(x)`: images [n, c, h, w] in [-1, 1] -> logits of any shape, higher for what looks real."""

    frozen_parts: tuple[str, ...] = ()
    """Names of submodules that never train: they get no gradients and stay in eval mode, batch norms included."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        super().requires_grad_(requires_grad)
        for name in self.frozen_parts:
            self.get_submodule(name).requires_grad_(False)
        return self

    def compiled_parts(self) -> list[nn.Module]:
        """None, as of `PerceptualLoss`."""
        return []


class PatchGAN(Discriminator):
    """Strided 4x4 convolutions. Each of `layers` halves the image; one logit sees 16, 34 or 70 pixels
    across with 1, 2 or 3 of them.

    norm: "batch" is the published one, over the images of all ranks; "group" depends on no other image; "none" is
    the fastest.
    """

    @register_to_config
    def __init__(
        self, *, in_channels: int, width: int = 64, layers: int = 3, norm: Literal["batch", "group", "none"] = "batch"
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: no normalisation is called {norm!r}{nearest(norm, NORMS)}")
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1),
                NORMS[norm](widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.constant_(module.bias, 0.0)  # type: ignore[arg-type]
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, h, w] in [-1, 1] -> logits [n, 1, about h / 2**layers, about w / 2**layers]."""
        self.check_images(x)
        return self.main(x)

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError for images that are too small for one logit: the last two layers each take a pixel off."""
        layers = self.config["layers"]
        height, width = x.shape[-2:]
        least = max(4, 3 * 2**layers)
        if min(height, width) < least:
            raise ValueError(
                f"images of {height}x{width} pixels are too small for a discriminator with layers = "
                f"{layers}, which needs {least}; use fewer layers (n of them need 3 * 2^n pixels)"
            )


def learned(place: Path, network: Discriminator) -> dict[str, Tensor]:
    """The weights of such a network in `place`: a folder that it was saved in, or a checkpoint of any project that has
    them under its names, in a dict or behind a prefix of their own. Only shapes of the network count.

    Raises ValueError for a place without such weights, and where names or shapes differ.
    """
    file = require_intact(place) / "diffusion_pytorch_model.safetensors" if place.is_dir() else hub_file(place)
    own = network.state_dict()
    sign = next(iter(own))
    for group in state_dicts(read_tensors(file), ()).values():
        if (first := next((name for name in group if f".{name}".endswith(f".{sign}")), None)) is not None:
            prefix = first.removesuffix(sign)
            found = {name.removeprefix(prefix): x for name, x in group.items() if name.startswith(prefix)}
            # Latent diffusion's convolutions have no bias before a batch norm: it is 0.
            biases = {name for name in own if name.endswith(".bias") and name.replace(".bias", ".weight") in found}
            found |= {name: torch.zeros_like(own[name]) for name in biases - found.keys()}
            check(found, {name: x.shape for name, x in own.items()}, place, f"this {type(network).__name__}")
            return found
    raise ValueError(f"{place}: holds no discriminator such as this {type(network).__name__}: no tensor {sign}")
