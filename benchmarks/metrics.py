"""Every metric on CIFAR-10's images, ours beside the established library's on the same features:

    python -m benchmarks.metrics --root DIR        (after `make install-dev`; DIR as for recipes/cifar10.yaml)

Sets: the second `count` training images stand for the samples, the first `count` test images are the reference, the
first `count` training images are those that memorisation asks about; through Inception the first training images stand
for the samples. Pairs: test images and their JPEG copies. Networks whose weights need a download are drawn at random:
equality does not need their weights, and the values of those rows mean nothing by themselves. A few minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests" / "evaluation"))

from benchmarks.tables import header, line
from dmvae.commands.measurements import measure
from dmvae.datasets.cifar10 import CIFAR10
from dmvae.evaluation.feature_set import FeatureSet, features_of
from dmvae.evaluation.features import SPATIAL
from dmvae.evaluation.features.effnet import EffNetLite0
from dmvae.evaluation.features.inception import Inception
from dmvae.evaluation.features.timm import TimmFeatures
from dmvae.evaluation.frechet import frechet_distance_of_few
from dmvae.evaluation.images import TensorImages
from dmvae.evaluation.kernel import inception_score
from dmvae.evaluation.manifolds import NEIGHBOURS
from dmvae.evaluation.measure import measure_sets, pair_values

Row = tuple[str, str, float, str, float]
"""Metric, features, our value, library, its value."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of CIFAR-10; $DMVAE_DATA/cifar10 or a download unless given")
    parser.add_argument("--count", type=int, default=1000, help="images of each set (default: %(default)s)")
    parser.add_argument(
        "--inception-count", type=int, default=64, help="of them through Inception (default: %(default)s)"
    )
    known = parser.parse_args()
    data = [CIFAR10(root=known.root, limit=2 * known.count).build(split) for split in ("train", "test")]
    train, test = ((d.images, d.labels) for d in data)
    warnings.simplefilter("ignore")  # few images, on purpose
    print(header(["metric", "features", "ours", "theirs", "by", "relative difference"]))
    for table in (pairs, effnet, dinov2, inception):
        count = known.inception_count if table is inception else known.count
        for name, features, ours, by, theirs in table(train, test, count):
            apart = abs(ours - theirs) / max(abs(theirs), 1e-300)
            print(line([name, features, f"{ours:.8g}", f"{theirs:.8g}", by, f"{apart:.1e}"]), flush=True)


