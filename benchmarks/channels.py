"""Two channels of latents beside those of their reference, a point for each place, to see whether they arrived. Axes
are in standard deviations of the latents that the reference was made for.

    python -m benchmarks.channels runs/arrive/arrived docs/pictures/rings.png --channels 0 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from dmvae.latents.store import LatentSet

POINTS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", type=Path, help="RUN/VARIANT, of a variant with a reference")
    parser.add_argument("file", type=Path, help="the picture, .png or .svg")
    parser.add_argument("--channels", type=int, nargs=2, default=[0, 1], metavar="N", help="from 0 (default: 0 1)")
    known = parser.parse_args()
    for needed in ("reference/map.safetensors", "latents/latents"):
        if not (known.variant / needed).exists():
            parser.error(f"no {known.variant / needed}; give RUN/VARIANT of a variant with a reference that has ended")
    reference = load_file(known.variant / "reference/map.safetensors")["latents"]
    usual = load_file(known.variant / "reference/normalisation.safetensors")
    latents = LatentSet(known.variant / "latents/latents")
    raw = latents.stored(range(min(POINTS, len(latents))))[0].float()
    if not set(known.channels) <= set(range(raw.shape[1])):
        parser.error(f"--channels: there are {raw.shape[1]}, counted from 0")
    mine = (raw - usual["mean"].view(-1, 1, 1)) / usual["std"].view(-1, 1, 1)
    picture(known.file, {"reference": reference, "latents": mine}, known.channels)


def picture(file: Path, sets: dict[str, torch.Tensor], channels: list[int]) -> None:
    """Latents [n, C, H, W] of each name in a panel, of equal scales."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(sets), sharex=True, sharey=True)
    for axis, (name, z) in zip(axes, sets.items(), strict=True):
        x, y = (z[:, channel].flatten()[:POINTS] for channel in channels)
        axis.scatter(x, y, s=1.5, linewidths=0)
        axis.set(title=name, aspect="equal", xlabel=f"channel {channels[0]}", ylabel=f"channel {channels[1]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    print(f"{file}: {', '.join(sets)}")


if __name__ == "__main__":
    main()
