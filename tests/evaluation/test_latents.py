"""Statistics of latents: batches, ranks with a known answer, distances with a closed form."""

import json

import numpy as np
import pytest
import torch

from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.latents import (
    high_frequency_share,
    latent_statistics,
    scatter,
    sliced_distance,
    spectral_slope,
    vectors,
)
from draws import normal


def test_statistics_of_channels_are_torchs_whatever_the_batches():
    z = normal(100, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1) + 7
    whole, cut = (Statistics.of(vectors(part, "channels") for part in z.split(n)) for n in (100, 13))
    torch.testing.assert_close(whole.mean, z.double().mean((0, 2, 3)))
    torch.testing.assert_close(whole.std, z.double().std((0, 2, 3)))
    assert torch.equal(cut.mean, whole.mean)
    assert torch.equal(cut.std, whole.std)


def test_effective_rank_of_equal_variances_is_their_number():
    z = normal(2000, 8, 4, 4)
    z[:, 5:] = 0
    assert float(scatter(z, "channels").effective_rank()) == pytest.approx(5, abs=0.01)


def test_effective_rank_of_one_direction_is_one():
    z = normal(500, 1, 2, 2) * torch.arange(1.0, 7).view(1, -1, 1, 1)
    assert float(scatter(z, "channels").effective_rank()) == pytest.approx(1, abs=1e-6)
    assert float(scatter(torch.ones(9, 4, 2, 2), "channels").effective_rank()) == 0


