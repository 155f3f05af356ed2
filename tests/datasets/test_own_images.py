"""Somebody's own few images: what is left out is named, sizes fit, and figures say how few they rest on."""

import os

import numpy as np
import pytest
from PIL import Image, features

import tiny
from dmvae import cli
from dmvae.checks import problems
from dmvae.datasets import skipped
from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.image_scan import scan
from dmvae.fitting import batch_of, fit
from dmvae.recipe import load

WITHOUT = dict.fromkeys(("encoder", "reference", "matching", "decoder", "generator", "sample"))


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(skipped, "_skipped", {})


def pictures(folder, count, suffix=".png"):
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True, parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i:02}{suffix}")
    return folder


@pytest.mark.slow
def test_a_run_of_few_images_of_many_kinds(tmp_path, capsys, plain_report):
    """One run tells it all: the test share, what was left out, which sizes were made to fit."""
    root = pictures(tmp_path / "own", 20)
    for i in range(5):
        (root / f"bad{i}.jpg").write_bytes(b"no image")
    (root / "photo.cr2").touch()
    (root / "notes.txt").touch()
    data = {"type": "image_folder", "root": str(root), "size": 12, "channels": 3}
    over = WITHOUT | {"data": data, "variants": None, "tokenizer__train_encoder": True, "tokenizer__batch_size": 256}
    path = tiny.write(tmp_path, **over)
    with pytest.warns(UserWarning, match=r"left out: 1 image in .* that dmvae does not read \(1 .cr2; the first is "):
        cli.main(["run", str(path), "--evaluate.count", "24"])
    out = capsys.readouterr().out
    assert "; the test images are chosen by file name, about 10% of all (data.valid_fraction)" in out
    assert "tokenizer.batch_size is 16 in place of 256: the training set has " in out
    assert "evaluate.neighbours is " in out
    assert f"data: files were left out; {tmp_path}/run/skipped.txt names them" in out
    lines = (tmp_path / "run/skipped.txt").read_text()
    for name in ("bad0.jpg: ", "bad4.jpg: ", "photo.cr2: images that end in .cr2 are not read here", "1 of .txt"):
        assert name in lines
    page = (tmp_path / "run/report.html").read_text()
    assert "They rest on 3 images: of fewer than about 2,048, Frechet distances are biased upwards by much" in page
    assert "kNN" not in page, "all are right where there is one class"
    with pytest.raises(SystemExit):
        cli.main(["run", str(path), "--tokenizer.batch_size", "128"])
    assert "tokenizer.batch_size: 128 is larger than the data set" in capsys.readouterr().err


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_unreadable_files_of_both_splits_are_named(tmp_path, cache):
    root = pictures(tmp_path / "own", 40)
    bad = [root / f"bad{i}.jpg" for i in range(40)]
    for file in bad:
        file.write_bytes(b"no image")
    config = ImageFolder(root=str(root), size=8, channels=3, cache=cache)
    for split in ("train", "test"):
        with pytest.warns(UserWarning, match="unreadable images of"):
            config.build(split)
    lines = skipped.write_skipped(tmp_path)[1].read_text()
    assert all(f"{file}: " in lines for file in bad)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_can(tmp_path):
    assert len(scan(pictures(tmp_path / "own", 3, ".avif"))[0]) == 3


def test_heic_without_its_package_is_told_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr("dmvae.datasets.image_scan.SUFFIXES", frozenset([".png"]))
    root = pictures(tmp_path / "own", 2)
    for name in ("a.HEIC", "b.heic"):
        (root / name).touch()
    with pytest.warns(UserWarning, match=r"2 images in .* \(2 .heic; .*pip install pillow-heif reads HEIC"):
        assert len(scan(root)[0]) == 2
    count, file = skipped.write_skipped(tmp_path)
    assert (count, "a.HEIC: " in file.read_text()) == (2, True)
    skipped._skipped.clear()
    skipped.write_skipped(tmp_path)
    assert not file.exists(), "nothing was left out of the run that came last"


def test_what_is_within_a_batch_shrinks_with_it(tmp_path, monkeypatch):
    over = {"batch_size": 96, "decoded": 64, "noise": "assigned", "noise_groups": 48, "noise_bank": 96}
    path = tiny.write(tmp_path, **{f"matching__{name}": value for name, value in over.items()}, run__accumulate=3)
    (matched, said), section = fit({"matched": load(path)["matched"]}), "matching"
    found = matched["matched"].section(section)
    assert (found.batch_size, found.decoded, found.noise_groups) == (32, 32, 32)
    assert [line.partition(":")[0] for line in said] == [
        "matching.decoded is 32 in place of 64",
        "matching.noise_groups is 32 in place of 48",
        "matching.batch_size is 32 in place of 96",
    ]
    path = tiny.write(tmp_path, matching=tiny.RECIPE["matching"] | over | {"noise_bank": 2000, "noise_groups": 40})
    assert fit({"matched": load(path)["matched"]})[0]["matched"].matching.noise_groups == 25, "it divides the bank"
    monkeypatch.setattr("dmvae.runtime.distributed.world_size", lambda: 3)
    path = tiny.write(tmp_path, matching__batch_size=96, matching__decoded=64)
    found = fit({"matched": load(path)["matched"]})[0]["matched"].matching
    assert (found.batch_size, found.decoded) == (48, 48), "both divide over three ranks"
    monkeypatch.undo()
    parted = load(tiny.write(tmp_path, generator__batch_size=96, run__accumulate=3))
    assert fit(parted)[0]["kl"].generator.batch_size == 48, "it divides into the parts"


