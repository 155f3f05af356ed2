"""Reference `gaussian`: independent normal latents, with the velocity in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmvae.flow.path import expand
from dmvae.ranges import Scale
from dmvae.references import Surroundings
from dmvae.references.synthetic import SyntheticConfig
from dmvae.registry import register
from dmvae.runtime.random import Random


@register("gaussian")
@dataclass(frozen=True, kw_only=True)
class GaussianReference(SyntheticConfig):
    """N(0, std^2) in every latent element; labels carry no information."""

    std: Scale = 1.0
    """Standard deviation."""

    @property
    def closed_form(self) -> bool:
        return True

    @property
    def labelled(self) -> bool:
        return False

    def build(self, inputs: Surroundings) -> Gaussian:
        reference = Gaussian(inputs.latent_shape, inputs.num_classes, self.std)
        reference.mean, reference.std = self.statistics(inputs)
        return reference


class Gaussian:
    def __init__(self, shape: tuple[int, int, int], num_classes: int, std: float) -> None:
        self.shape, self.num_classes, self.variance = shape, num_classes, std**2
        self.mean, self.std = torch.zeros(shape[0]), torch.ones(shape[0])

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        return self.variance**0.5 * rng.normal(n, *self.shape), rng.integers(self.num_classes, n)

    def velocity(self, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """E[z - noise | z_t] = (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) * z_t, s the standard deviation."""
        t = expand(t, z_t)
        return (t * self.variance - (1 - t)) / (t.square() * self.variance + (1 - t).square()) * z_t