def test_effective_rank_closed_form():
    """Variances in the ratio 3 : 1: exp of the entropy of (3/4, 1/4)."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    z = (signs * torch.tensor([3**0.5, 1.0])).view(4, 2, 1, 1)
    share = torch.tensor([0.75, 0.25])
    assert float(scatter(z, "channels").effective_rank()) == pytest.approx(
        float(torch.exp(-(share * share.log()).sum())), abs=1e-6
    )


def test_effective_rank_over_whole_latents_sees_positions():
    z = normal(4000, 2, 1, 1).expand(-1, -1, 3, 3)  # the same at every position
    assert float(scatter(z).effective_rank()) == pytest.approx(2, abs=0.01)
    independent = normal(4000, 2, 3, 3)
    assert float(scatter(independent).effective_rank()) > 17


def test_effective_rank_leaves_the_graph_alone():
    z = normal(10, 2, 2, 2).requires_grad_()
    assert not scatter(z, "channels").effective_rank().requires_grad


def test_sliced_distance_of_a_shift():
    """A shift by s moves every projection by u.s: the mean of (u.s)^2 is |s|^2 / d."""
    x = normal(200, 4)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0])
    measured = sliced_distance(x, x + shift, projections=20000)
    assert measured == pytest.approx(float(shift.norm()) / 2, rel=0.02)
    assert sliced_distance(x, x) == 0


def test_sliced_distance_of_sets_of_different_size():
    """In one dimension: {0, 6} against {0, 3, 6}. Quantiles differ by 3 on (1/3, 2/3)."""
    a, b = torch.tensor([[0.0], [6.0]]), torch.tensor([[6.0], [0.0], [3.0]])
    assert sliced_distance(a, b) == pytest.approx((9 / 3) ** 0.5, rel=1e-6)
    assert sliced_distance(b, a) == pytest.approx((9 / 3) ** 0.5, rel=1e-6)
    doubled = torch.cat([normal(50, 3), normal(50, 3)])
    assert sliced_distance(normal(50, 3), doubled) == pytest.approx(0, abs=1e-6)


def test_sliced_distance_takes_latents_and_refuses_others():
    z = normal(20, 2, 3, 3)
    assert sliced_distance(z, z.flatten(1)) == 0
    with pytest.raises(ValueError, match="18 and 17"):
        sliced_distance(normal(20, 2, 3, 3), normal(20, 17))


def test_latent_statistics_of_a_gaussian():
    figures = latent_statistics(2 * normal(2000, 4, 4, 4))
    assert figures["kurtosis"] == pytest.approx(3, abs=0.05)
    assert figures["spread"] == pytest.approx(16, rel=0.02)
    assert figures["effective_rank"] == pytest.approx(4, abs=0.01)
    assert figures["mean_max"] < 0.05
    assert 1.95 < figures["std_min"] <= figures["std_max"] < 2.05
    json.dumps(figures)


def test_latent_statistics_of_collapsed_latents_are_finite():
    figures = latent_statistics(torch.zeros(4, 2, 2, 2))
    assert set(figures.values()) == {0.0}


def test_spectrum_is_the_covariances_and_does_not_see_rotation():
    z = normal(4000, 3, 2, 1) * torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1)
    torch.testing.assert_close(
        scatter(z, "channels").spectrum(), torch.tensor([9.0, 4.0, 1.0]).double(), rtol=0.05, atol=0
    )
    turn = torch.linalg.qr(normal(6, 6, seed=1))[0]
    turned = (z.flatten(1) @ turn).view_as(z)
    torch.testing.assert_close(scatter(turned).spectrum(), scatter(z).spectrum(), rtol=1e-4, atol=1e-6)
    assert float(scatter(turned).effective_rank()) == pytest.approx(float(scatter(z).effective_rank()), rel=1e-4)


def test_spectrum_of_wide_latents_is_that_of_their_products(monkeypatch):
    z = normal(20, 4, 3, 3) * torch.linspace(0.1, 3, 4).view(-1, 1, 1) + 7
    covariance = scatter(z).spectrum()
    monkeypatch.setattr("dmvae.evaluation.latents.WIDE", 30)
    monkeypatch.setattr("dmvae.evaluation.latents.CUT", 10)
    torch.testing.assert_close(scatter(z).spectrum(), covariance, rtol=1e-6, atol=1e-9)
    assert scatter(z[:1]).spectrum().count_nonzero() == 0


def test_spectrum_of_very_wide_latents_takes_no_square_of_their_width():
    """64 independent latents of 50,000 components: 63 equal variances. The covariance would take 20 GB."""
    values = scatter(normal(64, 50000, 1, 1)).spectrum()
    assert values.shape == (50000,)
    assert values.count_nonzero() <= 64
    assert float(scatter(normal(64, 50000, 1, 1)).effective_rank()) == pytest.approx(63, abs=0.2)


def test_spectral_slope_of_a_power_law_is_its_exponent():
    ranks = torch.arange(1, 200, dtype=torch.float64)
    for exponent in (0.0, 0.5, 2.0):
        assert spectral_slope(3 * ranks**-exponent) == pytest.approx(exponent, abs=1e-9)
    assert spectral_slope(torch.tensor([1.0, 0.0, 0.0])) == 0
    assert spectral_slope(torch.zeros(3)) == 0


def test_spectral_slope_of_other_values_gives_each_octave_the_same_say():
    values = (
        torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(descending=True).values
    )
    ranks = np.arange(1, 41)
    slope, _ = np.polyfit(np.log(ranks), np.log(values.numpy()), 1, w=ranks**-0.5)
    assert spectral_slope(values) == pytest.approx(-slope, rel=1e-6)


def test_high_frequency_share_of_noise_is_that_of_the_grid_s_frequencies():
    assert high_frequency_share(7 + normal(2000, 4, 4, 4)) == pytest.approx(11 / 16, rel=0.02)


def test_high_frequency_share_of_flat_and_of_checkered_latents():
    flat = normal(50, 2, 1, 1).expand(-1, -1, 4, 4)
    checkers = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
    assert high_frequency_share(flat) == pytest.approx(0, abs=1e-12)
    assert high_frequency_share(flat * checkers) == pytest.approx(1)
    assert high_frequency_share(normal(9, 2, 1, 1)) == 0
