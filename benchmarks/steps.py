"""Images per second of each training stage's step, and its share of the machine's measured peak of matrix products:

    python -m benchmarks.steps [--recipe recipes/demo.yaml] [--stage matching] [--compile] [--seconds 8]
                               [--device cuda] [--section.field value]

The recipe's variant with the most stages is timed. Any field of it is an option, as for `dmvae run`:
--run.precision bfloat16, or --data.root where one is required. Data are procedural, networks are the recipe's. With
--compile, compiled and eager steps take turns, and the seconds of the first 15 compiled steps are printed too, with
nothing kept from an earlier compilation. On a GPU also the most memory that eager steps take. Ratios of one run
compare; absolute figures move with the machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import CYCLE, fastest, median_seconds, memory, peak_flops, wait
from dmvae import pipeline
from dmvae.commands.parser import parse_overrides
from dmvae.datasets.pixels import as_input
from dmvae.datasets.shapes import Shapes
from dmvae.evaluation.online import online_proxies
from dmvae.inputs import Inputs
from dmvae.jobs import Job, plan
from dmvae.recipe import Recipe, load
from dmvae.runtime.footprint import Footprint
from dmvae.runtime.heap import keep_freed_memory
from dmvae.runtime.precision import uses_bf16
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

HEADING = f"{'times eager':>12} {'first steps, s':>15}"
TRAINING = ("encoder", "tokenizer", "reference", "matching", "decoder", "generator")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="file or name (default: %(default)s)")
    parser.add_argument("--stage", choices=TRAINING, help="this stage alone")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long a stage is timed (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="as `run.compile: true` does, beside eager steps")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    args, rest = parser.parse_known_args()
    keep_freed_memory()  # as a command does
    recipe = max(load(args.recipe, parse_overrides(rest)).values(), key=lambda r: len(stages_of(r)))
    if args.compile:  # eager steps stand beside the compiled ones, whatever the recipe has
        recipe = replace(recipe, run=replace(recipe.run, compile=False))
    if args.stage not in (None, *stages_of(recipe)):
        parser.error(f"{args.recipe} has no stage `{args.stage}`; there are {', '.join(stages_of(recipe))}")
    dtype = torch.bfloat16 if uses_bf16(args.device, recipe.run.precision) else torch.float32
    peak = peak_flops(dtype, 5, args.device)
    name = str(dtype).removeprefix("torch.")
    print(
        f"peak of matrix products, {name}, {args.device}, {torch.get_num_threads()} threads: {peak / 1e9:.0f} GFLOP/s"
    )
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepare(recipe, Path(folder), args.stage)
        print(f"{'stage':<10} {'images/s':>9} {'share of peak':>14}{HEADING if args.compile else ''}")
        for stage in stages_of(recipe):
            if args.stage not in (None, stage):
                continue
            memory(args.device, reset=True)
            steps = Steps(jobs[stage], args.device)
            operations, timed, first = flops_per_image(steps), [steps], 0.0
            taken = memory(args.device)
            if args.compile:
                timed = [Steps(jobs[stage], args.device, compiled=True), steps]
                first = timed[0].first()
            seconds = fastest(timed, args.seconds)
            images = steps.batch_size / seconds[0]
            more = f"{seconds[1] / seconds[0]:>12.2f} {first:>15.1f}" if args.compile else ""
            print(f"{stage:<10} {images:>9.0f} {images * operations / peak:>14.0%}{more}{taken}", flush=True)
            if stage == "matching" and steps.trainer.config.proxy_every:
                print(f"  of which the proxies of gFD {proxy_seconds(steps) / seconds[-1]:.1%}")


def stages_of(recipe: Recipe) -> dict[str, Any]:
    """The training stages that the recipe has, and their sections."""
    return {name: config for name in TRAINING if (config := recipe.section(name)) is not None}


def prepare(recipe: Recipe, folder: Path, until: str | None) -> dict[str, Job]:
    """The recipe on procedural data, every stage before `until` run for one step: what the timed steps read."""
    data = Shapes(size=recipe.data.size, channels=recipe.data.channels, count=1024)
    stages = {name: replace(config, steps=1) for name, config in stages_of(recipe).items()}
    recipe = replace(recipe, data=data, run=replace(recipe.run, dir=str(folder), tracker="none"), **stages)
    jobs = {job.stage.name: job for job in plan({"main": recipe}, folder)}
    for name, job in jobs.items():
        if name == until:
            break
        if name == "latents" or name in TRAINING[:-1]:
            pipeline.execute(job)
    return jobs


class Steps:
    """Runs a stage's steps one after another, as the loop does, without its logging."""

    def __init__(self, job: Job, device: torch.device, compiled: bool = False) -> None:
        recipe = replace(job.recipe, run=replace(job.recipe.run, compile=compiled or job.recipe.run.compile))
        inputs = Inputs(recipe, job.variant, job.folder, job.reads, device)
        self.trainer = Trainer(job.stage(job.recipe.section(job.stage), inputs))
        self.batch_size = self.trainer.config.batch_size
        dataset = self.trainer.stage.data()
        data, labels = dataset.__getitems__([i % len(dataset) for i in range(self.batch_size)])
        self.data, self.labels = as_input(data, device), labels.to(device)
        self.images = None  # beside latents, for a generator that is aligned to features
        if self.trainer.stage.sees_images:
            of = recipe.data
            self.images = torch.zeros(self.batch_size, of.channels, of.size, of.size, device=device)
        self.step = 60

    def first(self) -> float:
        """Seconds of the first steps, in which networks are compiled, with nothing kept from an earlier time."""
        torch._inductor.config.force_disable_caches = True
        begun = time.perf_counter()
        self.cycle()
        wait()
        return time.perf_counter() - begun

    def cycle(self) -> None:
        """So many steps that every kind of step is among them."""
        for _ in range(CYCLE):
            self()

    def __call__(self, _: int = 0) -> None:
        self.at(self.step)
        self.step += 1

    def at(self, step: int) -> None:
        """A step of that number, as one past a training's last: the adversary acts, as in most of a training."""
        self.trainer.step = step
        for _ in self.trainer.train_step(Batch(self.data, self.labels, step, max(1, step), self.images)):
            pass


def flops_per_image(steps: Steps) -> float:
    """Operations of products and convolutions, forward and backward; of eager networks, for the counter does not see
    into compiled ones."""
    steps()
    total = 0.0
    for step, share in steps.trainer.stage.kinds().items():
        with Footprint() as count:
            steps.at(step)
        total += share * count.flops
    return total / steps.batch_size


@torch.no_grad()
def proxy_seconds(steps: Steps, repeat: int = 10) -> float:
    """What measuring the proxies costs a step of matching, on average over the steps between two measurements."""
    config, model = steps.trainer.config, steps.trainer.networks.autoencoder
    z = model.normalize(model.encode(steps.data).latents)

    def measured() -> None:
        online_proxies(z, steps.labels, lambda z: model.decode(model.denormalize(z)).sample)

    return median_seconds(measured, repeat) / (config.proxy_every * config.every)


if __name__ == "__main__":
    main()
