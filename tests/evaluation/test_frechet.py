"""Frechet distance: closed forms, scipy, itself, and statistics in one pass."""

import math
import warnings

import numpy as np
import pytest
import torch

from dmvae.evaluation.frechet import Statistics, frechet_distance


def random_features(n: int, d: int, seed: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + seed).to(dtype)


def test_statistics_are_numpys():
    x = random_features(2500, 8, 1)
    s = Statistics.of(x)
    assert s.n == 2500
    np.testing.assert_allclose(s.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(s.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 7, 1024, 1500, 2500])
def test_statistics_do_not_depend_on_the_batches(size):
    x = random_features(2500, 5, 2, torch.float32)
    cut, whole = Statistics.of(x.split(size)), Statistics.of(x)
    assert torch.equal(cut.mean, whole.mean)
    assert torch.equal(cut.covariance, whole.covariance)


def test_a_far_mean_costs_no_digits():
    x = random_features(4000, 3, 0)
    torch.testing.assert_close(Statistics.of(x + 1e6).covariance, Statistics.of(x).covariance, rtol=1e-8, atol=0)


def test_gaussian_closed_form():
    """Diagonal covariances: |m|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 1.0, 2.0]).double()
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    s = Statistics(n=99, mean=torch.zeros(3).double(), covariance=a.diag())
    t = Statistics(n=99, mean=mean, covariance=b.diag())
    expected = float(mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert math.isclose(frechet_distance(s, t), expected, rel_tol=1e-12)


@pytest.mark.parametrize("n", [400, 60])
def test_a_set_is_at_distance_zero_from_itself(n):
    """Also where there are fewer vectors than components and the covariance is singular."""
    s = Statistics.of(random_features(n, 128, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert abs(frechet_distance(s, s)) < 1e-9 * float(s.covariance.trace())


def test_directions_of_little_variance_are_not_lost():
    """Squared, as they are in the quick way, they would be below the rounding of the large ones."""
    turn = torch.linalg.qr(random_features(16, 16, 1))[0]
    variances = torch.cat([torch.ones(8), torch.full((8,), 1e-14)]).double()
    s = Statistics(n=99, mean=torch.zeros(16).double(), covariance=turn * variances @ turn.T)
    assert abs(frechet_distance(s, s)) < 1e-9


def test_sets_that_do_not_vary():
    zero = Statistics(n=9, mean=torch.zeros(2).double(), covariance=torch.zeros(2, 2).double())
    one = Statistics(n=9, mean=torch.ones(2).double(), covariance=torch.eye(2).double())
    assert frechet_distance(zero, zero) == 0
    assert frechet_distance(zero, one) == pytest.approx(4)


@pytest.mark.parametrize("n", [10, 20])
def test_too_few_vectors_are_warned_of(n):
    few, enough = Statistics.of(random_features(n, 20, 1)), Statistics.of(random_features(21, 20, 1))
    with pytest.warns(UserWarning, match="bias"):
        frechet_distance(few, enough)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(enough, enough)


def test_unusable_features_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Statistics.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        Statistics.of(torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match="one extractor"):
        frechet_distance(Statistics.of(torch.rand(9, 3)), Statistics.of(torch.rand(9, 4)))