def pairs(train: Any, test: Any, count: int) -> list[Row]:
    """Test images beside their JPEG copies of quality 50."""
    import lpips
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a = test[0][:count]
    b = torch.stack([_jpeg(image) for image in a])
    torch.manual_seed(0)
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    found = pair_values(a, b, lambda x, y: network(x, y).flatten())
    ours = {name: float(values.double().mean()) for name, values in found.items()}
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [
        structural_similarity(x, y, channel_axis=0, data_range=255, **options)
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    psnr = peak_signal_noise_ratio(b.double(), a.double(), data_range=255, dim=(1, 2, 3))
    with torch.inference_mode():
        each = [
            network(x / 127.5 - 1, y / 127.5 - 1).mean()
            for x, y in zip(a.float().split(100), b.float().split(100), strict=True)
        ]
    return [
        ("psnr", "", ours["psnr"], "torchmetrics", float(psnr)),
        ("ssim", "", ours["ssim"], "scikit-image", float(np.mean(ssim))),
        ("lpips", "vgg16, random", ours["lpips_vgg16"], "lpips", float(torch.stack(each).mean())),
    ]


def effnet(train: Any, test: Any, count: int) -> list[Row]:
    return _sets(EffNetLite0().build(), train, test, count)


def dinov2(train: Any, test: Any, count: int) -> list[Row]:
    """FDD's kind of network, small and with random weights: its distance alone."""
    torch.manual_seed(0)
    config = TimmFeatures(model="vit_small_patch14_dinov2.lvd142m", resolution=56, pretrained=False)
    extractor = config.build()
    for name, value in extractor.named_parameters():
        if name.endswith("gamma"):  # as drawn, blocks add next to nothing and features hardly vary
            value.fill_(1)
    return _sets(extractor, train, test, count)[:1]


def _sets(extractor: Any, train: Any, test: Any, count: int) -> list[Row]:
    """Set metrics of one extractor; the second half of the training images stands for the samples."""
    from prdc import compute_prdc
    from scipy.stats import mannwhitneyu
    from sklearn.neighbors import NearestNeighbors
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fake, seen, real = (
        features_of([extractor], TensorImages(x, y), 256, extractor.name)[0]
        for x, y in (
            (train[0][count : 2 * count], train[1][count : 2 * count]),
            (train[0][:count], train[1][:count]),
            (test[0][:count], test[1][:count]),
        )
    )
    scores = measure_sets(real, fake, train=seen).metrics
    x, y, z = (s.pool.double() for s in (real, fake, seen) if s.pool is not None)
    size = min(count, 1000)
    kid = kid_features_to_metric(x, y, kid_subsets=100 if count > size else 1, kid_subset_size=size, verbose=False)
    prc = prc_features_to_metric(y, x, prc_neighborhood=NEIGHBOURS, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        prdc = compute_prdc(x.numpy(), y.numpy(), nearest_k=NEIGHBOURS)
    nearest = NearestNeighbors(n_neighbors=1).fit(z.numpy())
    of_real, of_fake = (nearest.kneighbors(s.numpy())[0].ravel() for s in (x, y))
    memorised = mannwhitneyu(of_real, of_fake).statistic / len(of_real) / len(of_fake)
    classes = np.mean([_fidelity(x[real.labels == k], y[fake.labels == k]) for k in range(10)])
    theirs: list[tuple[str, str, float]] = [
        ("fd", "torch-fidelity", _fidelity(x, y)),
        ("fd", "scipy", _scipy(x, y)),
        ("fd-per-class", "torch-fidelity", float(classes)),
        ("kid", "torch-fidelity", kid["kernel_inception_distance_mean"]),
        ("precision", "torch-fidelity", prc["precision"]),
        ("recall", "torch-fidelity", prc["recall"]),
        *((name, "prdc", float(prdc[name])) for name in ("precision", "recall", "density", "coverage")),
        ("memorisation", "scikit-learn, scipy", float(memorised)),
    ]
    return [(name, extractor.name, scores[f"{name}_{extractor.name}"], by, value) for name, by, value in theirs]


def inception(train: Any, test: Any, count: int) -> list[Row]:
    """End to end on folders of PNG files, with random weights."""
    import random_inception
    from torch_fidelity import calculate_metrics

    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("train", "test")]
        for folder, (images, _) in zip(folders, (train, test), strict=True):
            folder.mkdir()
            for i, image in enumerate(images[:count]):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:05}.png")
        weights = str(random_inception.write(Path(scratch, "weights.pth")))
        ours = measure("folder", [str(f) for f in folders], features=[f"inception={weights}"])
        theirs = calculate_metrics(
            input1=str(folders[0]), input2=str(folders[1]), cuda=False, fid=True, kid=True, isc=True,
            kid_subset_size=count, kid_subsets=1, feature_extractor_weights_path=weights, verbose=False, cache=False,
        )  # fmt: skip
        (name,) = ours["manifest"]["features"]
        extractor = Inception(weights=weights).build()
        sets = [features_of([extractor], TensorImages(x[0][:count]), 64, "heads")[0] for x in (train, test)]
    score = inception_score(sets[0].rows["logits"])[0]
    return [
        ("fd, end to end", name, ours["metrics"][f"fd_{name}"], "torch-fidelity", theirs["frechet_inception_distance"]),
        ("kid, end to end", name, ours["metrics"][f"kid_{name}"], "torch-fidelity",
         theirs["kernel_inception_distance_mean"]),
        ("is, end to end", name, score, "torch-fidelity", theirs["inception_score_mean"]),
        ("sfd", name, *_spatial(*sets)),
    ]  # fmt: skip


def _spatial(a: FeatureSet, b: FeatureSet) -> tuple[float, str, float]:
    x, y = a.rows[SPATIAL], b.rows[SPATIAL]
    return frechet_distance_of_few(x, y), "torch-fidelity's formula", _fidelity(x.double(), y.double())


def _fidelity(x: Tensor, y: Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    found = fid_statistics_to_metric(*(fid_features_to_statistics(s) for s in (x, y)), verbose=False)
    return found["frechet_inception_distance"]


def _scipy(x: Tensor, y: Tensor) -> float:
    """With scipy's general matrix square root; NaN where it says that it failed."""
    from scipy.linalg import sqrtm

    a, b = (np.cov(s.numpy(), rowvar=False) for s in (x, y))
    root = sqrtm(a @ b)
    distance = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(a) + np.trace(b) - 2 * np.trace(root).real
    return float(distance) if np.isfinite(root).all() else math.nan


def _jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=50)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


if __name__ == "__main__":
    main()
