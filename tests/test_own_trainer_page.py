"""docs/own_trainer.md: its code runs, and its signatures are the code's."""

import inspect
import math
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import tiny
from dmvae.flow.samplers import Sampling
from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.alignment.pointwise import Pointwise
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.matching import DMD, Context
from dmvae.recipe import load
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random

PAGE = (Path(__file__).parents[1] / "docs/own_trainer.md").read_text()


def test_the_page_s_line_gives_figures_their_values():
    student = FlowModelConfig(width=8, depth=1, heads=1).build((2, 2, 2), 3)
    z, labels = Random(0).normal(8, 2, 2, 2).requires_grad_(), torch.zeros(8, dtype=torch.int64)
    teacher = Gaussian((2, 2, 2), 3, 1.0).velocity
    _, log = DMD(time_range=(0.3, 0.9)).loss(z, labels, teacher, student, Context(Random(1), 3))
    there = {"log": log}
    exec(next(line for line in PAGE.splitlines() if line.startswith("values = ")), there)
    sums, counts = torch.stack([log[name] for name in log]).unbind(1)
    assert counts.sum() == 8
    assert math.isnan(there["values"]["gap/t0.12"])
    assert there["values"]["gap/t0.62"] == pytest.approx(float(sums[2] / counts[2]))


def test_the_page_s_functions_bring_in_samples_a_generator_and_an_alignment():
    there = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if block.startswith("def ") or "Sampl" in block:
            exec(block, there)
    shape, labels, rng = (4, 4, 4), torch.arange(32) % 3, torch.Generator().manual_seed(0)
    y = Random("y").normal(256, *shape) + 3
    z = Random("z").normal(32, *shape).requires_grad_()
    reference = there["Samples"](y, torch.zeros(256, dtype=torch.int64))
    there["transport"](z, labels, reference, rng, 3)[0].backward()
    assert (z.grad.mean((0, 2, 3)) < 0).all(), "descent goes to the samples"
    model = FlowModelConfig(width=16, depth=1, heads=2)
    network = model.build(shape, 3)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # a new one says 0
    found = there["sampled"](AveragedModel(network).eval(), shape, labels, 3, rng.manual_seed(1))
    noise = torch.randn(32, *shape, generator=rng.manual_seed(1))
    assert torch.equal(found, network.sample(noise, labels, Sampling(steps=50, guidance=2.0)))
    assert not torch.equal(found, noise)
    for alignment in (Pointwise(), RepaE(model=model, width=8)):
        projection, z.grad = alignment.projection(shape, 3, 6), None
        features = Random("f").normal(32, 6, 4, 4)
        there["align"](alignment, projection, z, labels, features, rng).backward()
        assert z.grad.isfinite().all()
        assert all(weight.grad is not None for weight in projection.parameters() if weight.requires_grad)


def test_a_generator_s_state_is_all_that_contexts_of_a_step_each_need():
    generator = torch.Generator().manual_seed(0)
    Context(generator, 3).rng.normal(2)
    kept = generator.get_state()
    drawn = [Context(generator, 3).rng.normal(2) for _ in range(2)]
    generator.set_state(kept)
    assert all(torch.equal(Context(generator, 3).rng.normal(2), x) for x in drawn)


def test_the_page_s_objective_runs_as_a_plugin(tmp_path):
    """Written from the page alone, it pulls latents to a Gaussian's mean and leaves those that are there."""
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[-1])
    matching = {"objective": {"type": "to_estimate", "earliest": 0.25}, "steps": 2}
    recipe = load(
        tiny.write(
            tmp_path,
            plugins=["mine.py"],
            matching=matching,
            reference={"distribution": {"type": "gaussian"}, "steps": 2},
        )
    )["matched"]
    objective, teacher = recipe.matching.objective, Gaussian((2, 3, 3), 4, 1.0).velocity
    z = torch.full((512, 2, 3, 3), 4.0).requires_grad_()
    loss, log = objective.loss(z, torch.zeros(512, dtype=torch.int64), teacher, None, Context(Random(0), 4))
    (pull,) = torch.autograd.grad(loss, z)
    assert (pull.mean((0, 2, 3)) > 0).all(), "far from the reference, descent goes back to it"
    assert log["to_estimate/gap"] == pytest.approx(2 * loss.item())


@pytest.mark.parametrize("name", sorted({*re.findall(r"`(dmvae[\w.]+)\(([^`]*)\)`", PAGE)}))
def test_the_page_s_signatures_are_the_code_s(name):
    path, arguments = name
    parameters = inspect.signature(pkgutil.resolve_name(path)).parameters
    positional, _, named = ([key.split("=")[0].strip() for key in part.split(",")] for part in arguments.partition("*"))
    said = [key for key in positional if key]
    assert set(said) <= set(parameters)
    if path.startswith("dmvae.flow"):
        assert said == list(parameters)[: len(said)]
        assert [key for key in named if key] == [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
