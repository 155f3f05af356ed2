"""What a figure rests on, as plain data beside it, and whether two figures may be compared."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings

import dmvae
from dmvae.config import Values, dotted

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "diffusers", "torch-fidelity", "lpips")
"""Those that compute the figures, beside ours."""
OURS = "dmvae"
"""Its version refuses nothing: what a release measures in another way it says in features and protocol."""
PLACES = ("path", "call", "time", "intervals")
"""Keys that say where and when, not what."""
COMPARABLE = ("reference", "features", "protocol", "count", "versions")
"""Parts of a score's manifest that agree between scores that may be compared. What was measured, how it was
sampled and from which weights, is what comparisons are made for."""


PREPARED = ("size", "resize")
"""Facts of images that agree between sets that may be compared."""


def versions() -> dict[str, str]:
    """Of Python, of dmvae and of the packages that are installed."""
    found = {"python": platform.python_version(), OURS: dmvae.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(a: object, b: object, where: str = "") -> list[str]:
    """ "field: value of a, value of b" for every field in which two manifests differ, with dotted names.

    Fields that only one of them has are not known of the other, and no difference: statistics of other projects tell
    little of themselves. `unknown` names those.
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
    """Raise ValueError naming the fields in which two manifests differ; with `force`, warn of them instead.
    Fields that only one tells are warned of, and so is another version of dmvae."""
    differ = differences(a, b)
    if not force and any(not line.startswith(f"versions.{OURS}: ") for line in differ):
        how = "; --size N brings images to one size" if any(".size" in line for line in differ) else ""
        raise ValueError(f"{what} do not compare: {'; '.join(differ)}{how}. --force compares them all the same")
    if differ:
        warnings.warn(f"{what} differ: {'; '.join(differ)}", stacklevel=2)
    if missing := unknown(a, b):
        warnings.warn(f"{what}: only one of the two tells {', '.join(missing)}; make sure of them", stacklevel=2)


def require_comparable(a: Values, b: Values, *, force: bool = False) -> None:
    """`require_same` of what two scores' manifests share when one may be set beside the other."""
    x, y = ({key: manifest[key] for key in COMPARABLE if key in manifest} for manifest in (a, b))
    for kept, manifest in ((x, a), (y, b)):
        if "train" in a and "train" in b:  # of what one alone was measured by, the other has no figure
            kept["train"] = manifest["train"]
        kept["measured"] = {key: value for key, value in manifest.get("measured", {}).items() if key in PREPARED}
    require_same(x, y, "the scores", force=force)
