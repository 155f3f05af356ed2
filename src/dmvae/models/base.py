"""What our networks share as diffusers models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from dmvae.models.drawing import noise
from dmvae.models.whitening import mapped
from dmvae.runtime.random import Random

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from typing_extensions import Self

    from dmvae.config import Values


# diffusers 0.42 warns at each cast to a dtype of modules that should stay in float32, also where a class names none
logging.getLogger(ModelMixin.__module__).addFilter(lambda record: "in float32: []" not in record.getMessage())


class Model(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`save_pretrained` writes safetensors and config.json; `from_pretrained` reads them from a folder or a hub."""

    config: Any
    """The constructor's arguments, as attributes."""

    if TYPE_CHECKING:

        def to(self, *args: object, **kwargs: object) -> Self:  # type: ignore[override]  # diffusers' takes no self
            """As nn.Module's."""
            ...

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: object) -> Self:
        """As diffusers', but built in memory and then filled. A start on the meta device would leave buffers that no
        file holds (rotary tables, normalisation of pixels) without values. DiffusionPipeline always asks for that
        start, so it is turned off, except with a `device_map`, which only a user asks for. Raises ValueError for the
        folder of a pipeline, whose models lie in subfolders."""
        folder = Path(pretrained_model_name_or_path or "")
        if not kwargs.get("subfolder") and (folder / "model_index.json").is_file():
            known = sorted(file.parent.name for file in folder.glob("*/config.json"))
            raise ValueError(f"{folder} is a pipeline's: give subfolder={' or '.join(map(repr, known))}")
        if kwargs.get("device_map") is None:
            kwargs["low_cpu_mem_usage"] = False
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_config(cls, config: object = None, return_unused_kwargs: bool = False, **kwargs: object) -> Self:
        """As diffusers'. Raises ValueError for the config of another class, whose arguments this one does not know."""
        name = config.get("_class_name", cls.__name__) if isinstance(config, Mapping) else cls.__name__
        if name != cls.__name__:
            raise ValueError(f"made by {name}, not {cls.__name__}: load it with {name}.from_pretrained")
        if isinstance(config, Mapping):  # diffusers would reset what was registered in place of a default
            config = {key: value for key, value in config.items() if key != "_use_default_values"}
        return cast("Self", super().from_config(cast("Values", config), return_unused_kwargs, **kwargs))


class PointDistribution:
    """A posterior without spread, with the interface of diffusers' DiagonalGaussianDistribution."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    @property
    def std(self) -> Tensor:
        """[n, C, H, W] zeros."""
        return torch.zeros_like(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """[n] zeros: there is no spread to penalise."""
        return self.mean.new_zeros(len(self.mean))


Distribution: TypeAlias = "DiagonalGaussianDistribution | PointDistribution"
"""The posterior of the latents of images: `mean`, `std`, `sample()`, `mode()`."""


@dataclass
class EncoderOutput(BaseOutput):
    latents: Tensor
    """[n, C, H, W], not normalised: the mean of `latent_dist`, or a sample of it (`Tokenizer.drawn`)."""
    latent_dist: Distribution


@dataclass
class DecoderOutput(BaseOutput):
    sample: Tensor
    """[n, c, h, w], trained to lie in [-1, 1], not clamped."""


class Encodes(Protocol):
    """A module that gives latents: a tokenizer, or a feature network in its place."""

    @property
    def to(self) -> Callable[..., Self]:
        """As nn.Module's."""
        ...

    def eval(self) -> Self: ...

    def modules(self) -> Iterator[nn.Module]:
        """As nn.Module's."""
        ...

    def encode(self, x: Tensor, /) -> EncoderOutput:
        """x [n, c, h, w] in [-1, 1], or data of another kind; latents [n, C, H, W]."""
        ...


@contextmanager
def evaluating(network: Encodes | nn.Module) -> Iterator[None]:
    """The network is in evaluation mode in the block. Afterwards each module has its own mode again, since parts of a
    network in training may be in evaluation mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class Parts:
    """A tokenizer's modules by what they do, for stages that train some of them."""

    encoder: list[nn.Module]
    bottleneck: list[nn.Module]
    """From the encoder's features to latents; empty where the features are the latents."""
    decoder: list[nn.Module]
    last_layer: Tensor
    """The weights of the layer that gives the image: the adaptive weight compares gradients at them."""
    undone: bool = False
    """Whether the tokenizer's `decode` undoes the bottleneck, so that no reconstruction depends on it."""


