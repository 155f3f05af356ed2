"""Objectives between samples: each takes points to a reference that they start apart from, without a teacher."""

import pytest
import torch

from dmvae import config as configs
from dmvae.matching import Context, Matching
from dmvae.matching.between import BetweenSamples
from dmvae.references.gaussian import Gaussian
from dmvae.registry import find, names
from dmvae.runtime.random import Random

SHAPE = (2, 2, 2)
STEPS = 100
OBJECTIVES = [name for name in names(Matching) if issubclass(find(Matching, name), BetweenSamples)]


def test_there_is_one_of_each_kind():
    assert OBJECTIVES == ["drift", "energy", "mmd", "moments", "normality", "sinkhorn", "transport"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_latents_reach_a_gaussian(name):
    objective = find(Matching, name)(samples=128, vectors=128)
    reference = Gaussian(SHAPE, 3, 1.0)
    # The pull of a normality test, and of kernels, fades with the distance.
    away = {"normality": 0.5, "mmd": 1.0}.get(name, 3.0)
    z = (away + 0.3 * Random(0).normal(64, *SHAPE)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    labels = torch.zeros(len(z), dtype=torch.int64)
    for step in range(STEPS):
        context = Context(Random(1, step), 3, progress=step / STEPS, reference=reference)
        loss, log = objective.loss(z, labels, context=context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(log) == {f"{name}/{view}" for view in ("whole", "token", "pair")}
    assert z.mean().abs() < 0.25
    assert 0.6 < z.std() < 1.4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_says_what_it_lacks(name):
    objective = find(Matching, name)()
    assert objective.new_student(SHAPE, 3, None, None) is None
    with pytest.raises(ValueError, match=f"{name} compares latents with samples: give context.reference"):
        objective.loss(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("transport", {"views": ()}, "views: give at least one"),
        ("sinkhorn", {"eps": 0.0}, "eps: expected a number, above 0, to below 100, got 0.0"),
        ("mmd", {"bandwidths": ()}, "bandwidths: give at least one"),
        ("drift", {"bandwidths": (0.0, 1.0)}, r"bandwidths\[0\]: expected a number, above 0"),
        ("normality", {"std": -1.0}, "std: expected a number, above 0"),
        ("energy", {"samples": 0}, "samples: expected a whole number, 1 to"),
    ],
)
def test_fields_that_make_no_sense_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        configs.read(Matching, {"type": name} | fields)
