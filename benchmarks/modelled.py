"""How well generators model their latents, before any decoder: the figures "sampled latents" of a run's table.

    python -m benchmarks.modelled runs/tiny-imagenet-32 [VARIANT ...]
    python -m benchmarks.modelled runs/tiny-imagenet-32 matched@0 kl_3e-1@0 --count 8192 --steps 250 1000 --picture FILE
    python -m benchmarks.modelled runs/tiny64 --seed 0 1 2

Draws again, from the same seeds, what the stage `sample` drew at its first guidance scale, and compares as `evaluate`
does; of a run that drew more than it compares, others of them. "Told apart" is a share (0.50 is a perfect generator),
where a run's table has percent; spread and (effective) rank are over those of the data's latents. Of several seeds it
prints means and standard deviations. With --steps, also from the generators' snapshots of those steps
(`generator.keep_at`): how soon latents are learned. With --count, more than a table's 2048: less of the figures is
chance, and multiples of it are larger. Decoders need not have been trained.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.tables import header, line
from dmvae.generators import Generator, load_generator
from dmvae.inputs import generator_of, kept_steps
from dmvae.jobs import Job, jobs_of
from dmvae.latents.store import LatentSet
from dmvae.models.velocity import VelocityModel
from dmvae.report.run import COLOURS
from dmvae.runtime.console import Bar
from dmvae.runtime.precision import autocast
from dmvae.stages.measuring import EvaluateConfig
from dmvae.stages.modelled import LEAST, in_shares, learned, modelled
from dmvae.stages.sample import SampleConfig, drawn_labels, generate_latents, image_seed
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
Curve = dict[int, dict[str, float]]
"""Generator's step -> its figures there."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="all that have generators, unless given")
    parser.add_argument(
        "--seed", type=int, nargs="+", help="of other samples and other sets of the data; the recipe's by default"
    )
    parser.add_argument(
        "--count", type=int, help=f"latents to compare; as many as a table's, at most {LATENTS}, by default"
    )
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="snapshots, besides the finished generator")
    parser.add_argument("--picture", type=Path, help="file for the curves over --steps, as .svg or .png")
    known = parser.parse_intermixed_args()
    jobs = _chosen(parser, known)
    print(header(["method", "steps", *COLUMNS.values()]))
    curves: dict[str, Curve] = {}
    for variant, job in jobs.items():
        for step in [*known.steps, job.recipe.section("sample").snapshot]:
            drawn = [figures(job, seed, known.count, step) for seed in known.seed or [job.recipe.seed]]
            found = {key: [one[key] for one in drawn] for key in COLUMNS}
            named = step or job.recipe.section("generator").steps
            curves.setdefault(variant, {})[named] = {key: fmean(values) for key, values in found.items()}
            print(line([variant, f"{named:,}", *map(_cell, found.values())]), flush=True)
    if known.picture is not None:
        draw(curves, known.picture)


def _cell(values: list[float]) -> str:
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _chosen(parser: argparse.ArgumentParser, known: argparse.Namespace) -> dict[str, Job]:
    """Variant -> its stage `sample`. Ends the program where something asked for is not there, before drawing."""
    try:
        jobs = sampled_by(jobs_of(known.run))
    except ValueError as error:
        parser.error(str(error))
    if known.count is not None and known.count < LEAST:
        parser.error(f"--count: {known.count}; give {LEAST} or more")
    if known.picture is not None and known.picture.suffix not in (".svg", ".png"):
        parser.error(f"--picture: {known.picture}; give a name that ends in .svg or .png")
    if not jobs or not set(known.variants) <= set(jobs):
        missing = sorted(set(known.variants) - set(jobs)) or ["any variant"]
        parser.error(f"no finished generator of {', '.join(missing)}; there are {', '.join(jobs) or 'none'}")
    chosen = {variant: jobs[variant] for variant in known.variants or jobs}
    for variant, job in chosen.items():
        for step in known.steps:
            if not (job.reads["generator"] / generator_of(step)).is_dir():
                kept = kept_steps(job.reads["generator"])
                parser.error(f"--steps: {variant} kept none of step {step}; there are {kept}")
    return chosen


def sampled_by(jobs: list[Job]) -> dict[str, Job]:
    """Variant -> its stage `sample`, of those whose generator and latents are there."""
    there = {job.folder for job in jobs if job.finished}
    needed = ("generator", "latents")
    return {
        job.variant: job for job in jobs if job.stage.name == "sample" and there.issuperset(map(job.reads.get, needed))
    }


def figures(job: Job, seed: int, count: int | None = None, step: int | None = None) -> dict[str, float]:
    """Those of that many samples of a stage `sample`, or as many as it keeps, drawn by that seed from the generator of
    that step."""
    if job.recipe.stored_unlike:
        raise ValueError(f"{job.variant}: its generator learned random crops, and no latents of such are stored")
    section, precision = job.recipe.section("sample"), job.recipe.run.precision
    generator = _generator(job, step)
    guide = None if section.guide is None else _generator(job, section.guide)
    assert guide is None or isinstance(guide, VelocityModel)
    stored = LatentSet(job.reads["latents"] / "latents")
    known = stored.labels.unique()  # of a class without an image the generator knows nothing
    labels = known[first_labels(section, seed, count or min(section.count, LATENTS), len(known))]
    settings = section.settings(section.guidance[0], guide)
    drawn: list[Tensor] = []
    with torch.no_grad(), autocast(CPU, precision), Bar(f"{job.variant}  draw", len(labels), "latents") as bar:
        for start in range(0, len(labels), section.batch_size):
            chunk = labels[start : start + section.batch_size]
            seeds = [image_seed(seed, i) for i in range(start, start + len(chunk))]
            drawn.append(generate_latents(generator, chunk, seeds, settings, CPU).float())
            bar.step(len(chunk))
    measured = job.recipe.section("evaluate") or EvaluateConfig()
    most = max(measured.knn_count, 6 * (count or 0))
    data, of = learned(job.reads["latents"], most)
    data = data[torch.isin(of, labels)]
    alike = in_shares(labels, stored.labels, drawn=section.labels == "random")
    found = modelled(torch.cat(drawn)[alike], data, seed, count or LATENTS)
    if not found:
        raise ValueError(f"{job.variant}: {len(labels)} samples and {len(data)} latents are too few to compare")
    return found


def first_labels(section: SampleConfig, seed: int, count: int, classes: int) -> Tensor:
    """int64 [count], below `classes`: the first that the stage draws, or more than it does."""
    return drawn_labels(replace(section, count=max(section.count, count)), seed, classes)[:count]


def _generator(job: Job, of: int | Path | None) -> Generator:
    """Raises ValueError where no snapshot of that step was kept."""
    return load_generator(job.reads["generator"] / generator_of(of)).eval()


def draw(curves: dict[str, Curve], file: Path) -> None:
    """Over the generator's steps: how often whole latents are told apart, left, and their distance, right."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("sampled_told", "sampled_whole"), strict=True):
        for colour, (variant, curve) in zip(cycle(COLOURS), curves.items(), strict=False):
            steps = sorted(curve)
            axes.semilogx(steps, [curve[step][key] for step in steps], "o-", color=colour, label=variant)
        steps = sorted({step for curve in curves.values() for step in curve})
        axes.set_xticks(steps, [f"{step:,}" for step in steps], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel("generator training steps")
        axes.set_ylabel(COLUMNS[key].removesuffix(" ↓"))
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    print(file)


if __name__ == "__main__":
    main()
