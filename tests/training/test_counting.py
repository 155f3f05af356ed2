"""What a plan counts on tensors without memory is what a real step takes."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tiny
from dmvae.inputs import Blueprint
from dmvae.recipe import load
from dmvae.training.counting import cost_of
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"


def blueprint(name, stage, fake, **over):
    options = {f"{stage}.batch_size": 8} | ({"data.root": "."} if name == "image_folder" else {}) | over
    recipe = next(iter(load(RECIPES / f"{name}.yaml", options).values()))
    found = next(s for s in recipe.stages() if s.name == stage)
    reads = {read: recipe.section(read) for read in found.reads if recipe.section(read) is not None}
    return found, recipe, Blueprint(recipe, "", reads, 10, fake)


def allocated(stage, recipe, inputs) -> int:
    """Bytes that the allocator gave at a real step's peak, beyond those that were there before: torch's profiler says,
    which sees every allocation, and knows nothing of what is counted."""
    trainer = Trainer(stage(recipe.section(stage), inputs))
    peak = 0
    for step in trainer.stage.kinds():
        trainer.step = step
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            batch = Batch(torch.zeros(8, *trainer.stage.item_shape), torch.zeros(8, dtype=torch.int64), step, step)
            for _ in trainer.train_step(batch):
                pass
        alive = 0
        for event in seen.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                peak = max(peak, alive)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage", "checkpointing"),
    [("smoke", "matching", []), ("demo", "generator", ["generator"]), ("image_folder", "tokenizer", [])],
)
def test_the_count_is_within_a_tenth_of_what_the_allocator_gives(name, stage, checkpointing):
    over = {"run.precision": "float32", "losses.perceptual": None, "run.checkpointing": checkpointing}
    kind, _, inputs = blueprint(name, stage, True, **over)
    found = allocated(*blueprint(name, stage, False, **over))
    assert found > 0
    assert cost_of(kind, inputs).working == pytest.approx(found, rel=0.1)


def test_turns_count_by_how_often_they_come(tmp_path):
    """With a tokenizer update in every k-th step, a step costs what the student's does, and a k-th of the update."""

    def flops(every):
        path = tiny.write(tmp_path, variants={"main": {}}, matching__student_steps=every)
        recipe = load(path)["main"]
        kind = next(s for s in recipe.stages() if s.name == "matching")
        reads = {read: recipe.section(read) for read in kind.reads if recipe.section(read) is not None}
        return cost_of(kind, Blueprint(recipe, "", reads, 3, fake=False)).flops

    one, two, four = map(flops, (1, 2, 4))
    assert one > two
    assert one - two == pytest.approx(2 * (two - four), rel=1e-6)


@pytest.mark.slow
def test_the_paper_s_generator_fits_a_gpu_of_80_gb():
    """XL/1 at 128 images a GPU, in GiB: weights, gradients, moments, average and activations."""
    kind, _, inputs = blueprint("imagenet256", "generator", True, **{"generator.batch_size": 1024})
    cost = cost_of(kind, inputs, ranks=8, gpu=True)
    assert cost.trained == pytest.approx(675e6, rel=0.02)
    assert 50 < cost.peak / 2**30 < 70
