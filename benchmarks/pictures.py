"""One picture of a run's samples: a row for each class, the first ten, a block of columns for each method, in the run's
order, or in that of --methods.

    python -m benchmarks.pictures runs/demo docs/pictures/demo_samples.png [--methods matched kl]
    python -m benchmarks.pictures runs/demo FILE.png --reconstructions
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torchvision.io import write_png

CLASSES = 10
"""Rows at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="the picture, .png")
    parser.add_argument(
        "--columns",
        type=int,
        default=8,
        help="images of each class and method, or half of a row of --reconstructions (%(default)s)",
    )
    parser.add_argument("--zoom", type=int, default=2, help="pixels per pixel (%(default)s)")
    parser.add_argument("--reconstructions", action="store_true", help="test images, then each method's copies")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="these alone; NAME@SEED where there are several")
    known = parser.parse_args()
    try:
        there = ended(known.run)
        methods = known.methods or there
        if missing := [name for name in methods if not (known.run / name).is_dir()]:
            raise ValueError(f"no folder {known.run / missing[0]}; methods that have ended: {', '.join(there)}")
        if not methods:
            raise ValueError(f"no method of {known.run} has ended")
        if known.reconstructions:
            reconstructions_picture(known.run, methods, known.file, known.columns, known.zoom)
        else:
            samples_picture(known.run, methods, known.file, known.columns, known.zoom)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def ended(run: Path) -> list[str]:
    """The methods whose figures the summary has."""
    summary = json.loads((run / "summary.json").read_text())
    return [name for name in summary["methods"] if name not in summary.get("not_ended", ())]


def reconstructions_picture(run: Path, methods: Sequence[str], file: Path, columns: int, zoom: int) -> None:
    """Raises ValueError for methods that were evaluated on other test images than the first."""
    found = [load_file(run / method / "evaluate/pictures.safetensors") for method in methods]
    for name, part in zip(methods, found, strict=True):
        if not torch.equal(part["originals"], found[0]["originals"]):
            raise ValueError(f"{name} has other test images than {methods[0]}; draw it alone (--methods {name})")
    rows = [found[0]["originals"], *(part["reconstructions"] for part in found)]
    write([torch.stack([row[: 2 * columns] for row in rows])], file, zoom, ["originals", *methods])


def samples_picture(run: Path, methods: Sequence[str], file: Path, columns: int = 8, zoom: int = 2) -> None:
    write([by_class(run / method / "sample", columns) for method in methods], file, zoom, methods)


def write(blocks: Sequence[torch.Tensor], file: Path, zoom: int, names: Sequence[str]) -> None:
    """Blocks [rows, columns, c, h, w] side by side."""
    grid = torch.cat([F.pad(tile(block), (0, 8, 0, 0), value=255) for block in blocks], dim=2)[:, :, :-8]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_png(grid.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2), str(file))
    print(f"{file}: {', '.join(names)}")


def write_svg(file: Path, svg: str) -> None:
    """A chart of a report's page as a file of its own, on white."""
    names = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(svg.replace("<svg ", f'{names}style="background:#fff;color:#222;font-family:sans-serif" ', 1))
    print(file)


def by_class(folder: Path, columns: int) -> torch.Tensor:
    """uint8 [classes, columns, c, h, w]: first samples of the first classes, at the lowest guidance scale; fewer
    columns where a class has fewer."""
    scales = sorted(folder.glob("guidance-*"), key=lambda path: float(path.name.removeprefix("guidance-")))
    if not scales:
        raise ValueError(
            f"no samples in {folder}; give variants that have ended, NAME@SEED where there are several seeds"
        )
    shards = [load_file(path) for path in sorted(scales[0].glob("samples-*"))]
    images, labels = (torch.cat([shard[key] for shard in shards]) for key in ("images", "labels"))
    chosen = [images[labels == label] for label in labels.unique()[:CLASSES]]
    return torch.stack([part[: min(columns, *map(len, chosen))] for part in chosen])


def tile(block: torch.Tensor) -> torch.Tensor:
    """[rows, columns, c, h, w] -> one image [c, rows * h, columns * w]."""
    return block.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


if __name__ == "__main__":
    main()
