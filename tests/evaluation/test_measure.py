"""The evaluator: names, and what does not change its numbers."""

import gc
import json
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import processes
from dmvae.commands.measurements import measure
from dmvae.commands.score_files import read_scores
from dmvae.evaluation.feature_set import FeatureSet, features_of, reference_features
from dmvae.evaluation.features import in_chunks, parse_features
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.images import FolderImages, TensorImages
from dmvae.evaluation.measure import measure_sets, pair_values
from dmvae.evaluation.metrics import Figure, Metric, Scores, Sets, measured_latents, measured_sets
from dmvae.runtime import distributed

pytestmark = pytest.mark.usefixtures("cache")

FEATURES = "effnet-lite0@32"


@pytest.fixture(scope="module")
def extractor():
    return parse_features(FEATURES).build()


def test_what_is_no_source_of_images_and_no_list_of_extractors_is_told(extractor):
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images: a Tensor is no source; give TensorImages"):
        features_of([extractor], images, 4, "images")
    with pytest.raises(ValueError, match="extractors: give a list"):
        features_of(extractor, TensorImages(images), 4, "images")


def sets(extractor, data, batch_size=16):
    return [features_of([extractor], TensorImages(x, y), batch_size, "images")[0] for x, y in data]


def near(a, b, rel=1e-6):
    assert set(a) == set(b)
    assert a == pytest.approx(b, rel=rel, abs=1e-9)


def test_every_name_carries_its_features(extractor, data):
    real, fake = sets(extractor, data)
    scores = measure_sets(real, fake, prefix="g", train=real)
    assert set(scores.metrics) == {
        f"{name}_{FEATURES}"
        for name in (
            "gfd", "gkid", "precision", "recall", "density", "coverage", "agreement", "agreement-real",
            "gfd-per-class", "memorisation",
        )
    }  # fmt: skip
    assert len(scores.per_class[f"gfd-per-class_{FEATURES}"]) == 3
    means = ("precision", "recall", "density", "coverage", "agreement", "agreement-real", "memorisation")
    assert set(scores.intervals) == {f"{name}_{FEATURES}" for name in means}
    assert set(pair_values(data[0][0], data[1][0])) == {"psnr", "ssim"}


def test_a_kernel_distance_of_whole_sets_has_no_spread(extractor, data):
    """Every subset would be the same, and a spread of 0 would look exact."""
    (real, fake), few = sets(extractor, data), 50
    assert f"kid-std_{FEATURES}" not in measure_sets(real, fake, parts=["kernel"]).metrics
    (fewer,) = sets(extractor, [(data[1][0][:few], data[1][1][:few])])
    assert measure_sets(real, fewer, parts=["kernel"]).metrics[f"kid-std_{FEATURES}"] > 0


def gaussians(n):
    """Features of two sets whose means are four deviations apart."""
    source = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, 16, generator=source) for _ in range(2))
    y[:, 0] += 4
    return [FeatureSet({"features": {"name": "x"}}, {"pool": rows}) for rows in (x, y)]


