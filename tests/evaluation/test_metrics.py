"""Metrics against scikit-image, brute force and cases with a known answer."""

import importlib
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dmvae.datasets.pixels import resized, to_uint8, unit_to_uint8
from dmvae.evaluation import manifolds
from dmvae.evaluation.bootstrap import interval
from dmvae.evaluation.classification import knn_accuracy
from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.manifolds import agreement_values, manifold_values, memorisation_values
from dmvae.evaluation.metrics import (
    Figure,
    Latents,
    Metric,
    Scores,
    Sets,
    measured_latents,
    measured_sets,
    metrics_of,
    of_sets,
)
from dmvae.evaluation.metrics.per_class import per_class
from dmvae.evaluation.pairs import psnr, ssim


def test_the_psnr_of_an_exact_copy_is_that_of_a_single_step():
    a = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert psnr(a, a).tolist() == pytest.approx(3 * [10 * math.log10(255**2 * 3 * 16 * 16)])


def test_samples_that_are_the_test_images_are_neither_nearer_nor_farther():
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    assert memorisation_values(x[:20], x[20:40], x[20:40]).mean() == 0.5


def manifold_means(real, fake, k=5):
    return {name: float(values.mean()) for name, values in manifold_values(real, fake, k).items()}


@pytest.fixture(params=[1, 3])
def pair(request):
    generator = torch.Generator().manual_seed(request.param)
    a = torch.randint(256, (5, request.param, 24, 32), generator=generator)
    a = torch.nn.functional.avg_pool2d(a.float(), 3, 1, 1)
    b = a + 12 * torch.randn(a.shape, generator=generator)
    return a.to(torch.uint8), b.clamp(0, 255).to(torch.uint8)


def test_a_figure_of_sets_that_no_table_would_show_is_told():
    class Mine(Metric):
        type, figures = "mine", (Figure("gwide", "width", "", 0, "{:.1f}", ""),)

        def sets(self, sets):
            return Scores({f"{sets.prefix}{self.own}_{sets.features}": 1.0})

    metric, sets = Mine(), SimpleNamespace(prefix="g", features="x@64", real=None, fake=None, train=None)
    metric.own = "broad"
    with pytest.warns(UserWarning, match="'mine': sets gives gbroad_x@64, and short names gwide_x@64: no table"):
        measured_sets(metric, sets)
    metric.own = "wide"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured_sets(metric, sets)


def test_a_metric_that_changes_what_others_read_is_told():
    class Centred(Metric):
        type, figures = "centred", (Figure("norm", "norm", "", 0, "{:.1f}", "norm"),)

        def sets(self, sets):
            sets.fake.pool.sub_(sets.fake.pool.mean(dim=0))
            return Scores()

        def latents(self, latents):
            x = latents.test.flatten(1)
            x -= x.mean(dim=0)
            return {"norm": float(x.norm())}

    rows, labels, manifest = torch.rand(6, 4), torch.zeros(6, dtype=torch.int64), {"features": {"name": "x"}}
    with pytest.raises(ValueError, match="'centred': sets changes what it is given in place"):
        measured_sets(Centred(), Sets(*(FeatureSet(manifest, {"pool": rows.clone()}) for _ in range(2))))
    z = rows.view(6, 1, 2, 2)
    with pytest.raises(ValueError, match="'centred': latents changes what it is given in place"):
        measured_latents(Centred(), Latents(z.clone(), labels, z, labels, neighbours=2))


def test_to_uint8_clamps_and_rounds():
    x = torch.tensor([-3.0, -1.0, -1 + 1.2 / 127.5, -1 + 1.8 / 127.5, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 1, 2, 255, 255]


def test_to_uint8_takes_no_nan_for_a_grey_level():
    with pytest.raises(FloatingPointError, match="images hold NaN"):
        to_uint8(torch.tensor([[0.5, float("nan")]]))


def test_resized_images_stay_within_their_range():
    """Bicubic weights overshoot at an edge."""
    edge = torch.ones(1, 1, 8, 8)
    edge[..., :4] = -1
    found = resized(edge, (13, 13))
    assert (found.min(), found.max()) == (-1, 1)
    assert F.interpolate(edge, (13, 13), mode="bicubic", antialias=True).max() > 1.01
    assert resized(edge, (8, 8)) is edge


def test_to_uint8_undoes_scaling_to_unit_range():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values / 127.5 - 1), values)


def test_psnr_is_scikit_images(pair):
    a, b = pair
    expected = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-9)


def test_ssim_is_scikit_images(pair):
    a, b = pair
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    expected = [structural_similarity(x, y, channel_axis=0, **options) for x, y in pairs]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_images(pair):
    a, _ = pair
    assert ssim(a, a).tolist() == pytest.approx([1] * 5, abs=1e-12)
    assert 48 < psnr(a, a).mean() < 100


def test_images_that_do_not_pair_are_refused(pair):
    a, b = pair
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="uint8"):
            metric(a, b.float())
        with pytest.raises(ValueError, match="shape"):
            metric(a, b[:2])
    with pytest.raises(ValueError, match="11x11"):
        ssim(a[..., :10, :], b[..., :10, :])


