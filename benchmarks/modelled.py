"""How well generators model their latents, before any decoder: the figures "sampled latents" of a run's table, for runs
whose samples were drawn before `dmvae sample` kept latents.

    python -m benchmarks.modelled runs/tiny32 [VARIANT ...]

Draws again, from the same seeds, what the stage `sample` drew at its first guidance scale, and compares as `evaluate`
does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dmvae.generators import load_generator
from dmvae.inputs import generator_of
from dmvae.jobs import Job, jobs_of
from dmvae.latents.store import LatentSet
from dmvae.runtime.console import Bar
from dmvae.stages.modelled import modelled
from dmvae.stages.sample import balanced_labels, generate_latents, image_seed
from dmvae.transport.arrival import LATENTS

CPU = torch.device("cpu")
COLUMNS = {
    "sampled_whole": "sampled latents, × chance ↓",
    "sampled_token": "sampled tokens, × chance ↓",
    "sampled_told": "sampled latents told apart ↓",
    "sampled_token_told": "sampled tokens told apart ↓",
    "sampled_spread": "spread",
    "sampled_rank": "rank",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="all that have samples, unless given")
    parser.add_argument("--seed", type=int, help="of other samples and other sets of the data; the recipe's by default")
    known = parser.parse_args()
    jobs = [job for job in jobs_of(known.run) if job.stage.name == "sample" and job.finished]
    print(f"| method | {' | '.join(COLUMNS.values())} |\n{'| --- ' * (len(COLUMNS) + 1)}|")
    for job in jobs:
        if job.variant in (known.variants or [job.variant]):
            found = figures(job, job.recipe.seed if known.seed is None else known.seed)
            print(f"| {job.variant} | {' | '.join(f'{found[key]:.2f}' for key in COLUMNS)} |", flush=True)


def figures(job: Job, seed: int) -> dict[str, float]:
    """Those of the samples of a finished stage `sample`, drawn by that seed."""
    section = job.recipe.section("sample")
    generator = load_generator(job.reads["generator"] / generator_of(section.snapshot)).eval()
    stored = LatentSet(job.reads["latents"] / "latents")
    labels = balanced_labels(min(section.count, LATENTS), generator.config.num_classes)
    settings = section.settings(section.guidance[0])
    drawn: list[Tensor] = []
    with torch.no_grad(), Bar(f"{job.variant}  draw", len(labels), "latents") as bar:
        for start in range(0, len(labels), section.batch_size):
            chunk = labels[start : start + section.batch_size]
            seeds = [image_seed(seed, i) for i in range(start, start + len(chunk))]
            drawn.append(generate_latents(generator, chunk, seeds, settings, CPU))
            bar.step(len(chunk))
    chosen = torch.linspace(0, len(stored) - 1, min(job.recipe.section("evaluate").knn_count, len(stored))).long()
    data, _ = stored.__getitems__(chosen)
    return modelled(torch.cat(drawn), data, seed)


if __name__ == "__main__":
    main()
