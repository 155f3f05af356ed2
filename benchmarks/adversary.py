"""Whether a discriminator learns to tell a tokenizer's reconstructions from images, at several learning rates.

    python -m benchmarks.adversary RUN VARIANT [--learning-rates 1e-3 3e-4 1e-4] [--norms none group] [--steps 400]

The first table is of the variant's own discriminators, one a stage, which trained against a decoder that learned to
deceive them: the mean difference of their answers to images and to reconstructions, and the mean weight of their loss,
in the second half of their time. A difference of 2 is certainty, 0 is nothing told apart. Steps are the stage's, from
the first row of its log that has the discriminator to the last: in `matching` it learns in one of `student_steps`.

The second table (none with --steps 0) is of new ones, each a PatchGAN of the recipe's size, beside a tokenizer that
stays as it is: what the stage `matching` has made, or the stage `tokenizer` where there is no other. Its differences
are means over the last quarter of the steps.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.tables import header, line
from dmvae.datasets.mixed import mixed
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.evaluation.pairs import psnr
from dmvae.jobs import Job, jobs_of
from dmvae.runtime.console import Bar
from dmvae.runtime.heap import keep_freed_memory
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import discriminate
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training import adversary
from dmvae.training.logging import read_figures
from dmvae.training.stage import TrainingStage

IMAGES, BATCH = 2560, 32


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adversary", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-4, 1e-4])
    parser.add_argument("--norms", nargs="+", default=["none", "group"], choices=["none", "group", "batch"])
    parser.add_argument("--steps", type=int, default=400)
    known = parser.parse_args()
    made = {job.stage.name: job for job in jobs_of(known.run) if job.variant == known.variant and job.finished}
    name = next((name for name in ("matching", "tokenizer") if name in made), None)
    if name is None:
        parser.error(f"{known.run} has no finished stage tokenizer or matching of {known.variant}")
    print(header(["stage", "steps with a discriminator", "difference of answers", "weight"]))
    for stage, own in made.items():
        if issubclass(own.stage, TrainingStage):
            steps, gap, weight = adversary.told_apart(read_figures(own.folder / "log.jsonl"))
            if steps:
                print(line([stage, str(steps), f"{gap:.3f}", f"{weight:.2g}"]), flush=True)
    if known.steps == 0:
        return
    print()
    job = made[name]
    if job.recipe.losses.adversarial.type != "patchgan":
        parser.error(
            f"{known.variant} has a discriminator {job.recipe.losses.adversarial.type!r}; give one with patchgan"
        )
    x, recon = pairs(job)
    quality = psnr(to_uint8(x), to_uint8(recon)).mean()
    print(header(["stage", "PSNR, dB", "norm", "learning rate", "difference of answers"]))
    for norm in known.norms:
        for rate in known.learning_rates:
            gap = learned(job, x, recon, norm, rate, known.steps)
            print(line([name, f"{quality:.2f}", norm, f"{rate:g}", f"{gap:.3f}"]), flush=True)


@torch.no_grad()
def pairs(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images [n, c, h, w] in [-1, 1], and their reconstructions by the tokenizer that the stage has made."""
    images = mixed(job.recipe.data.build("train"))
    tokenizer = load_tokenizer(job.folder / "autoencoder").eval()
    found = torch.stack([torch.as_tensor(images[i][0]) for i in range(min(IMAGES, len(images)))])
    x = as_input(found, torch.device("cpu"))
    with Bar("reconstructions", len(x), "images") as bar:
        recon = []
        for chunk in x.split(64):
            recon.append(tokenizer.decode(tokenizer.encode(chunk).latents).sample)
            bar.step(len(chunk))
    return x, torch.cat(recon)


def learned(job: Job, x: torch.Tensor, recon: torch.Tensor, norm: str, rate: float, steps: int) -> float:
    """Mean difference of answers over the last quarter of so many steps of a new discriminator."""
    torch.manual_seed(0)
    config = replace(job.recipe.losses.adversarial, norm=norm)
    network = config.build(size=x.shape[-1], channels=x.shape[1]).train()
    betas = job.recipe.section(job.stage.name).betas
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=betas, weight_decay=0.0)
    gaps = []
    for step in range(steps):
        rng = Random(0, "benchmark", "adversary", step)
        chosen = rng.integers(len(x), BATCH)
        update = discriminate(network, config, x[chosen], recon[chosen], rng)
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        gaps.append((update.log["adversarial/real"] - update.log["adversarial/fake"]).item())
    return fmean(gaps[-(steps // 4 or 1) :])


if __name__ == "__main__":
    main()