def test_manifolds_by_brute_force():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(300, 3, generator=generator), 0.8 * torch.randn(280, 3, generator=generator) + 0.3
    k = 4

    def distances(x, y):
        return np.linalg.norm(x.numpy()[:, None].astype(float) - y.numpy()[None].astype(float), axis=-1)

    def radii(x):
        return np.sort(distances(x, x), 1)[:, k]

    cross = distances(real, fake)
    in_real = cross <= radii(real)[:, None]
    expected = {
        "precision": in_real.any(0).mean(),
        "recall": (cross <= radii(fake)).any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": in_real.any(1).mean(),
    }
    assert manifold_means(real, fake, k=k) == pytest.approx(expected, abs=1e-12)


def test_manifolds_that_coincide_and_that_are_apart():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    same, apart = manifold_means(x, x), manifold_means(x, x + 1000)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert apart == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    with pytest.raises(ValueError, match="too small"):
        manifold_means(x[:5], x)


def test_a_class_of_a_single_image_has_no_distance_and_no_say_in_the_mean():
    generator, labels = torch.Generator().manual_seed(0), torch.tensor([0] * 5 + [1] * 5 + [2])
    real, fake = (FeatureSet({}, {"pool": torch.randn(11, 3, generator=generator)}, labels=labels) for _ in range(2))
    scores = per_class(real, fake, "gfd")
    each = [frechet_distance(*(Statistics.of(x.pool[labels == label]) for x in (real, fake))) for label in (0, 1)]
    assert scores.per_class == {"gfd": [*map(pytest.approx, each), None]}
    assert scores.metrics == {"gfd": pytest.approx(sum(each) / 2)}


def test_knn_classifies_by_direction():
    train = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    labels = torch.tensor([0, 0, 3, 3])
    test, test_labels = torch.tensor([[9.0, 1.0], [0.2, 0.5], [7.0, 0.0]]), torch.tensor([0, 3, 3])
    assert knn_accuracy(train, labels, test, test_labels, k=2) == pytest.approx(2 / 3)
    long = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    assert knn_accuracy(long, torch.tensor([0, 1]), torch.tensor([[1.0, 0.5]]), torch.tensor([0]), k=1) == 1
    with pytest.raises(ValueError, match="k = 20"):
        knn_accuracy(train, labels, test, test_labels)


def test_nearer_neighbours_weigh_more():
    """One training vector alike outvotes two that are not."""
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3) == 1


def test_agreement_is_the_share_of_near_images_of_the_class_asked_for():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    labels = torch.arange(3).repeat(20)
    real = centres[labels] + torch.randn(60, 2, generator=generator)
    asked = torch.arange(3).repeat(4)
    drawn = asked.clone()
    drawn[:3] = torch.tensor([1, 2, 0])  # the first three of twelve are good images of another class
    values = agreement_values(real, labels, centres[drawn], asked)
    assert values.tolist() == [0.0] * 3 + [1.0] * 9
    # between two clouds, which lie 2 to 3 around it
    real = torch.tensor([[-1.0], [-1.1], [1.01], [1.02], [1.03], [9.0]])
    values = agreement_values(real, torch.tensor([0, 0, 1, 1, 1, 1]), torch.zeros(2, 1), torch.tensor([0, 1]), k=5)
    assert values.tolist() == pytest.approx([2 / 5, 3 / 5])


class Seen(Exception):
    pass


@pytest.mark.parametrize("name", ["manifold", "memorisation", "knn", "linear_probe"])
def test_distances_are_computed_on_the_device(monkeypatch, name):
    """And over the ranks, where these measure together. The device is `meta`, where nothing can be looked at."""

    def see(*tensors, shared=None, **_):
        raise Seen({x.device.type for x in tensors if isinstance(x, torch.Tensor)}, shared)

    module = importlib.import_module(f"dmvae.evaluation.metrics.{name}")
    for function in ("linear_probe", "knn_accuracy", "manifold_values"):
        monkeypatch.setattr(module, function, see, raising=False)
    monkeypatch.setattr(manifolds, "nearest", see)
    where = {"device": torch.device("meta"), "shared": True}
    labels = torch.arange(12) % 3
    rows = FeatureSet({"features": {"name": "x"}}, {"pool": torch.randn(12, 4)}, labels=labels)
    z = torch.randn(12, 4, 1, 1)
    (metric,) = metrics_of([name])
    measure, of = (
        (metric.sets, Sets(rows, rows, train=rows, **where))
        if of_sets(type(metric))
        else (metric.latents, Latents(z, labels, z, labels, 3, **where))
    )
    with pytest.raises(Seen) as seen:
        measure(of)
    assert seen.value.args == ({"meta"}, None if name == "linear_probe" else True)


def test_memorisation_tells_copies_from_news():
    generator = torch.Generator().manual_seed(0)
    train, test, news = (torch.randn(400, 8, generator=generator) for _ in range(3))
    found = [memorisation_values(train, test, fake).mean() for fake in (train[:100], test, news + 10)]
    assert found == [1, 0.5, 0]
    assert float(memorisation_values(train, test, news).mean()) == pytest.approx(0.5, abs=0.05)


def test_intervals_are_those_of_a_mean():
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = interval(x)
    assert low < float(x.mean()) < high
    assert high - low == pytest.approx(2 * 1.96 * float(x.std()) / 2000**0.5, rel=0.1)


def test_floats_outside_their_range_are_refused():
    x = torch.tensor([[[[0.0, 1.0]]]])
    assert unit_to_uint8(x).tolist() == [[[[0, 255]]]]
    for wrong in (x * 2 - 1, x * 255, x / 0, x.long(), x.to(torch.uint16)):
        with pytest.raises(ValueError, match=r"floats in \[0, 1\]"):
            unit_to_uint8(wrong)
