from types import SimpleNamespace

import pytest
import torch

from dmvae.flow import solver
from dmvae.flow.guidance import guided
from dmvae.flow.path import denoise, score
from dmvae.flow.samplers import Sampling, time_grid
from dmvae.flow.samplers.sde import DIFFUSIONS
from dmvae.models.dit import LightningDiT
from dmvae.references.gaussian import Gaussian

S = 2.0
reference = Gaussian((2, 3, 3), 4, S)
labels = torch.zeros(4000, dtype=torch.int64)


def start():
    return torch.randn(4000, 2, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_ode_carries_noise_to_the_scaled_gaussian(method):
    """The exact flow map from N(0, 1) to N(0, s^2) under the linear path is multiplication by s."""
    noise = start()
    end = solver.sample(reference.velocity, noise, labels, Sampling(method=method, steps=200))
    assert torch.allclose(end, S * noise, rtol=0.02 if method == "euler" else 1e-3, atol=1e-3)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_of_convergence(method, order):
    noise = start()[:8].double()
    errors = []
    for steps in (20, 40):
        end = solver.sample(reference.velocity, noise, labels[:8], Sampling(method=method, steps=steps))
        errors.append((end - S * noise).abs().max().item())
    assert errors[0] / errors[1] > 0.75 * 2**order  # midpoint gains an order here: this flow is symmetric in time


def test_sde_has_the_right_variance():
    g = torch.Generator().manual_seed(2)
    noise = start()
    end = solver.sample(
        reference.velocity,
        noise,
        labels,
        Sampling(method="sde", steps=250),
        lambda: torch.randn(noise.shape, generator=g),
    )
    assert end.std().item() == pytest.approx(S, rel=0.03)
    correlation = (end * noise).mean() / (end.std() * noise.std())
    assert correlation < 0.9  # it is stochastic, unlike the ODE


def shifted(z_t, t, y):
    """The velocity to N(3, s^2)."""
    t = t.view(-1, 1, 1, 1)
    return 3 + (t * S**2 - (1 - t)) / (t**2 * S**2 + (1 - t) ** 2) * (z_t - 3 * t)


@pytest.mark.parametrize("last", [{}, {"last_step_kind": "euler"}, {"last_step": 0.0}])
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_every_diffusion_has_the_target_s_mean_and_variance(diffusion, last):
    g = torch.Generator().manual_seed(2)
    noise = start()[:2000]
    settings = Sampling(method="sde", steps=250, diffusion=diffusion, **last)
    end = solver.sample(shifted, noise, labels[:2000], settings, lambda: torch.randn(noise.shape, generator=g))
    assert end.mean().item() == pytest.approx(3, abs=0.04)
    assert end.std().item() == pytest.approx(S, rel=0.02)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_a_last_euler_step_ends_at_the_denoised_estimate(diffusion):
    """Which is Tweedie's formula, (z_t + (1 - t)^2 score) / t."""
    noise, t = start()[:4], torch.full((4,), 0.9)
    before = []

    def kept(z_t, t, y):
        before.append(z_t)
        return shifted(z_t, t, y)

    settings = Sampling(method="sde", steps=3, diffusion=diffusion, last_step=0.1, last_step_kind="euler")
    end = solver.sample(kept, noise, labels[:4], settings, lambda: torch.ones_like(noise))
    z_t, velocity = before[-1], shifted(before[-1], t, None)
    tweedie = (z_t + 0.1**2 * score(z_t=z_t, velocity=velocity, t=t)) / 0.9
    assert torch.allclose(end, tweedie, atol=1e-4)
    assert torch.allclose(end, denoise(z_t=z_t, velocity=velocity, t=t), atol=1e-5)


def test_trajectory_ends_where_sample_ends():
    noise = start()[:4]
    states = list(solver.trajectory(reference.velocity, noise, labels[:4], Sampling(steps=7)))
    assert len(states) == 7
    assert torch.equal(states[-1], solver.sample(reference.velocity, noise, labels[:4], Sampling(steps=7)))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"'sde' draws fresh noise in every step: give normal="):
        solver.sample(reference.velocity, start()[:1], labels[:1], Sampling(method="sde"))
    with pytest.raises(ValueError, match="'rk9'"):
        solver.sample(reference.velocity, start()[:1], labels[:1], Sampling(method="rk9"))
    with pytest.raises(ValueError, match="got 0"):
        solver.sample(reference.velocity, start()[:1], labels[:1], Sampling(steps=0))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "dopri5", "sde"])
