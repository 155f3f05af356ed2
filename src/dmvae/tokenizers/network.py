"""A diffusers autoencoder, or one of ours, as a `Codec`.

Shapes: n images, c channels, h = w = size; C latent channels, H = W = size / stride.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dmvae.config import Values
from dmvae.models.base import Distribution, Parts, PointDistribution
from dmvae.tokenizers import Codec, Normalisation

# diffusers' image autoencoders take and return images in [-1, 1] (AutoencoderTiny maps to [0, 1] inside), except these:
UNIT_RANGE = {"AutoencoderRAE"}
# These resize images to their encoder's size, and return images of their decoder's size:
RESIZING = {"AutoencoderRAE"}
# These normalise latents inside, by the statistics in their config:
NORMALISING = {"AutoencoderRAE"}
# What stages may train: a class -> the layer that gives the image. A code book (VQModel), an encoder that diffusers
# keeps frozen (RAE) and statistics inside the network (Flux2) would each need another kind of training.
TRAINED: dict[str, Callable[[Any], nn.Conv2d]] = {
    "AutoencoderKL": lambda model: model.decoder.conv_out,
    "AutoencoderDC": lambda model: model.decoder.conv_out,
    "AutoencoderTiny": lambda model: model.decoder.layers[-1],
}
_MEASURED: dict[tuple[object, ...], tuple[int, int, bool]] = {}
"""What `Adapter._measure` found: a plan builds a network of one kind a dozen times."""


def own_size(config: Values) -> int | None:
    """Height and width of the images that a model of this config was made for; None where it does not say."""
    if config.get("_class_name") in RESIZING:
        from diffusers import AutoencoderRAE

        usual = {name: known.default for name, known in inspect.signature(AutoencoderRAE).parameters.items()}
        known = usual | config
        return known["patch_size"] * (known["encoder_input_size"] // known["encoder_patch_size"])
    return config.get("sample_size")


class Adapter(Codec):
    """encode: images [n, c, h, w] in [-1, 1] -> latents [n, C, H, W] in the model's own units, without a scaling
    factor; the mean of a distribution. decode: from these latents to images.

    A grey image is repeated for a model of three channels, whose output is then averaged. The output of a model that
    resizes is resized to `size`. `latent_channels` and `stride` are measured, so any model will do whose `encode` gives
    `latent_dist`, `latent` or `latents`, and whose `decode` gives `sample`.

    scaled: whether the config's scaling_factor and its like are of these weights, and not its class's defaults.

    Raises ValueError for images that the model does not take: channels, or a size that is no multiple of the stride.
    """

    def __init__(self, model: Any, *, size: int, channels: int, scaled: bool = True):
        super().__init__()
        self.scaled = scaled
        self.name = type(model).__name__
        self.model = model
        self.size, self.channels = size, channels
        self.model_channels: int = model.config.get("in_channels", model.config.get("num_channels", 3))
        if channels not in (1, self.model_channels):
            known = self.model_channels <= 3  # what data.channels takes
            mend = f"set data.channels to {self.model_channels}" if known else "images here have 1 to 3, name another"
            raise ValueError(f"{self.name} takes {self.model_channels} image channels, the data has {channels}; {mend}")
        self.eval()
        shapes = tuple(t.shape for t in chain(self.parameters(), self.buffers()))
        kind = (*map(type, self.modules()), shapes, repr(sorted(model.config.items())), size, channels)
        if kind not in _MEASURED:
            _MEASURED[kind] = self._measure()
        self.latent_channels, self.stride, self.has_spread = _MEASURED[kind]

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images).mode()

    def posterior(self, images: Tensor) -> Distribution:
        """diffusers' distribution of the latents, or a `PointDistribution` where the model gives none."""
        if self.name in UNIT_RANGE:
            images = images / 2 + 0.5
        out = self.model.encode(images.expand(-1, self.model_channels, -1, -1))
        if hasattr(out, "latent_dist"):
            return out.latent_dist
        return PointDistribution(out.latent if hasattr(out, "latent") else out.latents)

    @property
    def normalisation(self) -> Normalisation | None:
        """As diffusers' pipelines scale latents: (z - latents_mean) * scaling_factor / latents_std per channel, or
        (z - shift_factor) * scaling_factor. Raises ValueError for statistics of another number of channels."""
        names = ("latents_mean", "latents_std", "scaling_factor", "shift_factor")
        known = self.model.config if self.scaled else {}
        mean, std, scale, shift = map(known.get, names)
        zeros, ones = torch.zeros(self.latent_channels), torch.ones(self.latent_channels)
        each = mean is not None and std is not None
        if self.name in NORMALISING:
            return Normalisation(zeros, ones) if each else None
        if not each:
            return None if scale is None else Normalisation(zeros + (shift or 0.0), ones / scale)
        if not len(mean) == len(std) == self.latent_channels:
            told = f"{len(mean)} and {len(std)}"
            raise ValueError(f"its latents_mean and latents_std have {told} numbers, latents {self.latent_channels}")
        return Normalisation(torch.tensor(mean).float(), torch.tensor(std).float() / (scale or 1.0))

    def parts(self) -> Parts:
        """As a tokenizer's. Raises ValueError for a class that cannot be trained further, and for grey images."""
        if self.name not in TRAINED:
            raise ValueError(f"a {self.name} can be used but not trained further; {', '.join(TRAINED)} can")
        if self.channels != self.model_channels:
            raise ValueError(
                f"{self.name} has {self.model_channels} image channels, the data {self.channels}: trained on those it "
                f"would forget colours; set data.channels to {self.model_channels}"
            )
        model, conv = self.model, TRAINED[self.name](self.model)
        before, after = (
            [layer] if (layer := getattr(model, name, None)) is not None else []
            for name in ("quant_conv", "post_quant_conv")
        )
        return Parts([model.encoder], before, [*after, model.decoder], conv.weight)

    def decode(self, z: Tensor) -> Tensor:
        images = self.model.decode(z).sample
        if self.name in UNIT_RANGE:
            images = images * 2 - 1
        if self.name in RESIZING and images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        return images.mean(1, keepdim=True) if self.channels < self.model_channels else images

    def forward(self, images: Tensor) -> tuple[Distribution, Tensor]:
        """(posterior, the model's own output for the posterior's mode), for `_measure`."""
        posterior = self.posterior(images)
        return posterior, self.model.decode(posterior.mode()).sample

    def _measure(self) -> tuple[int, int, bool]:
        """(C, stride, whether latents have a spread), from a pass of one image on the meta device, which computes
        shapes only."""
        state = {name: t.to("meta") for name, t in chain(self.named_parameters(), self.named_buffers())}
        images = torch.empty(1, self.channels, self.size, self.size, device="meta")
        try:
            with torch.no_grad():
                posterior, out = functional_call(self, state, (images,))
            _, latent_channels, side, _ = posterior.mode().shape
            given = out.shape[3]
        except Exception as error:  # foreign networks refuse a shape in any way
            raise ValueError(
                f"{self.name} does not take images {self.channels}x{self.size}x{self.size}, or is no image autoencoder "
                f"({type(error).__name__}: {error})"
            ) from error
        if out.shape[1] != self.model_channels:
            told = f"{self.name} takes {self.model_channels} image channels and gives {out.shape[1]} back"
            raise ValueError(f"{told}, which are no reconstructions; give another tokenizer")
        stride = (self.size if self.name in RESIZING else given) // side
        if stride * side != self.size:
            step = side if self.name in RESIZING else stride
            what = "the latents' side" if self.name in RESIZING else "the stride"
            below = self.size // step * step
            near = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(
                f"image size {self.size} is not a multiple of {step}, {what} of {self.name}; set data.size to {near}"
            )
        return latent_channels, stride, not isinstance(posterior, PointDistribution)
