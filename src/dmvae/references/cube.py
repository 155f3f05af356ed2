"""Reference `cube`: latent elements uniform in an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dmvae.ranges import Scale
from dmvae.references import Surroundings
from dmvae.references.synthetic import SyntheticConfig
from dmvae.registry import register
from dmvae.runtime.random import Random


@register("cube")
@dataclass(frozen=True, kw_only=True)
class CubeReference(SyntheticConfig):
    """Uniform in [-half_width, half_width] in every element, independently; labels carry no information."""

    half_width: Scale = math.sqrt(3)
    """Half the cube's side; the square root of 3 gives variance 1."""

    @property
    def labelled(self) -> bool:
        return False

    def build(self, inputs: Surroundings) -> Cube:
        return Cube(inputs.latent_shape, inputs.num_classes, self.half_width, *self.statistics(inputs))


class Cube:
    velocity: None = None

    def __init__(
        self, shape: tuple[int, int, int], num_classes: int, half_width: float, mean: Tensor, std: Tensor
    ) -> None:
        self.shape, self.num_classes, self.half_width = shape, num_classes, half_width
        self.mean, self.std = mean, std

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        z = self.half_width * (2 * rng.uniform(n, *self.shape) - 1)
        return z, rng.integers(self.num_classes, n)