def test_of_few_images_what_lies_apart_looks_alike_and_is_told():
    def precision(n):
        return measure_sets(*gaussians(n), parts=["manifold"]).metrics["precision_x"]

    with pytest.warns(UserWarning, match="coverage of 8 images beside 8: .* take 100 or more"):
        assert precision(8) > 2 * precision(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precision(100) == pytest.approx(precision(1000), abs=0.15)


def test_figures_by_class_need_the_same_classes_and_more_than_one():
    def measured(labels, classes):
        x, y = gaussians(100)
        for features, of in ((x, "ab"), (y, classes)):
            features.labels, features.manifest["images"] = labels, {"classes": of}
        return measure_sets(x, y, parts=["manifold", "per-class"]).metrics.keys()

    two, by_class = torch.arange(100) % 2, {"agreement_x", "agreement-real_x", "fd-per-class_x"}
    assert by_class & measured(two, "ab")
    assert not by_class & measured(torch.ones_like(two), "ab")
    with pytest.warns(UserWarning, match="figures by class left out"):
        assert not by_class & measured(two, "ba")


def test_a_set_beside_itself(extractor, data):
    real, _ = sets(extractor, data)
    metrics = measure_sets(real, real).metrics
    assert metrics[f"fd_{FEATURES}"] == pytest.approx(0, abs=1e-6)
    assert metrics[f"fd-per-class_{FEATURES}"] == pytest.approx(0, abs=1e-6)
    assert metrics[f"precision_{FEATURES}"] == metrics[f"coverage_{FEATURES}"] == 1


@pytest.mark.slow
def test_samples_of_a_run_are_measured_as_the_same_images_in_a_folder(tmp_path, folders):
    images = FolderImages(folders[0])
    pixels = torch.stack([images[i] for i in range(len(images))])
    (tmp_path / "guidance-1").mkdir()
    for number, part in enumerate(pixels.split(5)):
        labels = torch.zeros(len(part), dtype=torch.int64)
        save_file({"images": part, "labels": labels}, tmp_path / f"guidance-1/samples-{number:05d}.safetensors")
    parts = {"features": [FEATURES], "parts": ["frechet", "kernel"]}
    ours = measure("folder", [str(tmp_path / "guidance-1"), str(folders[1])], **parts)
    assert ours["metrics"] == measure("folder", [str(folders[0]), str(folders[1])], **parts)["metrics"]
    with pytest.raises(ValueError, match="holds samples of a run, which cannot be the reference"):
        measure("folder", [str(folders[1]), str(tmp_path / "guidance-1")], **parts)


@pytest.mark.parametrize("size", [7, 64])
def test_batches_change_nothing(extractor, data, size):
    near(measure_sets(*sets(extractor, data, size)).metrics, measure_sets(*sets(extractor, data)).metrics)


def test_the_order_of_images_changes_nothing(extractor, data):
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = [(x[order], y[order]) for x, y in data]
    near(measure_sets(*sets(extractor, shuffled)).metrics, measure_sets(*sets(extractor, data)).metrics)


@pytest.mark.slow
def test_the_order_of_images_changes_nothing_where_subsets_are_drawn():
    """Kernel distances of more images than a subset holds, and the Inception Score, which cuts them into parts; of
    features that are mostly 0, as those after a ReLU."""
    generator = torch.Generator().manual_seed(0)

    def features(order=slice(None)):
        pool = (torch.randn(1200, 32, generator=generator) - 2).relu()
        rows = {"pool": pool, "logits": torch.randn(1200, 5, generator=generator)}
        manifest = {"features": {"name": "inception"}, "images": {}}
        return FeatureSet(manifest, {name: x[order] for name, x in rows.items()})

    real, order = features(), torch.randperm(1200, generator=generator)
    state = generator.get_state()
    fake = features()
    generator.set_state(state)
    shuffled = features(order)
    near(*(measure_sets(real, x, parts=("kernel", "score")).metrics for x in (shuffled, fake)))


@pytest.mark.slow
def test_images_prepared_otherwise_are_refused(folders, tmp_path):
    kept = str(tmp_path / "kept.safetensors")
    measure("folder", [folders[0], folders[1]], features=[FEATURES], size=8, save_reference=kept)
    with pytest.raises(ValueError, match=r"images of 16 pixels, and those of .* have 8; --size 8 crops and resizes"):
        measure("folder", [folders[1], kept], features=[FEATURES])
    with pytest.warns(UserWarning, match=r"images\.size: 8, 16"):
        measure("folder", [folders[1], kept], features=[FEATURES], force=True)


def test_images_of_other_sizes_are_refused_whatever_they_come_from(folders, data, tmp_path):
    small = data[0][0][:, :, ::2, ::2].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "small.npz", arr_0=small)
    with pytest.raises(ValueError, match=r"images of 8 pixels, and those of .* have 16; --size 8 crops and resizes"):
        measure("folder", [str(tmp_path / "small.npz"), folders[1]], features=[FEATURES])


def test_networks_see_batches_of_one_size_in_float32(monkeypatch):
    seen = []

    def network(a, b):
        seen.append((len(a), len(b), torch.get_float32_matmul_precision()))
        return (a - b).flatten(1).sum(1)

    torch.set_float32_matmul_precision("high")
    try:
        a, b = torch.randn(2, 70, 3, 4, 4)
        assert torch.allclose(in_chunks(network, a, b), (a - b).sum((1, 2, 3)), atol=1e-4)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [(32, 32, "highest")] * 3


def test_spatial_features_of_inception_give_sfid():
    generator = torch.Generator().manual_seed(0)
    manifest = {"features": {"name": "inception"}, "images": {}}
    real, fake = (
        FeatureSet(manifest, {head: torch.randn(40, 6, generator=generator) for head in ("pool", "spatial")})
        for _ in range(2)
    )
    metrics = measure_sets(real, fake, prefix="g", parts=("frechet",)).metrics
    by_hand = {"gfid_inception": "pool", "gsfid_inception": "spatial"}
    assert metrics == {
        name: pytest.approx(frechet_distance(Statistics.of(real.rows[head]), Statistics.of(fake.rows[head])))
        for name, head in by_hand.items()
    }


def test_float32_features_lose_nothing_to_float64_ones(extractor, data):
    real, fake = sets(extractor, data)
    exact = [FeatureSet(s.manifest, {k: v.double() for k, v in s.rows.items()}, labels=s.labels) for s in (real, fake)]
    near(measure_sets(*exact).metrics, measure_sets(real, fake).metrics)


