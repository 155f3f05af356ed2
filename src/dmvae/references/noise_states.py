"""Reference `noise_states`: another reference with noise added, as at one time of the flow's path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmvae.flow.path import denoise, expand
from dmvae.ranges import Share
from dmvae.references import Reference, ReferenceConfig, Surroundings
from dmvae.references.features import FeaturesReference
from dmvae.registry import register
from dmvae.runtime.random import Random


@register("noise_states")
@dataclass(frozen=True, kw_only=True)
class NoiseStatesReference(ReferenceConfig):
    """y = (1 - time) * noise + time * z, where z and its labels come from another reference: by default the tokenizer's
    latents before matching."""

    of: ReferenceConfig = field(default_factory=FeaturesReference)
    """The reference that noise is added to, by `type`."""
    time: Share = 0.5
    """Time on the path: 0 is noise, 1 leaves z as it is."""

    @property
    def closed_form(self) -> bool:
        return self.of.closed_form

    @property
    def labelled(self) -> bool:
        return self.time > 0 and self.of.labelled  # pure noise carries no labels

    def labelled_for(self, inputs: Surroundings) -> bool:
        return self.time > 0 and self.of.labelled_for(inputs)

    def check(self, inputs: Surroundings) -> None:
        self.of.check(inputs)

    def build(self, inputs: Surroundings) -> NoiseStates:
        return NoiseStates(self.of.build(inputs), self.time)

    def fingerprint(self) -> str:
        return self.of.fingerprint()


class NoiseStates:
    """The `Reference` that `NoiseStatesReference` builds."""

    def __init__(self, inner: Reference, time: float) -> None:
        self.inner, self.time = inner, time
        self.mean, self.std = inner.mean, inner.std

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        z, labels = self.inner.sample(n, rng)
        return torch.lerp(rng.normal(*z.shape).to(z.device), z, self.time), labels

    @property
    def velocity(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        return None if self.inner.velocity is None else self._velocity

    def _velocity(self, y_s: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """E[y - e' | y_s], from the closed form of z. e is the noise in y, e' the noise of the path to y, and T =
        `time`:

            y_s = (1 - s) e' + s y = a z + b e'',   a = s T,   b^2 = s^2 (1 - T)^2 + (1 - s)^2

        with standard normal noise e'' in place of e in the second form. So y_s / (a + b) lies on z's path at time
        a / (a + b), which gives E[z | y_s]. e and e' follow by linear regression on y_s - a z:

            E[y - e' | y_s] = T E[z | y_s] + (s (1 - T)^2 - (1 - s)) / b^2 (y_s - a E[z | y_s])
        """
        time, velocity = self.time, self.inner.velocity
        assert velocity is not None
        a, b = s * time, (s.square() * (1 - time) ** 2 + (1 - s).square()).sqrt()
        inner_time, inner_state = a / (a + b), y_s / expand(a + b, y_s)
        z = denoise(z_t=inner_state, velocity=velocity(inner_state, inner_time, labels), t=inner_time)
        # b = 0 only at the end of a path without noise, where the rest is 0 too
        factor = (s * (1 - time) ** 2 - (1 - s)) / b.square().clamp_min(torch.finfo(b.dtype).tiny)
        return time * z + expand(factor, y_s) * (y_s - expand(a, y_s) * z)
