"""The adaptive sampler: its coefficients, its order, and that each image is solved by itself."""

import pytest
import torch
from scipy.integrate import RK45

from dmvae.flow import solver
from dmvae.flow.samplers import Sampling
from dmvae.flow.samplers.dopri5 import ERROR, TABLEAU, step
from dmvae.references.gaussian import Gaussian

S = 2.0
reference = Gaussian((2, 3, 3), 4, S)
labels = torch.zeros(8, dtype=torch.int64)


def start(count=8):
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def decay(z_t, t, y):
    """dz = -k z dt, the faster the larger an image's label is: z(1) = z(0) exp(-k)."""
    return -(1 + 8 * y).view(-1, 1, 1, 1) * z_t


def solve(velocity=reference.velocity, noise=None, y=labels, **settings):
    """(samples, evaluations of each)."""
    told = []
    found = solver.sample(velocity, start() if noise is None else noise, y, dopri5(evaluated=told.append, **settings))
    return found, told[0].tolist()


def dopri5(**settings):
    return Sampling(method="dopri5", **settings)


def test_the_coefficients_are_those_of_scipy():
    places, rows = zip(*TABLEAU, strict=True)
    assert places == (*RK45.C[1:], 1.0)
    for row, theirs in zip(rows, (*RK45.A[1:], RK45.B), strict=True):
        assert row == tuple(theirs[: len(row)])
        assert not any(theirs[len(row) :])
    assert pytest.approx(tuple(-RK45.E), abs=1e-15) == ERROR


def test_order_of_convergence():
    """Of dz = z (1 - z) dt, whose solution is the logistic function; its estimate of a step's error has order 4."""
    z = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).view(1, 1, 3, 3)
    exact = 1 / (1 + (1 / z - 1) * torch.exp(torch.tensor(-1.0, dtype=torch.float64)))

    def logistic(z_t, t, y):
        return z_t * (1 - z_t)

    errors, estimates = [], []
    for steps in (2, 4):
        state, dt = z, torch.tensor([1 / steps], dtype=torch.float64)
        for number in range(steps):
            state, _, error = step(logistic, state, logistic(state, None, None), number * dt, dt, None)
            estimates += [error.abs().max().item()] if number == 0 else []
        errors.append((state - exact).abs().max().item())
    assert errors[0] / errors[1] > 0.75 * 2**5
    assert estimates[0] / estimates[1] > 0.75 * 2**5


@pytest.mark.parametrize(("rtol", "away"), [(1e-2, 5e-2), (1e-3, 5e-3), (1e-4, 1e-3)])
def test_it_carries_noise_to_the_scaled_gaussian_by_as_many_steps_as_errors_ask_for(rtol, away):
    end, evaluations = solve(rtol=rtol, atol=1e-3 * rtol)
    assert torch.allclose(end, S * start(), rtol=0, atol=away)
    assert max(evaluations) <= 60


def test_smaller_errors_take_more_evaluations():
    (few,), (many,) = (set(solve(decay, rtol=rtol)[1]) for rtol in (1e-2, 1e-6))
    assert few < many


def test_it_agrees_with_many_euler_steps():
    euler = solver.sample(reference.velocity, start(), labels, Sampling(steps=2000))
    assert torch.allclose(solve(rtol=1e-4)[0], euler, rtol=5e-3, atol=1e-3)


def test_an_image_does_not_depend_on_the_others():
    """But for rounding, which a batch's shape changes. Nor do its evaluations: with one step size for all the slower
    images would take the smaller steps of the others."""
    y = torch.tensor([0, 3, 1, 0])
    together, evaluations = solve(decay, start(4), y)
    assert len(set(evaluations)) == 3
    assert torch.allclose(together, start(4) * torch.exp(-(1.0 + 8 * y)).view(-1, 1, 1, 1), rtol=2e-2, atol=1e-4)
    for i in range(4):
        alone, count = solve(decay, start(4)[i : i + 1], y[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], rtol=1e-5, atol=1e-6)
        assert count == evaluations[i : i + 1]


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("dopri5", None)])
def test_evaluations_are_told(method, each):
    calls, told = [], []

    def counted(z_t, t, y):
        assert t.dtype == torch.float32
        assert t.shape == (8,)
        assert 0 <= t.min() <= t.max() <= 1
        calls.append(t)
        return reference.velocity(z_t, t, y)

    solver.sample(counted, start(), labels, Sampling(method=method, steps=20, evaluated=told.append))
    assert len(told) == 1
    assert told[0].max() == len(calls) == (len(calls) if each is None else 20 * each)
    assert (len(calls) - 1) % 6 == 0 or each is not None


def test_too_few_steps_are_an_error_and_enough_change_nothing():
    with pytest.raises(ValueError, match=r"dopri5: after 2 steps 8 of 8 images have not arrived, the last is at t = 0"):
        solve(steps=2)
    assert torch.equal(solve(steps=20)[0], solve(steps=1000)[0])


def test_a_velocity_that_is_nan_is_told_as_that():
    with pytest.raises(ValueError, match="dopri5: the velocity of 1 of 8 images became NaN or infinite"):
        solve(lambda z, t, y: torch.where((y == 1).view(-1, 1, 1, 1), z * torch.nan, z), y=torch.arange(8), steps=20)
