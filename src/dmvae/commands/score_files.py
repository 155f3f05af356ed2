"""Files of scores, which `dmvae measure --json` and the stage `evaluate` write."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path

from dmvae.config import Values
from dmvae.runtime.files import sweep_beside, write_text


def write_scores(result: Values, path: Path) -> None:
    """Write what `measure` returned as JSON. Raises OSError."""
    sweep_beside(path)
    write_text(path, json.dumps(result, indent=1))


def read_scores(path: Path) -> Values:
    """What a file of scores holds. Raises ValueError where there is no file, or it is of another kind."""
    if not path.is_file():
        what = "that is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}; give one that `dmvae measure --json` or a run's stage evaluate wrote")
    try:
        result = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of scores: {error}") from error
    if not isinstance(result, dict) or not all(isinstance(result.get(key), dict) for key in ("metrics", "manifest")):
        raise ValueError(
            f"{path} is not a file of scores: it needs metrics and manifest, as `dmvae measure --json` writes"
        )
    parts = [
        ("manifest", key, result["manifest"].get(key)) for key in ("reference", "measured", "features", "versions")
    ]
    for where, key, value in (*parts, ("", "intervals", result.get("intervals"))):
        if not isinstance(value, dict | None):
            told = f"{where}.{key}" if where else key
            raise ValueError(f"{path} is not a file of scores: {told} is {reprlib.repr(value)}, no mapping")
    for name, value in result["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path} is not a file of scores: metrics.{name} is {value!r}, no number")
    return result
