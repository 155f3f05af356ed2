"""The loss of the best velocity that knows a mean and a spread, by which a student's lag is measured."""

import math

import pytest
import torch

from dmvae.flow.loss import FlowPass, drop_labels, flow_matching_loss, gaussian_loss, sample_time
from dmvae.matching import DMD, LAG, Context
from dmvae.models.velocity import VelocityModel
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random

SHAPE = (2, 2, 2)
LABELS = torch.zeros(20000, dtype=torch.int64)


@pytest.mark.parametrize("shift", [1.0, 4.0])
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_it_is_the_loss_of_the_closed_form_of_a_gaussian(distribution, std, shift):
    rng = Random(0)
    z = std * rng.normal(len(LABELS), *SHAPE) + 7 * Random(1).normal(1, *SHAPE)
    t, noise = sample_time(len(z), distribution, rng, shift), rng.normal(*z.shape)
    centre = z.mean(0)

    def velocity(z_t, t, labels):  # of the Gaussian about its mean: E[z - noise | z_t]
        t = t.view(-1, 1, 1, 1)
        return centre + (t * std**2 - (1 - t)) / ((t * std) ** 2 + (1 - t) ** 2) * (z_t - t * centre)

    least = float(gaussian_loss(z, distribution, shift))
    assert least == pytest.approx(float(flow_matching_loss(velocity, z=z, labels=LABELS, t=t, noise=noise)), rel=0.02)
    if distribution == "uniform" and shift == 1:
        assert least == pytest.approx(math.pi / 2 * std, rel=0.02)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_two_ranks_know_as_much_of_a_batch_as_one(monkeypatch, shift):
    z = 3 + 0.5 * Random(2).normal(4, *SHAPE)
    whole = gaussian_loss(z, "uniform", shift)
    theirs = torch.stack([z[2:].mean(0), z[2:].square().mean(0)])
    monkeypatch.setattr("dmvae.runtime.distributed.world_size", lambda: 2)
    monkeypatch.setattr("dmvae.runtime.distributed.average", lambda own: (own + theirs) / 2)
    assert float(gaussian_loss(z[:2], "uniform", shift)) == pytest.approx(float(whole), rel=1e-4)


def test_a_single_image_has_the_spread_of_its_elements():
    z = Random(0).normal(1, 2, 3, 3)
    assert float(gaussian_loss(z, "uniform")) == pytest.approx(math.pi / 2 * float(z.std()))


@pytest.mark.parametrize("shift", [0.25, 1.0, 4.0])
def test_shifted_times_lie_nearer_to_noise(shift):
    """The share below u / (u + shift (1 - u)) is u, for uniform times; the order stays."""
    t, plain = sample_time(20000, "uniform", Random(0), shift), sample_time(20000, "uniform", Random(0))
    for u in (0.1, 0.5, 0.9):
        assert (t < u / (u + shift * (1 - u))).float().mean().item() == pytest.approx(u, abs=0.01)
    assert (t[plain.argsort()].diff() >= 0).all()
    assert torch.equal(t, plain) == (shift == 1)


def test_labels_are_dropped_in_the_share_asked_for_and_else_kept():
    labels = torch.arange(20000) % 3
    some = drop_labels(labels, 0.1, 3, Random(0))
    assert (some == 3).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(some[some < 3], labels[some < 3])
    assert torch.equal(drop_labels(labels, 0.0, 3, Random(0)), labels)
    assert (drop_labels(labels, 1.0, 3, Random(0)) == 3).all()


def test_a_generator_and_a_student_train_at_shifted_times():
    seen = []

    def velocity(z_t, t, labels):
        seen.append(t)
        return torch.zeros_like(z_t)

    class Network(VelocityModel):
        forward = staticmethod(velocity)
        time_distribution, time_shift = "uniform", 9.0

    z = torch.zeros(20000, 1, 1, 1)
    Network().loss(z, LABELS, Random(0))
    DMD().student_loss(velocity, z, LABELS, Context(Random(0), 3, time_shift=9.0))
    assert [float(t.median()) for t in seen] == pytest.approx([0.1, 0.1], abs=0.01)


@pytest.mark.parametrize(("std", "lag"), [(1.0, 1.0), (0.5, 1.25), (2.0, 1.25), (0.2, 2.6)])
def test_a_student_of_latents_that_have_moved_on_lags(std, lag):
    """It still knows a standard Gaussian: at spread s its loss is (1 + s^2) pi / 4, and lag is (s + 1 / s) / 2."""
    stale = Gaussian(SHAPE, 3, 1.0).velocity
    z = std * Random(2).normal(len(LABELS), *SHAPE)
    _, log = DMD().student_loss(stale, z, LABELS, Context(Random(3), 3))
    assert float(log[LAG]) == pytest.approx(lag, rel=0.02)


@pytest.mark.parametrize(("times", "shift"), [("uniform", 4.0), ("logit_normal", 1.0)])
def test_an_exact_student_does_not_lag_at_whatever_times_it_trains(times, shift):
    z, exact = Random(2).normal(len(LABELS), *SHAPE), Gaussian(SHAPE, 3, 1.0).velocity
    context = Context(Random(3), 3, time_distribution=times, time_shift=shift)
    assert float(DMD().student_loss(exact, z, LABELS, context)[1][LAG]) == pytest.approx(1, rel=0.02)


def test_directions_are_compared_place_by_place_whatever_their_length():
    target = Random(0).normal(4, 6, 3, 3)
    long = 1 + Random(1).uniform(4, 1, 3, 3)
    assert FlowPass(long * target, target).direction.item() == pytest.approx(0, abs=1e-6)
    assert FlowPass(-long * target, target).direction.item() == pytest.approx(2, abs=1e-6)
    half = torch.where(torch.arange(3) < 1, -1.0, 1.0)  # a third of the places point away
    assert FlowPass(half * target, target).direction.item() == pytest.approx(2 / 3, abs=1e-6)
    assert FlowPass(2 * target, target).flow.item() == pytest.approx(target.square().mean().item())