class Tokenizer(Model):
    """What every tokenizer has: `encode(x).latents`, `decode(z).sample`, and the statistics of its latents.

    `latent_mean` and `latent_std` [C] are 0 and 1 until a stage fills them in (`set_statistics`). The config's
    scaling_factor and shift_factor are the same as two scalars, for code written for diffusers' autoencoders:
    `(z - shift_factor) * scaling_factor` has mean 0 and standard deviation 1 over all channels together.
    Our own flow models see `normalize(z)`, which is per channel, and whitened where the config says `whitened`.
    """

    latent_mean: Tensor
    latent_std: Tensor
    whitening: Tensor | None
    """[C, C], what `normalize` multiplies by, after the rest; None for nothing."""
    colouring: Tensor | None
    """Its inverse: in bf16 the inverse of a rounded matrix would be far off."""
    spread: Tensor | None
    """[C], the standard deviation of every posterior, in raw units (`fix_spread`); None where each has its own."""

    @property
    def has_spread(self) -> bool:
        """Whether `encode` gives a posterior with a spread, and not a point."""
        raise NotImplementedError

    def parts(self) -> Parts:
        """The modules that can be trained. Raises ValueError for a tokenizer that can only be used as it is."""
        raise NotImplementedError

    def as_diffusers(self) -> ModelMixin | None:
        """A network of a class of diffusers that does what this tokenizer does; None where there is none."""
        return None

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles: the parts, because training calls them and not `forward`. Encoders and decoders
        may name parts of their own; a decoder that names none is not compiled (see
        `ConvolutionalDecoder.compiled_parts`)."""
        try:
            parts = self.parts()
        except ValueError:  # it can only be used as it is, and is not compiled
            return []
        found = [part for encoder in parts.encoder for part in compiled_parts_of(encoder, [encoder])]
        # torch.compile skips torch's own modules, such as a Sequential, when called on them
        found += [part for part in parts.bottleneck if not isinstance(part, nn.Sequential)]
        found += [part for decoder in parts.decoder for part in compiled_parts_of(decoder, [])]
        return [part for part in found if any(part.children())]

    def register_statistics(self, channels: int) -> None:
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        fixed = self.config.get("fixed_std")
        self.register_buffer("spread", None if fixed is None else torch.tensor(fixed), persistent=False)
        self.whiten(torch.eye(channels) if self.config.get("whitened") else None)

    def fix_spread(self, std: Tensor) -> None:
        """Give every posterior the standard deviation std [C], not normalised, whatever the image."""
        self.spread = std.to(self.latent_std)
        self.register_to_config(fixed_std=std.tolist())

    @property
    def stride(self) -> int:
        """Image pixels per latent, along each side."""
        raise NotImplementedError

    @property
    def latent_size(self) -> int:
        """H = W of the latents of training images."""
        return self.config["image_size"] // self.stride

    def encode(self, x: Tensor, rng: torch.Generator | None = None) -> EncoderOutput:
        """x [n, c, h, w] in [-1, 1]; h and w must be multiples of the stride (ValueError). rng: draws the latents where
        `drawn` is set; unless given, each image's content seeds its own draw, so that it is encoded alike in any
        batch."""
        raise NotImplementedError

    @property
    def drawn(self) -> bool:
        """Whether latents are samples of the posterior, because samples were matched (`matching.noise: posterior` or
        `fixed`), or generators learn samples (`latents.drawn`)."""
        return bool(self.config.get("drawn"))

    @drawn.setter
    def drawn(self, drawn: bool) -> None:
        self.register_to_config(drawn=drawn)

    def _output(self, posterior: Distribution, x: Tensor, rng: torch.Generator | None) -> EncoderOutput:
        """What `encode` returns for images x with that posterior."""
        mean = posterior.mean
        if self.spread is not None:
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            mean = mean.float()  # bf16 would round the spread
            logvar = (2 * self.spread.float().log()).view(1, -1, 1, 1).expand_as(mean)
            posterior = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
        if not self.drawn:
            return EncoderOutput(latents=mean, latent_dist=posterior)
        shape = mean.shape
        normal = noise(x, shape[1:]) if rng is None else Random.of(rng, x.device).normal(*shape)
        return EncoderOutput(latents=mean + posterior.std * normal.to(mean), latent_dist=posterior)

    def carry(self, z: Tensor) -> Tensor:
        """This tokenizer's latents of images of which the tokenizer in it has latents z [n, C, H, W]: z itself, unless
        it reshapes them."""
        return z

    def decode(self, z: Tensor) -> DecoderOutput:
        """z [n, C, H, W], not normalised -> images [n, c, h, w]. Raises ValueError for another number of channels."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> DecoderOutput:
        """x [n, c, h, w] -> its reconstruction."""
        return self.decode(self.encode(x).latents)

    def set_statistics(self, mean: Tensor, std: Tensor, whitening: Tensor | None = None) -> None:
        """Take the latents' mean and standard deviation per channel, [C] each, and the matrix of `whiten`."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.whiten(whitening)
        # variance over all channels together: the mean of the variances plus the variance of the means
        whole = (std.double().square().mean() + mean.double().var(correction=0)).sqrt()
        self.register_to_config(scaling_factor=float(1 / whole), shift_factor=float(mean.double().mean()))

    def whiten(self, matrix: Tensor | None) -> None:
        """Set the matrix [C, C], of `dmvae.models.whitening`, by which `normalize` multiplies; None for no matrix."""
        inverse = None if matrix is None else torch.linalg.inv(matrix.double())
        self.register_buffer("whitening", None if matrix is None else matrix.to(self.latent_std))
        self.register_buffer("colouring", None if inverse is None else inverse.to(self.latent_std))
        self.register_to_config(whitened=matrix is not None)

    def normalize(self, z: Tensor) -> Tensor:
        """(z - mean) / std per channel, then times `whitening` if there is one: what flow models see of z
        [n, C, H, W]."""
        z = (z - self.latent_mean[:, None, None].to(z)) / self.latent_std[:, None, None].to(z)
        return z if self.whitening is None else mapped(self.whitening, z)

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        z = z if self.colouring is None else mapped(self.colouring, z)
        return z * self.latent_std[:, None, None].to(z) + self.latent_mean[:, None, None].to(z)

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless `encode` takes x."""
        if not isinstance(x, Tensor):
            raise ValueError(f"images: give a tensor [n, c, h, w] in [-1, 1], got {type(x).__name__}")
        if x.ndim != 4 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"images of shape {list(x.shape)} do not fit this tokenizer, which takes "
                f"[n, {self.config['in_channels']}, height, width]"
            )
        if not x.is_floating_point() or x.dtype is torch.float64:
            how = "x.float()" if x.is_floating_point() else "x / 127.5 - 1 of bytes"
            raise ValueError(f"images of {x.dtype} do not fit this tokenizer: give float32 in [-1, 1], {how}")
        for name, length in zip(("height", "width"), x.shape[2:], strict=True):
            if length % self.stride:
                below = length // self.stride * self.stride
                near = f"{below} or {below + self.stride}" if below else f"{self.stride}"
                raise ValueError(
                    f"image {name} {length} is not a multiple of the tokenizer's stride {self.stride}; "
                    f"crop, pad or resize to {near}"
                )

    def check_latents(self, z: Tensor) -> None:
        """Raise ValueError unless `decode` takes z."""
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise ValueError(f"latents: give a tensor of floats, got {getattr(z, 'dtype', type(z).__name__)}")
        if z.ndim != 4 or z.shape[1] != self.config["latent_channels"]:
            raise ValueError(
                f"latents of shape {list(z.shape)} do not fit this tokenizer, whose latents are "
                f"[n, {self.config['latent_channels']}, height / {self.stride}, width / {self.stride}]"
            )


def compiled_parts_of(module: nn.Module, otherwise: list[nn.Module]) -> list[nn.Module]:
    """The module's `compiled_parts`, where it has some to name."""
    named: Callable[[], list[nn.Module]] | None = getattr(module, "compiled_parts", None)
    return named() if named else otherwise


class Checkpointing(Protocol):
    """A module with diffusers' switch for gradient checkpointing, which sets both attributes."""

    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Tensor] | None


def run_part(owner: Checkpointing, part: nn.Module, *args: Tensor) -> Tensor:
    """`part(*args)`; its activations are computed again in the backward pass where the owner's switch is on."""
    if owner.gradient_checkpointing and torch.is_grad_enabled():
        assert owner._gradient_checkpointing_func is not None
        return owner._gradient_checkpointing_func(part, *args)
    out: Tensor = part(*args)
    return out
