import pytest
import torch

from dmvae.flow.path import denoise, interpolate, score, shift_time, velocity_target

n, shape = 5, (3, 4, 4)


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g), torch.rand(n, generator=g)


def test_path_runs_from_noise_to_data(pair):
    noise, z, _ = pair
    assert torch.equal(interpolate(noise, z, torch.zeros(n)), noise)
    assert torch.equal(interpolate(noise, z, torch.ones(n)), z)


def test_true_velocity_denoises_exactly(pair):
    noise, z, t = pair
    z_t = interpolate(noise, z, t)
    assert torch.allclose(denoise(z_t, velocity_target(noise, z), t), z, atol=1e-6)


def test_velocity_is_the_derivative_of_the_path(pair):
    noise, z, t = (x.double() for x in pair)
    step = 1e-6
    slope = (interpolate(noise, z, t + step) - interpolate(noise, z, t - step)) / (2 * step)
    assert torch.allclose(slope, velocity_target(noise, z), atol=1e-8)


def test_score_of_a_gaussian_in_closed_form(pair):
    """Data N(0, s^2): z_t is N(0, t^2 s^2 + (1 - t)^2), whose score is -z_t / variance."""
    noise, z, t = pair
    t, s2 = t.clamp_max(0.95).double(), 4.0
    z_t = interpolate(noise.double(), 2 * z.double(), t)
    tt = t.view(-1, 1, 1, 1)
    variance = tt**2 * s2 + (1 - tt) ** 2
    velocity = (tt * s2 - (1 - tt)) / variance * z_t
    assert torch.allclose(score(z_t, velocity, t), -z_t / variance, atol=1e-9)


def test_shift_fixes_the_ends_and_moves_towards_noise():
    t = torch.linspace(0, 1, 11)
    shifted = shift_time(t, 2.5)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] < t[1:-1]).all()
    assert torch.allclose(shift_time(shifted, 1 / 2.5), t, atol=1e-6)
