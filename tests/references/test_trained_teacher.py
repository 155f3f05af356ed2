"""A small flow model, trained on a mixture's samples, against the mixture's closed form."""

import math

import pytest
import torch
from torch import nn

from dmvae.flow.loss import drop_labels, flow_matching_loss
from dmvae.flow.path import interpolate
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.runtime.random import Random


class Small(nn.Module):
    """A velocity of one number: the state, the time and the label as features of an MLP."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(3, 8)
        self.net = nn.Sequential(nn.Linear(17, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, z_t, t, labels):
        waves = [f(k * math.pi * t) for k in (1, 2, 3, 4) for f in (torch.sin, torch.cos)]
        features = torch.cat([z_t.flatten(1), torch.stack(waves, 1), self.label(labels)], 1)
        return self.net(features).view_as(z_t)


@pytest.mark.slow
def test_a_trained_teacher_approaches_the_closed_form():
    """Flow matching on samples of a one-dimensional mixture of two classes, with label dropout."""
    means = torch.tensor([-1.0, 0.8]).view(2, 1, 1, 1)
    variances = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    joint = joint_weights(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]), 2)
    reference = GaussianMixture(means, variances, joint, torch.zeros(1), torch.ones(1))
    torch.manual_seed(0)
    teacher = Small()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    steps = 1200
    for step in range(steps):
        rng = Random("teacher", step)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        z, labels = reference.sample(1024, rng)
        labels = drop_labels(labels, 0.3, 2, rng)
        t, noise = rng.uniform(1024), rng.normal(1024, 1, 1, 1)
        loss = flow_matching_loss(teacher, z=z, labels=labels, t=t, noise=noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rng = Random("test")
    for label in (0, 1, 2):
        z, labels = reference.sample(20000, rng)
        z, labels = (z, labels) if label == 2 else (z[labels == label], labels[labels == label])
        t, noise = rng.uniform(20000)[: len(z)], rng.normal(*z.shape)
        z_t, asked = interpolate(noise=noise, z=z, t=t), torch.full((len(z),), label)
        with torch.no_grad():
            exact, learned = reference.velocity(z_t, t, asked), teacher(z_t, t, asked)
            other = reference.velocity(z_t, t, torch.full_like(asked, (label + 1) % 3))
        error = (learned - exact).square().mean() / exact.square().mean()
        assert error < 0.04
        assert (learned - exact).square().mean() < 0.2 * (learned - other).square().mean()
