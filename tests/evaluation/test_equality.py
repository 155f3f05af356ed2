"""Our values beside the established libraries', on the same features and on the same files.

Each test imports the library that it asks: together they take seconds, in every worker that collects this file.
"""

import warnings

import numpy as np
import pytest
import random_inception
import scipy.linalg
import torch
from PIL import Image

from dmvae.commands.measurements import measure
from dmvae.datasets.shapes import Shapes
from dmvae.evaluation import features, kernel
from dmvae.evaluation.frechet import Statistics, frechet_distance, frechet_distance_of_few
from dmvae.evaluation.kernel import inception_score, kernel_distance
from dmvae.evaluation.manifolds import manifold_values
from dmvae.evaluation.measure import pair_values
from dmvae.evaluation.pairs import psnr, ssim
from dmvae.losses.perceptual import LPIPSDistance


@pytest.fixture(scope="module")
def sets():
    """Two sets of features that are positive, correlated and of different sizes, as networks' are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(48, 48, generator=generator, dtype=torch.float64) / 7
    x = torch.randn(700, 48, generator=generator, dtype=torch.float64) @ mixing
    y = torch.randn(600, 48, generator=generator, dtype=torch.float64) @ mixing * 1.1 + 0.1
    return x.relu(), y.relu()


def test_frechet_distance_is_torch_fidelitys_and_scipys(sets):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = (Statistics.of(x) for x in sets)
    ours = frechet_distance(a, b)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in sets), verbose=False)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    scipys = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root)
    assert ours == pytest.approx(float(scipys), rel=1e-6)
    assert ours == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert ours == pytest.approx(frechet_distance_of_few(*sets), rel=1e-6)


def test_frechet_distance_of_few_is_that_of_singular_covariances(sets):
    x, y = sets[0][:20], sets[1][:30]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    assert frechet_distance_of_few(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("subsets", "size"), [(5, 300), (1, 600)])
def test_kernel_distance_is_torch_fidelitys(sets, subsets, size):
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(*sets, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    mean, spread = kernel_distance(*sets, subsets=subsets, subset_size=size)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    if subsets == 1:
        assert spread is None, "theirs is 0"
    else:
        assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-6, abs=1e-12)


def test_inception_score_is_torch_fidelitys(sets):
    from torch_fidelity.metric_isc import isc_features_to_metric

    theirs = isc_features_to_metric(sets[0] * 3)
    mean, spread = inception_score(sets[0] * 3)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert spread == pytest.approx(theirs["inception_score_std"], rel=1e-6)


@pytest.mark.parametrize("k", [3, 5])
def test_manifolds_are_prdcs_and_torch_fidelitys(sets, k, capsys):
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = sets
    ours = {name: float(values.mean()) for name, values in manifold_values(real, fake, k=k).items()}
    assert ours == pytest.approx(compute_prdc(real.numpy(), fake.numpy(), nearest_k=k), rel=1e-6)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=k, verbose=False)
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-6)


def test_pairs_are_torchmetrics():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.avg_pool2d(torch.rand(6, 3, 32, 40, generator=generator) * 255, 3, 1, 1)
    b = (a + 12 * torch.randn(a.shape, generator=generator)).clamp(0, 255).byte()
    a = a.byte()
    x, y = a.double(), b.double()
    theirs = peak_signal_noise_ratio(y, x, data_range=255, reduction="elementwise_mean", dim=(1, 2, 3))
    assert float(psnr(a, b).mean()) == pytest.approx(float(theirs), rel=1e-6)
    # torchmetrics averages windows that reach over the border too, into the mirrored image: inside, they are ours
    _, whole = structural_similarity_index_measure(y, x, data_range=255, return_full_image=True)
    assert float(ssim(a, b).mean()) == pytest.approx(float(whole[..., 5:-5, 5:-5].mean()), abs=1e-6)


@pytest.mark.slow
def test_perceptual_distance_is_lpips():
    """In batches, of uint8, with the learned weights that come with the package on a random VGG-16."""
    import lpips

    torch.manual_seed(0)
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    a, b = torch.randint(256, (2, 5, 3, 40, 40), dtype=torch.uint8)
    ours = pair_values(a, b, LPIPSDistance(1.0, network).per_sample)
    with torch.inference_mode():
        theirs = network(a / 255, b / 255, normalize=True).flatten()
    torch.testing.assert_close(ours["lpips_vgg16"].float(), theirs, rtol=1e-5, atol=0)


N = 4
"""Images of each folder, and parts that the Inception Score is taken of here."""


@pytest.mark.slow
def test_a_folder_is_measured_as_torch_fidelity_does(tmp_path, monkeypatch):
    """End to end: the same files, the same (random) weights of Inception."""
    from torch_fidelity import calculate_metrics

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "CHUNK", N)  # no padding to compute
    monkeypatch.setattr(kernel, "SPLITS", N)
    folders, taken = [], []
    heads_of = features.Extractor.heads
    monkeypatch.setattr(
        features.Extractor, "heads", lambda self, x: taken.append((x, heads_of(self, x))) or taken[-1][1]
    )
    for number, size in enumerate((40, 40)):
        folders.append(tmp_path / f"images-{number}")
        folders[-1].mkdir()
        images = Shapes(size=size, channels=3, count=N, test_count=N).build("test" if number else "train")
        pixels = torch.stack([images[i][0] for i in range(N)]) // (1 + number)  # distances far above rounding
        for i, image in enumerate(pixels):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folders[-1] / f"{i:03}.png")
    weights = random_inception.write(tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = measure("folder", [str(f) for f in folders], features=[f"inception={weights}"], batch_size=N)
    theirs = calculate_metrics(
        input1=str(folders[1]), input2=str(folders[0]), cuda=False, batch_size=N, fid=True, kid=True, isc=True,
        isc_splits=N, kid_subset_size=N, kid_subsets=1, save_cpu_ram=True, feature_extractor_weights_path=str(weights),
        verbose=False, cache=False,
    )  # fmt: skip
    (name,) = ours["manifest"]["features"]
    assert name.startswith("inception-")
    got = ours["metrics"]
    assert "fid_inception" not in got
    assert got[f"fd_{name}"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert got[f"kid_{name}"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    (heads,) = (found for x, found in taken if torch.equal(x, pixels))
    assert {head: x.shape[1] for head, x in heads.items()} == {"pool": 2048, "logits": 1008, "spatial": 2023}
    assert heads["spatial"].std() > 0
    assert inception_score(heads["logits"])[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
