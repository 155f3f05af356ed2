"""Reference `function`: samples that a Python function returns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmvae.references import Surroundings, require_repeated
from dmvae.references.synthetic import SyntheticConfig
from dmvae.registry import load_module, register
from dmvae.runtime.hashing import content_hash
from dmvae.runtime.random import Random, seed_of
from dmvae.spelling import nearest


@register("function")
@dataclass(frozen=True, kw_only=True)
class FunctionReference(SyntheticConfig):
    """Samples from `function(n, shape, num_classes, rng)`, which returns latents [n, *shape], or (latents, labels [n]).
    Without labels, labels are drawn at random and carry no information. `rng` is a torch.Generator; draw with its
    methods rng.normal(n, ...), rng.uniform(n, ...) and rng.integers(high, n), so that the number of ranks does not
    change the samples."""

    function: str
    """The function: `package.module:name`, or `path/to/file.py:name`."""

    def labelled_for(self, inputs: Surroundings) -> bool:
        """Tells by drawing two samples: whether the function returns labels."""
        try:
            return self._open(inputs).returned(2, _trial())[1] is not None
        except ValueError:
            return True  # `check` says what is wrong with the function

    def check(self, inputs: Surroundings) -> None:
        reference = self._open(inputs)
        require_repeated(f"function: {self.function}", lambda rng: reference.sample(2, rng))

    def build(self, inputs: Surroundings) -> Function:
        self.check(inputs)
        reference = self._open(inputs)
        reference.mean, reference.std = self.statistics(inputs)
        return reference

    def _open(self, inputs: Surroundings) -> Function:
        return Function(self, self.find(), inputs.latent_shape, inputs.num_classes)

    def find(self) -> Callable[..., object]:
        """The function. Raises ValueError where there is none."""
        place, _, name = self.function.rpartition(":")
        if not place or not name:
            raise ValueError(f"function: {self.function!r} is not package.module:name or path/to/file.py:name")
        try:
            module = load_module(place)
        except ValueError as error:
            why = str(error).removeprefix("plugin ")
            raise ValueError(
                f"function: {place!r} cannot be imported ({why}); give an installed module or a file's path"
            ) from error
        found: Callable[..., object] | None = getattr(module, name, None)
        if not callable(found):
            functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise ValueError(f"function: {place} has no function {name!r}{nearest(name, functions)[:200]}")
        return found

    def fingerprint(self) -> str:
        """Of the file that the reference names."""
        self.find()
        place = self.function.rpartition(":")[0]
        source = place if place.endswith(".py") else sys.modules[place].__file__
        return content_hash([Path(source)]) if source else ""


class Function:
    velocity: None = None

    def __init__(
        self,
        config: FunctionReference,
        function: Callable[..., object],
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        self.name, self.function, self.shape, self.num_classes = config.function, function, shape, num_classes
        self.mean, self.std = torch.zeros(shape[0]), torch.ones(shape[0])

    def returned(self, n: int, rng: Random) -> tuple[object, object]:
        """(latents, labels or None), as the function returns them, unchecked."""
        found = self.function(n, self.shape, self.num_classes, rng)
        if not isinstance(found, tuple):
            return found, None
        if len(found) != 2:
            raise ValueError(f"{self.name} returned {len(found)} values; give latents alone, or (latents, labels)")
        return found

    def sample(self, n: int, rng: Random) -> tuple[Tensor, Tensor]:
        z, labels = self.returned(n, rng)
        if labels is None:
            labels = rng.integers(self.num_classes, n)
        z, labels = torch.as_tensor(z).float(), torch.as_tensor(labels).long()
        if z.shape != (n, *self.shape) or labels.shape != (n,):
            raise ValueError(
                f"{self.name} returned latents {list(z.shape)} and labels {list(labels.shape)}; expected "
                f"{[n, *self.shape]} and {[n]}"
            )
        if not z.isfinite().all():
            raise ValueError(f"{self.name} returned latents that are not finite")
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"{self.name} returned labels from {int(labels.min())} to {int(labels.max())}; the data set "
                f"has classes 0 to {self.num_classes - 1}"
            )
        return z, labels


def _trial() -> Random:
    return Random(seed_of("trial"))
