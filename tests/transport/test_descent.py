"""Descent: points that follow a distance's gradient arrive, from near and far."""

import pytest
import torch

from dmvae.transport.drift import kernel_drift
from dmvae.transport.energy import energy_distance
from dmvae.transport.mmd import mmd
from dmvae.transport.moments import moment_matching
from dmvae.transport.normality import normality
from dmvae.transport.sinkhorn import sinkhorn_divergence
from dmvae.transport.sliced import sliced_wasserstein
from dmvae.transport.views import pairs, random_convolution, tokens, whole
from draws import rng


def corners(n: int, generator: torch.Generator) -> torch.Tensor:
    """Four modes that do not touch."""
    signs = 2.0 * torch.randint(2, (n, 2), generator=generator) - 1
    return signs + 0.1 * torch.randn(n, 2, generator=generator)


SEES_MODES = {
    "sliced": lambda z, y, g, p: sliced_wasserstein(z, y, g, 32, ("random",)),
    "energy": lambda z, y, g, p: energy_distance(z, y),
    "mmd": lambda z, y, g, p: mmd(z, y, (0.05, 0.2, 1.0, 5.0, 100.0)),
    "sinkhorn": lambda z, y, g, p: sinkhorn_divergence(z, y, eps=0.02, iterations=10),
    "drift": lambda z, y, g, p: kernel_drift(z, y, p),
}


FAR = 5.0  # from where the gradients of mmd and drift, kernels of some width, bring points too slowly for a test


@pytest.mark.parametrize(
    ("name", "distance"),
    [(name, d) for name in SEES_MODES for d in (0.0, FAR) if d == 0 or name not in ("mmd", "drift")],
)
def test_points_reach_four_modes_in_equal_shares(name, distance):
    g = rng()
    z = (0.3 * torch.randn(96, 2, generator=g) + torch.tensor([distance, 0.0])).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.2, betas=(0.5, 0.95))
    steps = 120
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / steps) + 0.005
        optimizer.zero_grad()
        SEES_MODES[name](z, corners(96, g), g, step / steps).backward()
        optimizer.step()
    z = z.detach()
    near = (z.abs() - 1).norm(dim=1) < 0.6
    assert float(near.float().mean()) > 0.8
    share = torch.bincount((z[:, 0] > 0).long() + 2 * (z[:, 1] > 0).long(), minlength=4) / len(z)
    assert float(share.min()) > 0.12


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y, g: moment_matching(z, y),
        lambda z, y, g: normality(z, g, 32),
    ],
)
def test_moments_reach_those_of_the_reference(loss):
    g = rng()
    shift, scale = (torch.tensor(x, requires_grad=True) for x in ([0.5, -0.3], [0.4, 1.4]))
    optimizer = torch.optim.Adam([shift, scale], lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        z = shift + scale * torch.randn(256, 2, generator=g)
        loss(z, torch.randn(1024, 2, generator=g), g).backward()
        optimizer.step()
    torch.testing.assert_close(shift.detach(), torch.zeros(2), atol=0.1, rtol=0)
    torch.testing.assert_close(scale.detach().abs(), torch.ones(2), atol=0.1, rtol=0)


@pytest.mark.parametrize("view", [whole, tokens, pairs, "convolution"])
def test_views_carry_gradients_to_latents(view):
    g = rng()
    view = random_convolution(3, g, 8) if view == "convolution" else view
    z, y = (torch.randn(n, 3, 2, 2, generator=g).requires_grad_() for n in (8, 40))
    sliced_wasserstein(view(z), view(y.detach()), g, 16, along=("random",)).backward()
    assert bool((z.grad != 0).all())


@pytest.mark.parametrize("name", SEES_MODES)
def test_the_same_generator_gives_the_same_gradient(name):
    z, y = torch.randn(32, 2, generator=rng(1)).requires_grad_(), corners(64, rng(2))
    first, second = (torch.autograd.grad(SEES_MODES[name](z, y, rng(3), 0.5), z)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert bool(first.isfinite().all())