def test_a_generator_of_mirror_images_too_has_twice_the_items(tmp_path):
    path = tiny.write(tmp_path, latents__mirrored=True, generator__batch_size=96, tokenizer__batch_size=64)
    fitted, said = fit({"kl": load(path)["kl"]})
    assert fitted["kl"].generator.batch_size == 96
    assert said == ["tokenizer.batch_size is 32 in place of 64: the training set has 48 images"]
    assert list(problems(fitted["kl"], fitted["kl"].stages())) == []
    recipes = load(tiny.write(tmp_path, latents__mirrored=True, generator__batch_size=97))
    told = "generator.batch_size: 97 is larger than the data set (96 images); use at most 96"
    assert list(problems(recipes["kl"], recipes["kl"].stages())) == [told]
    recipes, said = fit({"kl": recipes["kl"]})
    assert recipes["kl"].generator.batch_size == 64
    assert said == ["generator.batch_size is 64 in place of 97: the training set has 48 images and their mirror images"]
    once = load(tiny.write(tmp_path, latents__stored=24, generator__batch_size=49))["kl"]
    assert fit({"kl": once})[0]["kl"].generator.batch_size == 32, "it encodes the images, each once"


def test_images_of_one_class_are_not_sampled_with_guidance_by_class_too(tmp_path):
    path = tiny.write(tmp_path, data__num_classes=1, sample__guidance=[1.0, 1.5])
    fitted, said = fit({"kl": load(path)["kl"]})
    assert fitted["kl"].sample.guidance == (1.0,)
    told = "sample.guidance is [1.0] in place of [1.0, 1.5]: the training set has one class, towards which no guidance"
    assert said == [f"{told} leads"]
    assert fit({"kl": load(path)["kl"]}, ["sample.guidance"])[0]["kl"].sample.guidance == (1.0, 1.5)
    guided = load(path, {"sample.guide": 2, "generator.keep_at": [2]})["kl"]
    assert fit({"kl": guided})[0]["kl"].sample.guidance == (1.0, 1.5), "a weaker network may guide"
    assert fit({"kl": load(path, {"data.num_classes": 3})["kl"]})[0]["kl"].sample.guidance == (1.0, 1.5)


def test_what_was_asked_for_is_not_made_to_fit(tmp_path):
    recipes = load(tiny.write(tmp_path, tokenizer__batch_size=64, generator__batch_size=64))
    fitted, said = fit(recipes, ["generator.batch_size"])
    assert {recipe.tokenizer.batch_size for recipe in fitted.values()} == {32}
    assert {recipe.generator.batch_size for recipe in fitted.values()} == {64}
    assert said == ["tokenizer.batch_size is 32 in place of 64: the training set has 48 images"]
    assert fit(fitted)[0]["kl"].generator.batch_size == 32
    seeds = load(tiny.write(tmp_path, generator__batch_size=64, seeds={"kl": [0, 1]}))
    seeded, said = fit(seeds, ["variants.kl.generator.batch_size"])
    assert {name: recipe.generator.batch_size for name, recipe in seeded.items()} == {
        "matched": 32,
        "kl@0": 64,
        "kl@1": 64,
    }
    assert [batch_of(48, 1), batch_of(48, 3), batch_of(1, 1), batch_of(7, 4)] == [32, 48, 1, 4]
    fewer = load(tiny.write(tmp_path, matching__batch_size=128), {"matching.decoded": 64})
    told = (
        r"^matching\.decoded: 64 images of a batch of 32; give at most those \(matching\.batch_size is 32 in place of "
        r"128: the training set has 48 images\)$"
    )
    with pytest.raises(ValueError, match=told):
        fit(fewer, ["matching.decoded"])


@pytest.mark.parametrize(
    ("splits", "place", "refused"),
    [
        (["a"], "runs/x", True),
        (["a"], ".runs/x", False),
        (["a"], "../x", False),
        (["train", "test"], "train/x", True),
        (["train", "test"], "runs/x", False),
    ],
)
def test_no_run_writes_where_its_images_are_read(tmp_path, splits, place, refused):
    """Its samples would be a class of the next run's data."""
    root = tmp_path / "own"
    root.mkdir()
    for name in splits:
        pictures(root / name, 4)
    data = {"type": "image_folder", "root": str(root), "size": 12, "channels": 3}
    over = WITHOUT | {"data": data, "variants": None, "tokenizer__train_encoder": True, "tokenizer__batch_size": 2}
    (recipe,) = load(tiny.write(tmp_path, **over), {"run.dir": str(root / place)}).values()
    assert any("run.dir: " in problem for problem in problems(recipe, recipe.stages())) == refused


def test_broken_files_are_named_from_where_the_run_is(tmp_path, monkeypatch):
    root = pictures(tmp_path / "deep/own", 4)
    (root / "bad.png").write_bytes(b"no image")
    for place, named in ((tmp_path, "deep/own"), (root.parent, "own")):
        monkeypatch.chdir(place)
        with pytest.warns(UserWarning, match=rf"skipped 1 unreadable image of \d: {named}/bad\.png: ") as told:
            [ImageFolder(root=named, size=8).build(split) for split in ("train", "test")]
        assert f": {named}/bad.png: " in str(told[0].message)


def test_a_class_in_another_encoding_has_a_name_that_text_can_hold(tmp_path):
    """As folders of an archive of another age have."""
    root = tmp_path / "own"
    root.mkdir()
    for name in (b"a", b"caf\xe9"):
        pictures(root / os.fsdecode(name), 4)
    train, test = (ImageFolder(root=str(root), size=8).build(split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", r"caf\xe9")
    assert len(train) + len(test) == 8
