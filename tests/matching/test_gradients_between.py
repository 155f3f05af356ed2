"""Objectives between samples: their gradients are the equations in their docstrings."""

import pytest
import torch

from dmvae.matching import Matching
from dmvae.registry import find
from dmvae.runtime.random import Random


def others(n):
    """[n, n], an average over all but oneself."""
    return (1 - torch.eye(n, dtype=torch.float64)) / (n - 1)


def unit(v):
    return v / v.norm(dim=2, keepdim=True).clamp_min(1e-9)


def inverse_multiquadric(v, y):
    """The kernel's gradient at vectors v [n, m, d], of bandwidths 0.5 and 2."""
    s = torch.pdist(y).square().mean()
    square = v.square().sum(2, keepdim=True)
    return sum(-2 * v / (b * s * (1 + square / (b * s)) ** 2) for b in (0.5, 2.0)) / 2


def mean_shift(z, x, h, share):
    weight = (-(z[:, None] - x).norm(dim=2) / h).exp() * share
    return (weight / weight.sum(1, keepdim=True)) @ x


def of_energy(z, y):
    return 2 * unit(z[:, None] - y).mean(1) - 2 * (others(len(z))[..., None] * unit(z[:, None] - z)).sum(1)


def of_mmd(z, y):
    among = (others(len(z))[..., None] * inverse_multiquadric(z[:, None] - z, y)).sum(1)
    return 2 * (among - inverse_multiquadric(z[:, None] - y, y).mean(1))


def of_moments(z, y):
    n, d = z.shape
    c, s_z, s_y = z - z.mean(0), torch.cov(z.T), torch.cov(y.T)
    own = (n - 1) ** 2 / ((n - 2) * (n + 1)) * (s_z - s_z.trace() / (n - 1) * torch.eye(d))
    return 2 * (z.mean(0) - y.mean(0)) / d + 4 * n / (n - 1) / d * c @ (own - s_y)


def of_drift(z, y):
    h = 0.5 * (z[:, None] - y).norm(dim=2).mean()
    return mean_shift(z, z, h, others(len(z))) - mean_shift(z, y, h, torch.ones(len(z), len(y)))


def of_transport(z, y):
    """In one dimension all directions are one: the i-th of the latents belongs where the i-th of the samples is."""
    return 2 * (z - y.sort(0).values[z.flatten().argsort().argsort()])


def of_normality(z, y):
    t, x = torch.linspace(-5, 5, 4001, dtype=torch.float64), z / 2.0
    a, b = (t * x).cos().mean(0) - (-0.5 * t.square()).exp(), (t * x).sin().mean(0)
    return torch.trapezoid(t * (b * (t * x).cos() - a * (t * x).sin()) * (-0.5 * t.square()).exp(), t)[:, None]


@pytest.mark.parametrize(
    ("name", "fields", "d", "expected"),
    [
        ("transport", {"along": ("random",)}, 1, of_transport),
        ("energy", {}, 2, of_energy),
        ("mmd", {"bandwidths": (0.5, 2.0)}, 2, of_mmd),
        ("moments", {}, 2, of_moments),
        ("drift", {"bandwidths": (0.5, 0.05)}, 2, of_drift),
        ("normality", {"std": 2.0}, 1, of_normality),
    ],
)
def test_the_gradient_is_the_docstring_s(name, fields, d, expected):
    """Times the number of latents. That of `sinkhorn` is in tests/transport, as an assignment."""
    z, y = Random(0).normal(7, d).double().requires_grad_(), 0.5 + Random(1).normal(7, d).double()
    distance = find(Matching, name)(**fields).distance(z, y, Random(2), 0.0)
    (mine,) = torch.autograd.grad(distance, z)
    torch.testing.assert_close(7 * mine, expected(z.detach(), y), rtol=1e-3, atol=1e-5)


def test_half_of_the_run_is_half_of_the_way_from_wide_to_narrow_kernels():
    from dmvae.transport.drift import drift, kernel_drift

    z, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.randn(9, 3)
    for progress, bandwidth in ((0.0, 0.5), (0.5, 0.05**0.5 * 0.5**0.5), (1.0, 0.05)):
        v, _ = drift(z, y, bandwidth)
        assert float(kernel_drift(z, y, progress)) == pytest.approx(float(0.5 * v.square().sum(1).mean()), rel=1e-4)
