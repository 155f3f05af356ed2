import pytest
import torch

from dmvae.flow.path import interpolate
from dmvae.matching import Context
from dmvae.matching.dmd import DMD, gradient
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random
from golden_numbers import load, relative_error, student, teacher


@pytest.fixture(scope="module")
def golden():
    return load("dmd.safetensors"), teacher(), student()


def test_gradient_with_respect_to_latents_is_g_over_numel(golden):
    tensors, teacher, student = golden
    z = tensors["latents"].clone().requires_grad_()
    matching = DMD(guidance=2.0)
    loss, log = matching.loss(z, tensors["labels"], teacher, student, Context(Random(1), 10))
    (pull,) = torch.autograd.grad(loss, z)
    rng = Random(1)
    t = 0.02 + 0.96 * rng.uniform(5)
    g, _ = gradient(z.detach(), rng.normal(*z.shape), t, tensors["labels"], teacher, student, 2.0, 10)
    assert relative_error(pull * z.numel(), g) < 1e-5
    assert {name.split("/")[0] for name in log} == {"gap"}


def test_it_vanishes_when_the_student_is_the_teacher():
    reference = Gaussian((2, 4, 4), 3, 1.0)
    z = 3 * torch.randn(512, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    labels, noise = torch.zeros(512, dtype=torch.int64), torch.randn(512, 2, 4, 4)
    t = torch.full((512,), 0.5)
    g, gap = gradient(z, noise, t, labels, reference.velocity, reference.velocity, 1.0, 3)
    assert g.abs().max() == 0
    assert gap.abs().max() == 0


def test_the_gap_is_the_mean_squared_difference_of_the_estimates():
    """Of Gaussians of standard deviation s, whose estimate is t s^2 / (t^2 s^2 + (1 - t)^2) z_t."""
    z, noise, t = Random(0).normal(5, 2, 3, 3), Random(1).normal(5, 2, 3, 3), Random(2).uniform(5)
    teacher, student = (Gaussian((2, 3, 3), 3, s) for s in (1.0, 0.4))
    labels, z_t, of = torch.zeros(5, dtype=torch.int64), interpolate(noise=noise, z=z, t=t), t.view(-1, 1, 1, 1)
    a, b = (of * x.variance / (of**2 * x.variance + (1 - of) ** 2) * z_t for x in (student, teacher))
    g, gap = gradient(z, noise, t, labels, teacher.velocity, student.velocity, 1.0, 3)
    torch.testing.assert_close(gap, (a - b).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(g, (a - b) / (z - b).abs().mean((1, 2, 3), keepdim=True), rtol=1e-4, atol=1e-5)


def test_time_range_moves_with_progress():
    matching = DMD(time_range=(0.0, 0.2), time_range_end=(0.8, 1.0))
    for progress, low, high in ((0.0, 0.0, 0.2), (0.25, 0.2, 0.4), (0.5, 0.4, 0.6), (1.0, 0.8, 1.0)):
        t = matching._times(1000, Context(Random(0), 1, progress=progress))
        assert low <= t.min() < low + 0.01
        assert high - 0.01 < t.max() <= high + 1e-6


def test_a_bad_range_is_named():
    with pytest.raises(ValueError, match=r"\[0.9, 0.1\]"):
        DMD(time_range=(0.9, 0.1))
