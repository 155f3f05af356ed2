"""Generators: one file each. A generator learns the latents' distribution and draws from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dmvae.flow.path import unlike
from dmvae.flow.samplers import Sampling
from dmvae.models.artifact import artifact_class, load_strictly
from dmvae.models.base import Model
from dmvae.registry import Registered, find, names, place_of
from dmvae.runtime.done import require_intact
from dmvae.runtime.random import Random

if TYPE_CHECKING:
    from typing_extensions import Self

ModelClass = type[Model]
"""An alias, because in the body of a registered class `type` is the class attribute, not the builtin."""
TRIED = 2**26
"""Weights of the largest generator that is tried before a run, on the CPU."""


class Generator(Protocol):
    """What `GeneratorConfig.build` returns: a diffusers model (`dmvae.models.base.Model`), so that it can be saved and
    loaded, with the latents' shape and the number of classes in its config (in_channels, input_size, num_classes)."""

    config: Any

    @property
    def to(self) -> Callable[..., Self]: ...
    def eval(self) -> Self: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def register_to_config(self, **kwargs: object) -> None: ...

    def loss(self, z: Tensor, labels: Tensor, rng: Random) -> Tensor:
        """The scalar that training minimises: z [n, C, H, W] normalised per channel, labels int64 [n], where
        num_classes means "no label"."""
        ...

    def sample(
        self, noise: Tensor, labels: Tensor, settings: Sampling, normal: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """Standard normal noise [n, C, H, W] and labels int64 [n] -> latents [n, C, H, W], normalised as for `loss`.
        `normal()` gives more such noise, for generators that need it."""
        ...


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Registered):
    """Base class of generators' configs. They have no fields in common."""

    required: ClassVar[tuple[str, ...]] = ("build", "network")

    network: ClassVar[ModelClass]
    """The class of what `build` returns; an artifact names it."""

    def build(self, latent_shape: tuple[int, int, int], num_classes: int) -> Generator:
        """The `Generator` for latents (C, H, W), with random weights."""
        raise NotImplementedError


def networks() -> dict[str, ModelClass]:
    """The networks of all registered generators by the name of their class, which artifacts hold. Raises ValueError
    where two classes have the same name."""
    found: dict[str, ModelClass] = {}
    for name in names(GeneratorConfig):
        network = find(GeneratorConfig, name).network
        if (there := found.setdefault(network.__name__, network)) is not network:
            raise ValueError(
                f"generator {name!r}: its network is called {network.__name__}, as is one of {there.__module__}; give "
                "it another name, by which what is saved is found"
            )
    return found


def require_works(config: GeneratorConfig, latent_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ValueError where a generator of few weights cannot be trained on two latents, one of them without a label,
    or draws other shapes. Otherwise that shows once the tokenizer is trained."""
    with torch.device("meta"):
        size = sum(p.numel() for p in config.build(latent_shape, num_classes).parameters())
    if size > TRIED:
        return
    rng, given = Random.alone("tried"), f"latents [2, {', '.join(map(str, latent_shape))}]"
    noise, labels = rng.normal(2, *latent_shape), torch.tensor([0, num_classes])
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = config.build(latent_shape, num_classes)
            loss: object = network.loss(noise, labels, rng)
            drawn = network.sample(noise, labels, Sampling(steps=2), lambda: rng.normal(2, *latent_shape))
    except Exception as error:
        if torch.cuda.is_available() and not isinstance(error, LookupError | TypeError | AttributeError):
            return  # it may be one of a kernel for GPUs alone; the stage will tell
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{config.type!r} cannot be run on {given} with labels {labels.tolist()}, where {num_classes} means "
            f'"no label": {type(error).__name__}: {error}{place_of(error)}'
        ) from error
    if told := unlike(loss, torch.zeros(())):
        raise ValueError(f"{config.type!r}: loss returned {told}; give a scalar tensor, such as its mean")
    if told := unlike(drawn, noise):
        raise ValueError(f"{config.type!r}: sample returned {told}; give {given}")


def load_generator(folder: str | Path) -> Generator:
    """The generator in an artifact's folder, of any registered class. Raises ValueError where there is none, where the
    weights do not fit the config, and where a file differs from the checksum in its stage's done.json."""
    require_intact(Path(folder))
    return load_strictly(artifact_class(folder, networks().values(), "generator"), folder)
