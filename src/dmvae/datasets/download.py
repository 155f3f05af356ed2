"""Where public data sets are looked for, and how they are downloaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """The folder of downloads and decoded images: `$XDG_CACHE_HOME/dmvae`, by default ~/.cache/dmvae."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dmvae"


def data_folders() -> list[Path]:
    """[the folder that $DMVAE_DATA names], or []."""
    named = os.environ.get("DMVAE_DATA")
    return [Path(named).expanduser()] if named else []


def existing_folder(root: str) -> Path:
    """`data.root` as a path. Raises ValueError if it is no folder."""
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"data.root: {path} {what} (looked from {Path.cwd()}): give the folder that holds the images")
    return path


def download(name: str, fetch: Callable[[str], object]) -> Path:
    """Let `fetch(folder)` download into a fresh folder, then move its subfolder `name` into the cache.

    The move is atomic: a killed run leaves nothing that looks finished, and if several ranks download at once, one of
    them wins. Returns the finished folder. Raises what `fetch` raises.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fetch(scratch)
        try:
            os.replace(Path(scratch) / name, target)
        except OSError:
            if not target.is_dir():  # otherwise another process finished first
                raise
    return target
