"""How images become squares: once out of the central square, or as ADM prepares ImageNet."""

import re

import numpy as np
import pytest
import torch
from noisy import KINDS, SIDE
from PIL import Image

from dmvae import cli
from dmvae import config as configs
from dmvae.commands.check import check
from dmvae.commands.measurements import measure
from dmvae.commands.score_files import write_scores
from dmvae.datasets.image_file import read_image
from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.webdataset import WebDataset
from dmvae.evaluation.images import npz_images
from dmvae.evaluation.manifest import require_comparable
from dmvae.recipe import load
from dmvae.runtime.shipped import recipe_file


def adm(path, size, mode="RGB"):
    """uint8 [c, size, size] of a file: the rule, written out."""
    image = Image.open(path).convert(mode)
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1)


def noise(path, width, height, mode="RGB", **options):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(np.random.default_rng(width).integers(0, 256, shape, np.uint8)).save(path, **options)
    return path


SHAPES = [(333, 500), (256, 700), (100, 90), (1025, 513), (513, 1025), (128, 128), (64, 64), (127, 65), (63, 4001)]


@pytest.mark.parametrize("size", [64, 47])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_adm_s_rule(tmp_path, shape, size):
    for name in ("a.png", "a.jpg", "grey.png"):
        path = noise(tmp_path / name, *shape, "L" if name == "grey.png" else "RGB")
        assert torch.equal(read_image(path, size, 3, "adm"), adm(path, size)), name
        assert torch.equal(read_image(path, size, 1, "adm"), adm(path, size, "L")), name


def test_it_differs_from_one_resize_of_the_central_square(tmp_path):
    path = noise(tmp_path / "a.png", 333, 500)
    assert not torch.equal(read_image(path, 64, 3, "adm"), read_image(path, 64, 3))
    assert torch.equal(read_image(path, 64, 3, "square"), read_image(path, 64, 3))


def test_the_ends_of_a_strip_are_cut_off_before_it_grows(tmp_path):
    strip, middle = tmp_path / "strip.png", tmp_path / "middle.png"
    Image.open(noise(strip, 3000, 2)).crop((1436, 0, 1564, 2)).save(middle)
    assert torch.equal(read_image(strip, 64, 3, "adm"), adm(middle, 64))
    assert read_image(noise(strip, 60_000, 1), 1024, 3, "adm").shape == (3, 1024, 1024)


def originals(root, kind, n=8):
    """The files that `noisy` packs, by number."""
    write = KINDS["image_folder"][1]
    return [write(root / kind, n) / "test/cat" / f"{i:02d}.png" for i in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_files_is_read_so_and_its_cache_is_not_mixed_up(kind, tmp_path, private_hub):
    config, write, fields = KINDS[kind]
    paths = originals(tmp_path, "originals")
    fields = fields | {"root": str(write(tmp_path / "data"))}
    prints = set()
    for size, resize in ((8, None), (8, 12), (12, None)):
        side = resize or size
        low, high = (side - size) // 2, (side + size) // 2
        for resampling in ("square", "adm", "square"):
            data = config(size=size, resize=resize, resampling=resampling, **fields).build("test")
            wanted = [adm(path, side) if resampling == "adm" else read_image(path, side, 3) for path in paths]
            assert all(torch.equal(data[i][0], image[:, low:high, low:high]) for i, image in enumerate(wanted)), (
                resampling
            )
            if resize is not None:
                assert all(torch.equal(data.larger[i][0], image) for i, image in enumerate(wanted)), "what is cropped"
            prints.add((size, resize, resampling, data.fingerprint))
    assert len({fingerprint for *_, fingerprint in prints}) == len(prints) == 6


@pytest.mark.parametrize("config", [ImageFolder, WebDataset])
def test_only_another_than_the_default_counts_in_fingerprints(config, tmp_path):
    ours, adms = (config(root=str(tmp_path), size=SIDE, resampling=name) for name in ("square", "adm"))
    assert configs.identity(ours) == configs.identity(config(root=str(tmp_path), size=SIDE))
    assert "resampling" not in configs.identity(ours)
    assert configs.identity(adms) == configs.identity(ours) | {"resampling": "adm"}
    assert ours.prepared == SIDE, "as it was before there was a choice"
    with pytest.raises(ValueError, match=re.escape("data.resampling: 'bicubic' is not one of 'square', 'adm'")):
        configs.read(config, {"root": ".", "resampling": "bicubic"}, "data")


def test_imagenet_is_prepared_so():
    for name in ("imagenet256", "studies/imagenet256_baselines"):
        assert {recipe.data.resampling for recipe in load(recipe_file(name)).values()} == {"adm"}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        noise(folder / f"{i}.png", 70 + i, 90)
    return folder


def test_measure_prepares_folders_so_and_its_manifest_says_so(photos, tmp_path):
    found = {}
    for name in ("square", "adm"):
        options = {"size": 32, "features": ["effnet-lite0@32"], "parts": ["frechet"], "resampling": name}
        found[name] = measure("folder", [str(photos), str(photos)], **options)
        write_scores(found[name], tmp_path / f"{name}.json")
    manifest = found["adm"]["manifest"]
    for of in ("reference", "measured"):
        assert manifest[of]["resize"] == "as ADM: halved by boxes, bicubic, central crop (Pillow)"
    assert found["square"]["manifest"]["measured"]["resize"] == "central square, antialiased bicubic (Pillow)"
    with pytest.raises(ValueError, match=r"reference\.resize: 'as ADM"):
        require_comparable(manifest, found["square"]["manifest"])
    apart, changed = check(tmp_path / "adm.json")
    assert (apart, changed) == ({}, [])


def test_images_are_exported_so(photos, tmp_path, capsys):
    given = ["export", "adm-samples", str(photos), "--out", str(tmp_path / "a.npz"), "--resampling", "adm"]
    with pytest.raises(SystemExit):
        cli.main(given)
    assert "--resampling adm goes with --size N" in capsys.readouterr().err
    cli.main([*given, "--size", "32"])
    wanted = torch.stack([adm(photos / f"{i}.png", 32) for i in range(4)])
    assert torch.equal(npz_images(tmp_path / "a.npz").images, wanted)
    given[1] = "lightningdit-latents"
    with pytest.raises(SystemExit):
        cli.main(given)
    assert "--resampling is of adm-samples; leave it out" in capsys.readouterr().err
