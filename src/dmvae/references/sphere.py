"""Reference `sphere`: latents uniform on a sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dmvae.evaluation.latents import Over
from dmvae.ranges import Scale
from dmvae.references import Surroundings
from dmvae.references.synthetic import SyntheticConfig
from dmvae.registry import register
from dmvae.runtime.random import Random


@register("sphere")
@dataclass(frozen=True, kw_only=True)
class SphereReference(SyntheticConfig):
    """Uniform on a sphere; labels carry no information."""

    over: Over = "channels"
    """What lies on the sphere: "channels", the C components of each place, independently of other places; "all", a
    latent's C H W components as one vector, which differs little from a Gaussian where they are many."""
    radius: Scale | None = None
    """The sphere's radius; null is the square root of the number of components, which then have variance 1."""

    @property
    def labelled(self) -> bool:
        return False

    def build(self, inputs: Surroundings) -> Sphere:
        return Sphere(self, inputs.latent_shape, inputs.num_classes, *self.statistics(inputs))


class Sphere:
    velocity: None = None

    def __init__(
        self, config: SphereReference, shape: tuple[int, int, int], num_classes: int, mean: Tensor, std: Tensor
    ) -> None:
        self.shape, self.num_classes, self.mean, self.std = shape, num_classes, mean, std
        self.over = 1 if config.over == "channels" else (1, 2, 3)
        self.radius = config.radius or math.sqrt(shape[0] if config.over == "channels" else math.prod(shape))

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        x = rng.normal(n, *self.shape)  # a Gaussian's direction is uniform
        norm = x.square().sum(self.over, keepdim=True).sqrt()
        return self.radius * x / norm, rng.integers(self.num_classes, n)