@pytest.mark.slow
def test_files_and_workers_change_nothing(extractor, data, folders, tmp_path):
    """PNG holds every pixel; folders come in another order than the tensors."""
    expected = measure_sets(*reversed(sets(extractor, data))).metrics
    for workers in (0, 2):
        near(measure("folder", folders, features=[FEATURES], workers=workers)["metrics"], expected)
    np.savez(tmp_path / "a.npz", arr_0=data[0][0].permute(0, 2, 3, 1).numpy())
    found = measure("folder", [str(tmp_path / "a.npz"), folders[1]], features=[FEATURES])["metrics"]
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_ranks_change_nothing(folders, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    arguments = ["measure", "folder", *folders, "--features", FEATURES, "--workers", "0", "--batch-size", "7", "--json"]
    for count, file in ((1, one), (2, two)):
        for done in processes.ranks(count, *arguments, str(file), XDG_CACHE_HOME=str(tmp_path / str(count))):
            assert done.returncode == 0, done.stderr[-3000:]
    near(read_scores(two)["metrics"], read_scores(one)["metrics"])


@pytest.mark.slow
def test_images_of_a_source_are_not_held(extractor):
    """Of 5 batches that are made as they are asked for, no more than a few are alive at once."""
    alive, most = weakref.WeakSet(), 0

    class Source:
        facts, labels = {"kind": "made up"}, None

        def __len__(self):
            return 160

        def batches(self, chosen, batch_size):
            nonlocal most
            for _ in range(chosen.start, chosen.stop, batch_size):
                image = torch.zeros(batch_size, 3, 16, 16, dtype=torch.uint8)
                alive.add(image)
                gc.collect()
                most = max(most, len(alive))
                yield image

    (found,) = features_of([extractor], Source(), 32, "made up")
    assert len(found.pool) == 160
    assert most <= 3


def test_reference_features_are_computed_once(extractor, folders, cache, monkeypatch):
    images = FolderImages(folders[1])
    (first,) = reference_features([extractor], images, 16, "reference")
    monkeypatch.setattr(type(extractor), "heads", None)
    (again,) = reference_features([extractor], images, 16, "reference")
    assert torch.equal(again.pool, first.pool)
    assert torch.equal(again.moments().covariance, first.moments().covariance)
    assert again.manifest == json.loads(json.dumps(first.manifest))
    assert {"images", "features", "versions"} == set(again.manifest)
    assert again.manifest["features"]["weights"]


def test_features_of_grey_readings_are_not_those_of_colour(extractor, folders, cache):
    found = [
        reference_features([extractor], FolderImages(folders[1], channels=channels), 16, "reference")[0].pool
        for channels in (1, 3)
    ]
    assert not torch.equal(*found)


def one_has(rank, folder, images):
    """The first rank's folder has the features, the second one's has not."""
    distributed.start()
    extractor = parse_features(FEATURES).build()
    (found,) = reference_features([extractor], FolderImages(images), 16, "x", folder=Path(folder) / f"of-{rank}")
    torch.save(found.pool, Path(folder) / f"{rank}.pt")
    distributed.stop()


@pytest.mark.slow
def test_ranks_whose_folders_differ_all_have_the_features(folders, tmp_path):
    (first,) = reference_features(
        [parse_features(FEATURES).build()], FolderImages(folders[1]), 16, "x", folder=tmp_path / "of-0"
    )
    (there,) = (tmp_path / "of-0").iterdir()
    left = there.with_name(f"{there.name}.99.part")  # by who was killed
    left.mkdir()
    assert processes.on_ranks(one_has, str(tmp_path), folders[1]) == [0, 0]
    assert not left.exists()
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), first.pool)


def test_a_metric_s_numbers_of_any_kind_become_floats_and_others_are_told():
    class Own(Metric):
        type = "own"
        figures = (Figure("own", "own", "", 0, "{}", ""),)

    measured = SimpleNamespace(manifest={"features": {"name": "x"}}, rows={})
    own, sets = Own(), Sets(measured, measured, "", None, None, False)
    latents = SimpleNamespace(train=torch.zeros(2), test=torch.zeros(1))
    for number in (3, np.float32(3), np.int64(3), True + 2):
        own.latents = lambda latents, number=number: {"own": number}
        own.sets = lambda sets, number=number: Scores({"own_x": number})
        for found in (measured_latents(own, latents), measured_sets(own, sets).metrics):
            assert [(type(x), x) for x in found.values()] == [(float, 3.0)]
    own.sets = lambda sets: Scores({"own_x": torch.zeros(())})
    with pytest.raises(ValueError, match=r"metric 'own': sets returned Scores of Tensor; give numbers"):
        measured_sets(own, sets)
    own.latents = lambda latents: {"own": torch.zeros(())}
    with pytest.raises(ValueError, match=r"metric 'own': latents returned Tensor; give \{name: number\}"):
        measured_latents(own, latents)


def test_a_mixed_folder_is_measured_at_one_size(folders, tmp_path):
    Image.new("RGB", (40, 24), "red").save(tmp_path / "a.png")
    Image.new("L", (16, 16)).save(tmp_path / "b.png")
    result = measure("folder", [str(tmp_path), folders[1]], features=[FEATURES], size=16)
    assert result["manifest"]["measured"]["count"] == 2
