"""The loss of the best velocity that knows a mean and a spread, by which a student's lag is measured."""

import math

import pytest
import torch

from dmvae.flow.loss import flow_matching_loss, gaussian_loss, sample_time
from dmvae.matching import DMD, LAG, Context
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random

SHAPE = (2, 2, 2)
LABELS = torch.zeros(20000, dtype=torch.int64)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_it_is_the_loss_of_the_closed_form_of_a_gaussian(distribution, std):
    rng = Random(0)
    z = std * rng.normal(len(LABELS), *SHAPE) + 7 * Random(1).normal(1, *SHAPE)
    t, noise = sample_time(len(z), distribution, rng), rng.normal(*z.shape)
    centre = z.mean(0)

    def velocity(z_t, t, labels):  # of the Gaussian about its mean: E[z - noise | z_t]
        t = t.view(-1, 1, 1, 1)
        return centre + (t * std**2 - (1 - t)) / ((t * std) ** 2 + (1 - t) ** 2) * (z_t - t * centre)

    least = float(gaussian_loss(z, distribution))
    assert least == pytest.approx(float(flow_matching_loss(velocity, z=z, labels=LABELS, t=t, noise=noise)), rel=0.02)
    if distribution == "uniform":
        assert least == pytest.approx(math.pi / 2 * std, rel=0.02)


@pytest.mark.parametrize(("std", "lag"), [(1.0, 1.0), (0.5, 1.25), (2.0, 1.25), (0.2, 2.6)])
def test_a_student_of_latents_that_have_moved_on_lags(std, lag):
    """It still knows a standard Gaussian: at spread s its loss is (1 + s^2) pi / 4, and lag is (s + 1 / s) / 2."""
    stale = Gaussian(SHAPE, 3, 1.0).velocity
    z = std * Random(2).normal(len(LABELS), *SHAPE)
    _, log = DMD().student_loss(stale, z, LABELS, Context(Random(3), 3))
    assert float(log[LAG]) == pytest.approx(lag, rel=0.02)
