"""How a figure was made, as plain data beside it, and whether two figures may be compared."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings

import dmvae
from dmvae.config import Values, dotted

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "diffusers", "torch-fidelity", "lpips")
"""Packages, besides ours, that compute the figures."""
OURS = "dmvae"
"""A different version of dmvae refuses no comparison: a release that measures differently says so in features and
protocol."""
PLACES = ("path", "call", "time", "intervals")
"""Keys that say where and when something was measured, not what."""
COMPARABLE = ("reference", "features", "protocol", "count", "versions")
"""Parts of a score's manifest that must agree for a comparison. What was measured (its sampling, its weights) may
differ: that is what is compared."""


PREPARED = ("size", "resize")
"""Facts of images that must agree for a comparison."""


def versions() -> dict[str, str]:
    """The versions of Python, dmvae and the installed PACKAGES."""
    found = {"python": platform.python_version(), OURS: dmvae.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(a: object, b: object, where: str = "") -> list[str]:
    """ "field: value of a, value of b" for every field in which two manifests differ, with dotted names.

    A field that only one of them has is no difference, since the other's value is unknown: statistics of other projects
    have few fields. `unknown` names those.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        both = [key for key in a if key in b and key not in PLACES]
        return [line for key in both for line in differences(a[key], b[key], dotted(where, key))]
    return [] if a == b else [f"{where}: {a!r}, {b!r}"]


def unknown(a: object, b: object, where: str = "") -> list[str]:
    """Dotted names of the fields that only one of two manifests has, ignoring packages that only one side has."""
    if not (isinstance(a, dict) and isinstance(b, dict)) or where.endswith("versions"):
        return []
    alone = [dotted(where, key) for key in {**a, **b} if (key in a) != (key in b) and key not in PLACES]
    both = [key for key in a if key in b]
    return alone + [name for key in both for name in unknown(a[key], b[key], dotted(where, key))]


def require_same(a: Values, b: Values, what: str, *, force: bool = False) -> None:
    """Raise ValueError naming the fields in which two manifests differ; with `force`, only warn. Fields that only one
    has, and another version of dmvae, give a warning."""
    differ = differences(a, b)
    if not force and any(not line.startswith(f"versions.{OURS}: ") for line in differ):
        how = "; --size N brings images to one size" if any(".size" in line for line in differ) else ""
        raise ValueError(f"{what} do not compare: {'; '.join(differ)}{how}. --force compares them all the same")
    if differ:
        warnings.warn(f"{what} differ: {'; '.join(differ)}", stacklevel=2)
    if missing := unknown(a, b):
        warnings.warn(f"{what}: only one of the two tells {', '.join(missing)}; make sure of them", stacklevel=2)


def require_comparable(a: Values, b: Values, *, force: bool = False) -> None:
    """`require_same` for the parts of two scores' manifests that must agree for a comparison."""
    x, y = ({key: manifest[key] for key in COMPARABLE if key in manifest} for manifest in (a, b))
    for kept, manifest in ((x, a), (y, b)):
        if "train" in a and "train" in b:  # with training images on one side only, the other has no such figure
            kept["train"] = manifest["train"]
        kept["measured"] = {key: value for key, value in manifest.get("measured", {}).items() if key in PREPARED}
    require_same(x, y, "the scores", force=force)
