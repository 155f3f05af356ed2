"""Sampling against the paper's reference implementation."""

import pytest
import torch

from dmvae.flow import solver
from dmvae.flow.path import score
from golden_numbers import load, network, relative_error


@pytest.fixture(scope="module")
def golden():
    return load("sampling.safetensors"), network(load("lightningdit.safetensors"), "model.")


def test_shifted_time_grid(golden):
    tensors, _ = golden
    assert relative_error(solver.time_grid(10, 2.5), tensors["time_grid_shift2p5"]) < 1e-6


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_ode_samples(golden, method):
    tensors, model = golden
    out = solver.sample(model, tensors["z"], tensors["y"], method=method, steps=10, shift=2.5)
    assert relative_error(out, tensors[f"{method}10"]) < 1e-4


def test_sde_terms(golden):
    tensors, model = golden
    x, t = tensors["sde_x"], tensors["sde_t"]
    velocity = model(x, t, tensors["sde_y"])
    drift, diffusion = solver.sde_drift(velocity, x, t)
    assert relative_error(velocity, tensors["sde_velocity"]) < 1e-4
    assert relative_error(score(x, velocity, t), tensors["sde_score"]) < 1e-4
    assert relative_error(drift, tensors["sde_drift"]) < 1e-4
    assert torch.allclose(diffusion.expand_as(x), tensors["sde_diffusion_sigma"], atol=1e-6)
