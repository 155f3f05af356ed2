"""Checks of the arguments of distances."""

from __future__ import annotations

from torch import Tensor


def require_vectors(z: Tensor, y: Tensor, least: int = 1) -> None:
    """Raise ValueError unless z [n, d] and y [m, d] are sets of vectors of equal length, at least `least` in each."""
    for name, x in (("z", z), ("y", y)):
        if x.ndim != 2:
            raise ValueError(f"{name} has shape {list(x.shape)}; give vectors [n, d], as a view of latents makes them")
        if len(x) < least:
            raise ValueError(f"{name} has {len(x)} vectors; at least {least} are needed, so take a larger batch")
    if z.shape[1] != y.shape[1]:
        raise ValueError(
            f"z has vectors of {z.shape[1]} components and y of {y.shape[1]}; take the same view of latents and "
            "reference, of the same shape"
        )


def require_positive(**values: float) -> None:
    """Raise ValueError for a value that is not above 0, naming it."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; give a number above 0")