def test_a_velocity_of_another_shape_is_refused(method):
    labels = torch.zeros(2, dtype=torch.int64)
    noise = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"a velocity that is a tensor \[2, 1, 4, 4\] for latents \[2, 3, 4, 4\]"):
        solver.sample(
            lambda z, t, y: z.mean(1, keepdim=True), noise, labels, Sampling(method=method), lambda: torch.zeros(1)
        )


@pytest.mark.parametrize("steps", [5, 10, 20, 50, 100])
@pytest.mark.parametrize("ends", [(0, 10), (1, 9), (2, 8), (3, 7), (4, 6), (5, 5)])
def test_a_guidance_interval_holds_both_its_ends(steps, ends):
    """Of the times that a sampler has, which are rounded: those within it in whole numbers."""
    times = time_grid(steps, 1.0)
    z, y = torch.ones(len(times), 1, 1, 1), torch.ones(len(times), dtype=torch.int64)
    out = guided(toy, 3.0, 0, interval=(ends[0] / 10, ends[1] / 10))(z, times, y)
    inside = [ends[0] * steps <= 10 * i <= ends[1] * steps for i in range(len(times))]
    assert (out != toy(z, times, y)).flatten().tolist() == inside


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("steps", [7, 50])
def test_times_of_a_grid_are_exact_in_float32(steps, shift):
    """Multiples of 2^-24, so that noise levels and step sizes are exact too."""
    grid = time_grid(steps, shift).double() * 2**24
    assert (grid[0], grid[-1]) == (0, 2**24)
    assert torch.equal(grid, grid.round())


def toy(z_t, t, y):
    return z_t * (1 + y.view(-1, 1, 1, 1)) + t.view(-1, 1, 1, 1)


def test_guidance_is_one_call_and_the_formula():
    calls = []

    def counted(z_t, t, y):
        calls.append(len(z_t))
        return toy(z_t, t, y)

    z, t, y = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    out = guided(counted, 3.0, null_label=9)(z, t, y)
    cond, uncond = toy(z, t, y), toy(z, t, torch.full_like(y, 9))
    assert calls == [6]
    assert torch.allclose(out, uncond + 3 * (cond - uncond), atol=1e-5)


def test_guidance_interval_is_per_sample_and_scale_one_is_the_network():
    z, t, y = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    out = guided(toy, 3.0, 9, interval=(0.4, 0.6))(z, t, y)
    cond = toy(z, t, y)
    assert torch.allclose(out[[0, 2]], cond[[0, 2]], atol=1e-5)
    assert not torch.allclose(out[1], cond[1])
    assert torch.equal(guided(toy, 1.0, 9)(z, t, y), toy(z, t, y))


@pytest.mark.parametrize("weak", [None, lambda z_t, t, y: 0.5 * z_t - y.view(-1, 1, 1, 1)])
def test_guidance_of_the_first_channels_leaves_the_others_as_the_network_has_them(weak):
    z, t, y = torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    found = {k: guided(toy, 3.0, 9, (0.0, 0.6), weak, k)(z, t, y) for k in (None, 1, 3, 4)}
    for k in (1, 3):
        assert torch.equal(found[k][:, :k], found[None][:, :k])
        assert torch.equal(found[k][:, k:], toy(z, t, y)[:, k:])
        assert not torch.allclose(found[k][0, k:], found[None][0, k:])
    assert torch.equal(found[4], found[None])


def test_a_network_s_samples_are_guided_in_these_channels():
    """One Euler step adds the velocity to the noise."""
    torch.manual_seed(0)
    network = LightningDiT(in_channels=4, input_size=2, width=16, depth=1, heads=2, num_classes=3).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # a new one's velocity is 0
    noise, y = torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 2])

    def step(scale, channels=None):
        settings = Sampling(steps=1, guidance=scale, guidance_channels=channels)
        with torch.no_grad():
            return network.sample(noise, y, settings)

    plain, whole, some = step(1.0), step(4.0), step(4.0, 3)
    assert torch.allclose(some, torch.cat([whole[:, :3], plain[:, 3:]], dim=1), atol=1e-5)
    assert (whole[:, 3:] - plain[:, 3:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "sampler 'euler' yielded no state in 3 steps"),
        ([torch.zeros(8, 2, 3, 2)], r"yielded a tensor \[8, 2, 3, 2\]; give states \[8, 2, 3, 3\]"),
        ([None], "yielded NoneType; give states"),
    ],
)
def test_a_sampler_that_gives_no_samples_is_told(monkeypatch, states, message):
    """Of a plugin's, which else leaves the noise for samples."""
    sampler = SimpleNamespace(trajectory=lambda *_: iter(states))
    monkeypatch.setattr(solver, "find", lambda *_: lambda: sampler)
    with pytest.raises(ValueError, match=message):
        solver.sample(reference.velocity, start()[:8], labels[:8], Sampling(steps=3))
