"""Distances with a known answer, and what leaves them as they are."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from dmvae.evaluation.latents import sliced_distance as measured
from dmvae.runtime.transfer import covariance
from dmvae.transport import sliced, views
from dmvae.transport.classes import by_class
from dmvae.transport.drift import drift, kernel_drift
from dmvae.transport.energy import energy_distance
from dmvae.transport.mmd import mmd
from dmvae.transport.moments import moment_matching
from dmvae.transport.normality import epps_pulley, narrowed, normality
from dmvae.transport.sinkhorn import balanced_assignment, plan, potentials, sinkhorn_divergence, squares
from dmvae.transport.sliced import directions, sliced_wasserstein, wasserstein_1d
from draws import normal, rng

DISTANCES = {
    "sliced": lambda z, y: sliced_wasserstein(z, y, rng(), 64),
    "energy": energy_distance,
    "mmd": mmd,
    "sinkhorn": sinkhorn_divergence,
    "moments": moment_matching,
    "drift": kernel_drift,
}


def test_two_shifted_normals_are_as_far_as_the_shift():
    """W2^2(N(0, 1), N(3, 2^2)) = 3^2 + (2 - 1)^2."""
    z, y = normal(1, 20000), 3 + 2 * normal(1, 30000, seed=1)
    assert float(wasserstein_1d(z, y)) == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8), (8, 5), (1, 6), (6, 1), (12, 4)])
def test_one_dimension_is_exact_for_any_sizes(n, m):
    a, b = normal(1, n), normal(1, m, seed=1)
    at = (torch.arange(n * m) + 0.5) / (n * m)
    quantile = lambda x: x.sort(1).values[:, (at * x.shape[1]).long()]
    expected = (quantile(a) - quantile(b)).square().mean()
    torch.testing.assert_close(wasserstein_1d(a, b)[0], expected)


def test_slices_agree_with_the_evaluation():
    z, y = normal(300, 6), 0.5 + 2 * normal(200, 6, seed=1)
    mine = sliced_wasserstein(z, y, rng(), 1024, along=("random",)).sqrt()
    assert float(mine) == pytest.approx(measured(z, y, 1024), rel=0.05)


def test_directions_of_a_reference_lie_where_it_varies():
    y = normal(200, 10) * torch.tensor([5.0] + [0.1] * 9)
    for kind in ("reference", "principal"):
        assert float(directions(y, y, rng(), 64, (kind,))[:, 0].abs().mean()) > 0.9
    gap = directions(y, y + 100 * torch.eye(10)[3], rng(), 64, ("gap",))
    assert float(gap[:, 3].mean()) > 0.99
    torch.testing.assert_close(gap.norm(dim=1), torch.ones(64))


def test_principal_directions_are_of_all_samples_beside_others_that_are_held_out(monkeypatch):
    """Of few samples an eighth has no covariance."""
    seen = []
    monkeypatch.setattr("dmvae.transport.sliced.covariance", lambda y: seen.append(len(y)) or covariance(y))
    for count in (4, 64):
        assert sliced_wasserstein(normal(40, 6), normal(count, 6), rng(), 64, ("principal", "reference")).isfinite()
    assert seen == [4, 64]


@pytest.mark.parametrize(("along", "held"), [("random", (0, 0)), ("reference", (0, 3)), ("gap", (2, 3))])
def test_an_eighth_gives_directions_and_is_not_compared(monkeypatch, along, held):
    """Of y where directions join two of its samples, of z too where they join both sets; no gradient goes that way."""
    z, y, seen = normal(16, 2).requires_grad_(), normal(20, 2, seed=1), []
    monkeypatch.setattr(sliced, "directions", lambda *of: seen.extend(of[:2]) or torch.eye(2))
    monkeypatch.setattr(sliced, "wasserstein_1d", lambda *rows: seen.extend(x.T for x in rows) or rows[0].sum(1))
    sliced_wasserstein(z, y, rng(), 2, (along,))
    for x, given, compared, some in zip((z, y), seen[:2], seen[2:], held, strict=True):
        assert (len(given), len(compared)) == (some or len(x), len(x) - some)
        assert torch.equal(torch.cat([given, compared]).unique(dim=0), x.unique(dim=0))
    assert not seen[0].requires_grad


def test_samples_that_are_all_the_same_have_directions_all_the_same():
    x = torch.ones(4, 3)
    torch.testing.assert_close(directions(x, x, rng(), 8, ("reference",)).norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("n", [4, 12])
def test_small_eps_gives_the_assignment(n):
    z, y = normal(n, 2), normal(n, 2, seed=1)
    cost = squares(z, y)
    rows, columns = linear_sum_assignment(cost.numpy())
    expected = torch.zeros(n, n)
    expected[rows, columns] = 1 / n
    torch.testing.assert_close(plan(cost, 1e-3, 3000)[0], expected, atol=0.05 / n, rtol=0)


def test_a_plan_has_its_margins_and_large_eps_is_independence():
    cost = squares(normal(30, 2), normal(50, 2, seed=1))
    p, _ = plan(cost, 0.5, 200)
    torch.testing.assert_close(p.sum(1), torch.full((30,), 1 / 30))
    torch.testing.assert_close(p.sum(0), torch.full((50,), 1 / 50), rtol=1e-3, atol=0)
    torch.testing.assert_close(plan(cost, 1e6)[0], torch.full((30, 50), 1 / 1500), rtol=1e-3, atol=0)


def test_the_value_of_a_plan_is_its_cost_and_its_divergence_from_independence():
    cost, eps = squares(normal(30, 2), normal(50, 2, seed=1)).double(), 0.5
    p, value = plan(cost, eps, 500)
    assert float(value) == pytest.approx(float((p * cost).sum() + eps * (p * (p * p.numel()).log()).sum()), rel=1e-6)


def test_divergence_of_a_shift_is_half_its_square():
    z = normal(60, 2)
    shift = torch.tensor([3.0, -1.0])
    assert float(sinkhorn_divergence(z, z + shift, eps=0.02, iterations=200)) == pytest.approx(5, rel=0.02)
    assert float(sinkhorn_divergence(z, z)) == pytest.approx(0, abs=1e-5)


def test_divergence_of_two_points_each_with_its_regularisation():
    """Points at -a, a and at -b, b: by symmetry OT is -e log mean exp(-cost / e), e relative to the mean cost."""
    a, b, eps = 1.0, 2.0, 0.5
    e = eps * (a**2 + b**2) / 2
    ot = lambda s, t: -e * math.log((math.exp(-((s - t) ** 2) / 2 / e) + math.exp(-((s + t) ** 2) / 2 / e)) / 2)
    z, y = (torch.tensor([[-s], [s]]) for s in (a, b))
    expected = ot(a, b) - ot(a, a) / 2 - ot(b, b) / 2
    assert float(sinkhorn_divergence(z, y, eps, 100)) == pytest.approx(expected, rel=1e-4)


def test_potentials_start_from_those_of_before():
    cost = squares(normal(12, 2), normal(5, 2, seed=1))
    found = potentials(cost, 0.1, 500)
    torch.testing.assert_close(potentials(cost, 0.1, 1, start=found[1]), found, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(potentials(cost, 0.1, 1)[1], found[1], atol=0.1)


def test_rows_are_divided_evenly_at_nearly_the_least_cost():
    rng = torch.Generator().manual_seed(0)
    rows, centres = torch.randn(120, 3, generator=rng), torch.randn(6, 3, generator=rng) + 1
    cost = squares(rows, centres)
    prices = potentials(cost, 0.02, 200)[1]
    columns = balanced_assignment(cost - prices)
    assert columns.bincount().tolist() == [20] * 6
    repeated = cost.repeat_interleave(20, dim=1).numpy()
    least = repeated[linear_sum_assignment(repeated)].sum()
    assert float(cost[torch.arange(120), columns].sum()) == pytest.approx(least, rel=0.01)
    assert balanced_assignment(torch.tensor([[0.0, 1.0], [0.0, 10.0]])).tolist() == [1, 0], "who loses most goes first"
    some = balanced_assignment(cost[:50] - prices)
    assert some.bincount(minlength=6).max() == 9, "50 / 6, rounded up"


def test_sinkhorn_gradient_is_that_of_the_assignment():
    z, y = normal(8, 2).requires_grad_(), normal(8, 2, seed=1)
    (mine,) = torch.autograd.grad(sinkhorn_divergence(z, y, eps=1e-4, iterations=2000), z)
    columns = torch.from_numpy(linear_sum_assignment(squares(z.detach(), y).numpy())[1])
    torch.testing.assert_close(mine, (z.detach() - y[columns]) / 8, atol=1e-3, rtol=0)


def test_energy_distance_of_two_points():
    z, y = torch.zeros(4, 3), torch.ones(5, 3)
    assert float(energy_distance(z, y, unbiased=False)) == pytest.approx(2 * math.sqrt(3), rel=1e-4)


def test_mmd_is_its_definition():
    z, y = normal(4, 2), normal(3, 2, seed=1)
    scale = torch.cdist(y, y).square().sum() / 6
    k = lambda a, b: float(1 / (1 + (a - b).square().sum() / scale / 0.5))
    pairs = lambda a, b, same: [k(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
    mean = lambda a, b, same: np.mean(pairs(a, b, same))
    expected = mean(z, z, True) + mean(y, y, True) - 2 * mean(z, y, False)
    assert float(mmd(z, y, (0.5,))) == pytest.approx(float(expected), abs=1e-5)


def test_drift_is_nothing_where_the_distributions_are_one():
    far = drift(normal(400, 2) + 4, normal(400, 2, seed=1), 0.5)[0]
    same = drift(normal(400, 2), normal(400, 2, seed=1), 0.5)[0]
    assert float(far.mean(0)[0]) < -2
    assert float(same.mean(0).norm()) < 0.05 * float(far.mean(0).norm())


def test_drift_does_not_fade_with_distance():
    y = normal(50, 2)
    away = drift(normal(50, 2, seed=1) + 1000, y, 0.05)[0]
    torch.testing.assert_close(away.mean(0), torch.full((2,), -1000.0), rtol=0.01, atol=0)


def test_moments_of_equal_moments_are_no_distance():
    """Four corners and a normal set, both of mean 0 and covariance 1."""
    z, y = normal(8000, 2), normal(8000, 2, seed=1).sign()
    assert float(moment_matching(z, y)) == pytest.approx(0, abs=5e-3)
    assert float(sliced_wasserstein(z[:1000], y[:1000], rng(), along=("random",))) > 0.01


def test_moments_of_two_covariances():
    """Diagonal ones, of many vectors: the squared differences of their variances."""
    z, y = normal(20000, 2) * torch.tensor([2.0, 1.0]), normal(20000, 2, seed=1) * torch.tensor([1.0, 3.0])
    assert float(moment_matching(z, y)) == pytest.approx((3**2 + 8**2) / 2, rel=0.03)


def test_moments_of_few_vectors_leave_latents_that_follow_the_reference_as_they_are():
    """The slope in their spread is that of the mean's variance alone, scale^2 / n. With |S|^2 of 32 vectors of 64
    components, three times their distribution's, it is 4 (64 + 1) / 31 more."""
    scale = torch.ones((), requires_grad=True)
    total = sum(moment_matching(scale * normal(32, 64, seed=i), normal(256, 64, seed=i + 50)) for i in range(50))
    (slope,) = torch.autograd.grad(total / 50, scale)
    assert float(slope) == pytest.approx(2 / 32, abs=0.2)


