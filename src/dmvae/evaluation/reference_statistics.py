"""Statistics of reference images that other projects have published: ADM's and JiT's .npz, torch-fidelity's cache."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.features import POOL, SPATIAL
from dmvae.evaluation.frechet import Statistics
from dmvae.runtime.hashing import sha256_of
from dmvae.runtime.weights import guarded

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")


def is_statistics(path: str) -> bool:
    """Whether a path is a file with a suffix of statistics."""
    return Path(path).is_file() and path.endswith(SUFFIXES)


def read_statistics(path: Path) -> FeatureSet:
    """Statistics from a file, by its suffix:

    .safetensors   what `dmvae measure ... --save-reference` wrote, with its manifest
    .npz           mu [d], sigma [d, d], of ADM's evaluator and of JiT; also mu_s and sigma_s, for sFID, if there
    .pt, .pth      torch-fidelity's cache of a data set: a dict of mu and sigma

    Files of other projects hold only these arrays: their manifest has the file's hash, but no images, extractor or
    number of images. Raises ValueError for a file that holds no such statistics.
    """
    if path.suffix == ".safetensors":
        return FeatureSet.load(path)
    arrays = _npz(path) if path.suffix == ".npz" else _torch(path)
    manifest = {"images": {"kind": "statistics", "path": str(path.resolve()), "file": sha256_of(path)[:16]}}
    if not {"mu", "sigma"} <= set(arrays):
        raise ValueError(f"{path} has no mu and sigma: it holds no statistics of features; give another file")
    statistics = {POOL: _statistics(arrays["mu"], arrays["sigma"], path)}
    if {"mu_s", "sigma_s"} <= set(arrays):
        statistics[SPATIAL] = _statistics(arrays["mu_s"], arrays["sigma_s"], path)
    return FeatureSet(manifest, statistics=statistics)


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            # ADM's files hold the images too, as arr_0: they are not read
            return {name: torch.from_numpy(file[name]) for name in ("mu", "sigma", "mu_s", "sigma_s") if name in file}
    except Exception as error:  # damaged bytes make numpy raise almost any type
        raise ValueError(f"{path}: no .npz file of statistics ({error!r}); download it again") from error


def _torch(path: Path) -> dict[str, Tensor]:
    # torch-fidelity pickles numpy arrays: only these names may be called while reading
    rebuild = np.zeros(1).__reduce__()[0]
    # files written with numpy 1 have an older name of the first one's module
    allowed: list[Any] = [
        rebuild,
        (rebuild, "numpy.core.multiarray._reconstruct"),
    ]
    allowed += [np.ndarray, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]

    def read() -> object:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about formats that raise an error below
            return torch.load(path, map_location="cpu", weights_only=True)

    found = guarded(path, read, "save its mu and sigma alone, as .npz")
    if not isinstance(found, dict):
        return {}
    arrays = {name: value for name, value in found.items() if name in ("mu", "sigma")}
    return guarded(path, lambda: {name: torch.as_tensor(value) for name, value in arrays.items()})


def _statistics(mean: Tensor, covariance: Tensor, path: Path) -> Statistics:
    d = mean.numel()
    if mean.ndim != 1 or covariance.shape != (d, d):
        raise ValueError(f"{path}: mu has the shape {[*mean.shape]} and sigma {[*covariance.shape]}: not statistics")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path}: its statistics hold NaN or infinity; download the file again, or make it anew")
    return Statistics(n=None, mean=mean.double(), covariance=covariance.double())
