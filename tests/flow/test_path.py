import pytest
import torch

from dmvae.flow.guidance import guided
from dmvae.flow.loss import flow_matching_loss
from dmvae.flow.path import denoise, interpolate, score, shift_time, velocity_target

n, shape = 5, (3, 4, 4)


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g), torch.rand(n, generator=g)


def test_path_runs_from_noise_to_data(pair):
    noise, z, _ = pair
    assert torch.equal(interpolate(noise=noise, z=z, t=torch.zeros(n)), noise)
    assert torch.equal(interpolate(noise=noise, z=z, t=torch.ones(n)), z)


def test_noise_and_latents_cannot_be_mistaken_for_each_other(pair):
    """An objective that had them in the other order ran, and was silently wrong."""
    for function in (interpolate, velocity_target, denoise, score):
        with pytest.raises(TypeError, match="takes 0 positional arguments"):
            function(*pair)


def test_true_velocity_denoises_exactly(pair):
    noise, z, t = pair
    z_t = interpolate(noise=noise, z=z, t=t)
    assert torch.allclose(denoise(z_t=z_t, velocity=velocity_target(noise=noise, z=z), t=t), z, atol=1e-6)


def test_velocity_is_the_derivative_of_the_path(pair):
    noise, z, t = (x.double() for x in pair)
    step = 1e-6
    slope = (interpolate(noise=noise, z=z, t=t + step) - interpolate(noise=noise, z=z, t=t - step)) / (2 * step)
    assert torch.allclose(slope, velocity_target(noise=noise, z=z), atol=1e-8)


def test_score_of_a_gaussian_in_closed_form(pair):
    """Data N(0, s^2): z_t is N(0, t^2 s^2 + (1 - t)^2), whose score is -z_t / variance."""
    noise, z, t = pair
    t, s2 = t.clamp_max(0.95).double(), 4.0
    z_t = interpolate(noise=noise.double(), z=2 * z.double(), t=t)
    tt = t.view(-1, 1, 1, 1)
    variance = tt**2 * s2 + (1 - tt) ** 2
    velocity = (tt * s2 - (1 - tt)) / variance * z_t
    assert torch.allclose(score(z_t=z_t, velocity=velocity, t=t), -z_t / variance, atol=1e-9)


def test_shift_fixes_the_ends_and_moves_towards_noise():
    t = torch.linspace(0, 1, 11)
    shifted = shift_time(t, 2.5)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:-1] < t[1:-1]).all()
    assert torch.allclose(shift_time(shifted, 1 / 2.5), t, atol=1e-6)


def test_a_velocity_of_another_shape_is_refused(pair):
    """[n, 1, H, W] would be spread over the channels, and half as many as were asked for over the two halves."""
    noise, z, t = pair
    labels = torch.zeros(n, dtype=torch.int64)
    one_channel = lambda z_t, t, labels: z_t[:, :1]
    said = r"a velocity that is a tensor \[5, 1, 4, 4\] for latents \[5, 3, 4, 4\]"
    for estimate in (denoise, score):
        with pytest.raises(ValueError, match=said):
            estimate(z_t=z, velocity=one_channel(z, t, labels), t=t)
    with pytest.raises(ValueError, match=said):
        flow_matching_loss(one_channel, z=z, labels=labels, t=t, noise=noise)
    with pytest.raises(ValueError, match=r"that is a tensor \[2, 3, 4, 4\] for latents \[10, 3, 4, 4\]"):
        guided(lambda z_t, t, labels: z_t[:2], 2.0, null_label=4)(z, t, labels)