def test_normality_is_its_integral():
    """All mass in 0: phi = 1, and the integral of (1 - g)^2 g is (sqrt(2 pi) (1 - sqrt(2) + 1 / sqrt(3)))."""
    expected = math.sqrt(2 * math.pi) * (1 - 2 / math.sqrt(2) + 1 / math.sqrt(3))
    assert float(epps_pulley(torch.zeros(1, 5))[0]) == pytest.approx(expected, rel=1e-3)
    normal_, uniform = normal(4096, 8), 3**0.5 * (2 * torch.rand(4096, 1, generator=rng()) - 1)
    assert float(normality(normal_, rng())) < 1e-3 < float(normality(uniform, rng()))
    assert float(normality(2 * normal_, rng(), std=2.0)) == pytest.approx(float(normality(normal_, rng())))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_few_draws_of_a_narrower_normal_have_the_least_statistic(n):
    """The mean over many sets of the statistic's slope in their scale, for n draws of N(0, s^2), is 0 at `narrowed`."""
    scale = torch.tensor(narrowed(n), requires_grad=True)
    draws = normal(100_000 // n, n)
    (slope,) = torch.autograd.grad(epps_pulley(scale * draws).mean(), scale)
    (at_one,) = torch.autograd.grad(epps_pulley(scale / narrowed(n) * draws).mean(), scale)
    assert abs(float(slope)) < 0.1 * float(at_one)


@pytest.mark.parametrize("name", DISTANCES)
def test_order_and_place_do_not_matter(name):
    z, y = normal(40, 3), 1 + normal(50, 3, seed=1)
    distance = DISTANCES[name]
    expected = distance(z, y)
    if name != "sliced":  # which draws directions from samples by their number
        torch.testing.assert_close(
            distance(z[torch.randperm(40)], y[torch.randperm(50)]), expected, rtol=1e-3, atol=1e-5
        )
    torch.testing.assert_close(distance(z + 2, y + 2), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", DISTANCES)
def test_nearer_is_less(name):
    z, y = normal(200, 3), normal(200, 3, seed=1)
    values = [float(DISTANCES[name](z + shift, y)) for shift in (0.0, 1.0, 4.0)]
    assert values == sorted(values)
    assert values[0] < 0.2 * values[2] or name == "mmd"


def test_by_class_weighs_classes_by_their_latents():
    z, labels = normal(10, 2), torch.tensor([0] * 6 + [1] * 3 + [2])
    y, y_labels = normal(9, 2, seed=1), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    seen = []

    def distance(a, b):
        seen.append((len(a), len(b)))
        return a.sum() * 0 + len(seen)

    assert float(by_class(distance, z, labels, y, y_labels)) == pytest.approx((6 * 1 + 3 * 2) / 9)
    assert seen == [(6, 3), (3, 3)]  # class 2 has a single latent


def test_views_are_what_they_say():
    z = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    assert torch.equal(views.whole(z), z.flatten(1))
    assert torch.equal(views.tokens(z)[1], z[0, :, 0, 1])
    assert torch.equal(views.tokens(z)[4], z[1, :, 0, 0])
    pairs = views.pairs(z)
    assert pairs.shape == (8, 6)
    assert torch.equal(pairs[0], torch.cat([z[0, :, 0, 0], z[0, :, 0, 1]]))
    assert torch.equal(pairs[2], torch.cat([z[0, :, 0, 0], z[0, :, 1, 0]]))
    view = views.random_convolution(3, rng(), 8)
    assert view(z).shape == (8, 8)
    assert bool((view(z)[:, 4:] >= 0).all())


def test_kernels_of_a_random_convolution_have_unit_norm():
    """An impulse in the middle of one channel shows that channel's part of every kernel."""
    z = torch.zeros(3, 3, 3, 3)
    z[range(3), range(3), 1, 1] = 1
    torch.testing.assert_close(views.random_convolution(3, rng(), 8)(z).square().sum(0), torch.ones(8))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("d", [2, 256])
def test_gradients_are_not_rounding(name, d):
    """Float32 is what training has. The distance of a vector to itself, 0 but for rounding, once made a third of the
    energy distance's gradient."""
    z, y = 0.3 + normal(64, d), normal(64, d, seed=1)
    found = []
    for kind in (torch.float32, torch.float64):
        x = z.to(kind).requires_grad_()
        (gradient,) = torch.autograd.grad(DISTANCES[name](x, y.to(kind)), x)
        found.append(gradient.double())
    assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()
