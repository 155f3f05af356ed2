"""`dmvae measure` at its command line: what it refuses, and that it agrees with the run's own stage."""

import warnings

import numpy as np
import pytest
import random_inception
import torch
from PIL import Image

import tiny
from complaints import complain
from dmvae import cli
from dmvae.commands.codec import decode_latents, encode_images
from dmvae.commands.measurements import measure
from dmvae.commands.score_files import read_scores
from dmvae.datasets.shapes import Shapes
from dmvae.evaluation import features
from dmvae.evaluation.features import parse_features
from dmvae.evaluation.images import FolderImages
from dmvae.evaluation.manifest import require_comparable
from dmvae.report.pipelines import write_pipelines

pytestmark = pytest.mark.usefixtures("cache")

FEATURES = "effnet-lite0@32"


@pytest.mark.slow
def test_bad_input_is_told_with_its_fix(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for size in (16, 24):
        Image.new("RGB", (size, size)).save(mixed / f"{size}.png")
    wide = tmp_path / "wide"
    wide.mkdir()
    Image.new("RGB", (20, 10)).save(wide / "wide.png")
    one = tmp_path / "one"
    one.mkdir()
    Image.new("RGB", (16, 16)).save(one / "one.png")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.png").write_bytes(b"")
    for folder, message in (
        (tmp_path / "empty", "no images in"),
        (tmp_path / "absent", "no such folder"),
        (mixed, "give --size N"),
        (wide, "not square: give --size N"),
        (broken, "unreadable image"),
        (one, "holds 1 image"),
    ):
        code, said = complain(capsys, "measure", "folder", folder, folders[1], "--features", FEATURES, "--workers", 0)
        assert (code, message in said) == (2, True), said
    code, said = complain(
        capsys, "measure", "folder", folders[0], one, "--features", FEATURES, "--workers", 0, "--force"
    )
    assert (code, "holds 1 image: sets are compared, of 2 or more" in said) == (2, True), said
    np.savez(tmp_path / "mu.npz", mu=np.zeros(99), sigma=np.eye(99))
    for arguments, message in (
        (["--features", "effnet-lite9"], "did you mean 'effnet-lite"),
        (["--features", "effnet-lite0@big"], "number of pixels"),
        (["--features", "effnet-lite0=file"], "weights: no such field"),
        (["--features", f"inception={tmp_path}/absent.pth"], "download https://"),
        (["--features", f"dinov2={tmp_path}/absent.pth"], f"no weights at {tmp_path}/absent.pth"),
        (["--count", "3"], "measure folder takes no --count"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--size", "100000000"], "--size must be at most 16384, got 100000000"),
        (["--workers", "-2"], "workers must be at least 0, got -2"),
        (["--limit", "-3"], "--limit must be at least 1, got -3"),
        (["--features", "effnet-lite0@0"], "number of pixels"),
        (["--save-reference", "here"], "name it so"),
        (["--save-reference", "here.safetensors"], "mu.npz holds statistics already"),
        (["--train", folders[0]], "mu.npz holds only statistics"),
        (["--features", "effnet-lite0@32"], "mu.npz is of features with 99 components, and effnet-lite0@32 has 1280"),
    ):
        reference = tmp_path / "mu.npz" if "mu.npz" in message else folders[1]
        code, said = complain(capsys, "measure", "folder", folders[0], reference, *arguments)
        assert (code, message in said) == (2, True), said


def test_what_would_change_nothing_and_what_would_replace_a_folder_is_refused(folders, tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for arguments, message in (
        (["--compare", a, b, "--json", tmp_path / "c.json"], "--compare: json would change nothing"),
        (["--check", a, "--limit", "3"], "--check: limit would change nothing"),
        (["folder", *folders, "--features", FEATURES, "--json", tmp_path], "that is a folder"),
    ):
        code, said = complain(capsys, "measure", *arguments)
        assert (code, message in said) == (2, True), said
    assert tmp_path.is_dir()


def test_all_bad_files_are_told_at_once(tmp_path):
    for name, size in (("a", 16), ("b", 16), ("c", 24), ("d", 16)):
        Image.new("RGB", (size, size)).save(tmp_path / f"{name}.png")
    for name in ("b", "d"):  # the header is whole, the pixels are cut short
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
    (tmp_path / "0.png").touch()
    for workers in (0, 1):
        images = FolderImages(tmp_path, workers=workers)
        with pytest.raises(ValueError, match="3 of 5 images: unreadable image: ") as told:
            list(images.batches(range(5), 2))
        for name in ("0.png: cannot identify", "b.png: ", "d.png: ", "c.png is 24x24", "give --size N"):
            assert name in str(told.value)
    for i in range(4):  # one option mends them all: a few will do
        Image.new("RGB", (24, 16)).save(tmp_path / f"e{i}.png")
    with pytest.raises(ValueError, match=r"e0\.png is 24x16, \S+e1\.png is 24x16 and 2 more, and the first"):
        list(FolderImages(tmp_path, workers=0).batches(range(9), 2))


@pytest.mark.slow
def test_copies_of_any_training_image_are_found_and_other_training_images_do_not_compare(folders, tmp_path):
    """A limit is of the images that are compared."""
    images, _ = Shapes(size=24, channels=3, test_count=40).build("test").__getitems__(range(40))
    for name, chosen in (
        ("train", range(30)),
        ("few", range(12)),
        ("copies", range(0, 30, 3)),
        ("test", range(30, 40)),
    ):
        (tmp_path / name).mkdir()
        for i in chosen:
            Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:03}.png")
    paths = [str(tmp_path / name) for name in ("copies", "test")]
    found = {
        train: measure("folder", paths, features=[FEATURES], limit=8, train=str(tmp_path / train))
        for train in ("train", "few")
    }
    assert found["train"]["metrics"][f"memorisation_{FEATURES}"] == 1
    assert found["few"]["metrics"][f"memorisation_{FEATURES}"] < 1
    assert found["train"]["manifest"]["train"]["count"] == 30
    a, b = (scores["manifest"] for scores in found.values())
    with pytest.raises(ValueError, match=r"the scores do not compare: train\."):
        require_comparable(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_comparable(a, {key: value for key, value in b.items() if key != "train"})


def test_options_of_folders_are_told_where_no_folder_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3), dtype=np.uint8))
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    kept, npz, a, b = (str(tmp_path / name) for name in ("kept.safetensors", "a.npz", "a", "b"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        measure("folder", [a, b], features=[FEATURES], limit=5, size=16, resampling="adm", save_reference=kept)
        measure("folder", [npz, kept], features=[FEATURES], limit=5, train=b)
        measure("folder", [npz, kept], features=[FEATURES], limit=5, resampling="adm")
    assert [text for one in told if "no folder" in (text := str(one.message))] == [
        "--limit 5: no folder of images is read here, so it changes nothing",
        "--resampling adm, --limit 5: no folder of images is read here, so it changes nothing",
    ]


def test_weights_of_one_file_name_are_told_apart(tmp_path):
    named = []
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pth").write_text(folder)
        named.append(parse_features(f"vit_tiny_patch16_224={tmp_path / folder}/model.pth").name)
    assert named[0] != named[1]
    assert all(name.startswith("vit_tiny_patch16_224(model-") for name in named)


def test_an_image_that_is_too_large_to_open_is_told_like_a_broken_one(tmp_path, monkeypatch):
    for name, size in (("a", 64), ("b", 16)):
        Image.new("RGB", (size, size)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    images = FolderImages(tmp_path)
    assert images.size == 16
    with pytest.raises(ValueError, match=r"1 of 2 images: unreadable image: .*a\.png: .*exceeds limit"):
        list(images.batches(range(2), 2))


@pytest.mark.slow
def test_samples_are_measured_by_inception(tmp_path, folders, monkeypatch, capsys):
    """The command of recipes/cifar10_fid.yaml, with random weights: named after them, and never the published FID."""
    monkeypatch.setattr(features, "CHUNK", 6)  # no padding to compute
    jobs = tiny.run(tiny.write(tmp_path, data__size=16), "kl", until="generator")
    (pipeline,) = write_pipelines(jobs, tmp_path / "run")
    weights = random_inception.write(tmp_path / "weights.pth")
    options = ["--features", f"inception={weights}", "--count", "6", "--steps", "2", "--guidance", "3"]
    options += ["--limit", "6", "--workers", "0", "--json", tmp_path / "s.json"]
    cli.main([str(a) for a in ["measure", "samples", pipeline, folders[0], *options]])
    found = read_scores(tmp_path / "s.json")
    (name,) = found["manifest"]["features"]
    assert name.startswith("inception-")
    assert found["metrics"][f"gfd_{name}"] > 1
    assert "gfid_inception" not in found["metrics"]
    assert found["manifest"]["measured"]["count"] == 6
    assert found["manifest"]["measured"]["sampler"]["guidance"] == [3]
    out = capsys.readouterr().out
    assert f"features: {name}" in out
    assert "│ gfd " in out


def test_a_link_that_leads_nowhere_is_told_with_the_others(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    (tmp_path / "c.png").touch()
    with pytest.raises(ValueError, match=r"2 of 3 images: unreadable image: .*b\.png.*; .*c\.png"):
        list(FolderImages(tmp_path).batches(range(3), 2))


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path, held_out):
    for name in ("train", held_out):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "a.png")
    with pytest.raises(
        ValueError, match=rf"two splits, train/ and {held_out}/, which are no classes: give /.*{held_out} "
    ):
        FolderImages(tmp_path)
    assert len(FolderImages(tmp_path / held_out)) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"batch_size": -1}, "--batch-size must be at least 1, got -1"), ({"batch_size": 0}, "at least 1, got 0")],
)
def test_encode_and_decode_refuse_batches_of_none(tmp_path, wrong, message):
    for work in (encode_images, decode_latents):
        with pytest.raises(ValueError, match=message):
            work(None, tmp_path, tmp_path / "out", device=torch.device("cpu"), **wrong)
    with pytest.raises(ValueError, match="--shard-size must be at least 1, got 0"):
        encode_images(None, tmp_path, tmp_path / "out", device=torch.device("cpu"), shard_size=0)
    assert not (tmp_path / "out").exists()


def test_a_check_under_torchrun_says_that_it_takes_one_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = complain(capsys, "measure", "--check", tmp_path / "a.json")
    assert (code, "leave torchrun out" in said) == (2, True), said
