"""Hand-over: the measured distance says which of two objectives moves the latents."""

import re

import pytest
import torch

from dmvae import config as configs
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import DMD, Context, Energy, HandOver, Matching, Transport
from dmvae.references.gaussian import Gaussian, GaussianReference
from dmvae.runtime.random import Random

POINT = Gaussian((2, 2, 2), 3, 1.0)
FAR, NEAR = Transport(samples=32, slices=6), DMD(guidance=1.0)
Z, LABELS = Random(0).normal(8, 2, 2, 2) + 3, torch.zeros(8, dtype=torch.int64)


def student(z, t, labels):
    return -z


def context(distance=None):
    return Context(Random(1), 3, reference=POINT, distance=distance)


def pull(objective, distance=None):
    z = Z.clone().requires_grad_()
    loss, log = objective.loss(z, LABELS, POINT.velocity, student, context(distance))
    loss.backward()
    return z.grad, log


@pytest.mark.parametrize(("distance", "part"), [(float("inf"), FAR), (1.6, FAR), (1.5, NEAR), (0.9, NEAR)])
def test_the_distance_decides_whose_gradient_it_is(distance, part):
    found, log = pull(HandOver(far=FAR, near=NEAR, below=1.5), distance)
    alone, its = pull(part)
    assert torch.equal(found, alone)
    assert not torch.equal(found, pull(FAR if part is NEAR else NEAR)[0])
    assert set(log) == {*its, "matching/refines"}
    assert log["matching/refines"] == (part is NEAR)


def test_the_student_is_the_near_one_s_and_learns_all_the_while():
    objective = HandOver(far=FAR, near=DMD(guidance=1.0, divergence="forward_kl"))
    model = FlowModelConfig(width=8, depth=1, heads=1)
    network = objective.new_student((2, 2, 2), 3, None, model)
    assert hasattr(network, "critic"), "that of a density ratio"
    for distance in (float("inf"), 1.0):
        loss, log = objective.student_loss(network, Z, LABELS, context(distance))
        assert "ratio/accuracy" in log
        assert loss.requires_grad


def test_it_needs_what_its_parts_need():
    needs = ("has_student", "needs_teacher", "needs_reference", "differentiates")
    assert [getattr(HandOver(), name) for name in needs] == [True, True, True, False]
    plain = HandOver(near=Energy(queue=16))
    assert [getattr(plain, name) for name in needs[:3]] == [False, False, True]
    assert plain.needs_recent == 16
    assert configs.read(Matching, {"type": "hand_over", "far": {"type": "normality"}}).only_for == ("gaussian",)
    assert HandOver(near=DMD(divergence="forward_kl")) != HandOver(near=DMD())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"far": {"type": "dmd"}}, "far: 'dmd' trains a student; give one without, such as transport"),
        ({"near": {"type": "hand_over"}}, "no hand_over in a hand_over"),
        ({"below": 0.5}, "below: expected a number, 1 to .* got 0.5"),
    ],
)
def test_what_cannot_be_handed_over_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        configs.read(Matching, {"type": "hand_over"} | section)


def test_problems_say_which_part_has_them():
    objective = HandOver(far=Transport(slices=300), near=Energy(samples=1))
    first, second = objective.problems(8, 3, GaussianReference())
    assert re.search(r"^matching\.objective\.far\.slices: 300, of which 100", first)
    assert second.startswith("matching.objective.near.samples: 1;")


def test_a_distance_that_is_not_measured_says_so():
    with pytest.raises(ValueError, match=r"hand_over goes by .* give context=Context\(..., distance=MULTIPLE_OF_CH"):
        pull(HandOver())
