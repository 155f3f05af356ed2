"""What holds for images in parquet files and in .tar shards alike."""

import io
import pickle
import shutil
import warnings

import pytest
import torch
from PIL import Image

from dmvae.datasets import decoded
from dmvae.datasets.encoded import LazyImages
from dmvae.datasets.huggingface import HuggingFace
from dmvae.datasets.loading import loader
from dmvae.datasets.memory import MemoryDataset
from dmvae.datasets.webdataset import WebDataset
from packed import ANIMALS, animals, features, opener, rows, samples, shards_of, tar, values

KINDS = {
    "huggingface": (
        HuggingFace,
        animals,
        lambda folder, values: rows(folder / "train-00000-of-00002.parquet", values, features()),
        ANIMALS,
    ),
    "webdataset": (
        WebDataset,
        shards_of,
        lambda folder, values: tar(folder / "x-train-000.tar", samples(values)),
        ("0", "1", "2"),
    ),
}
"""Name -> (config, what writes the folder, what writes its first file, class names)."""


@pytest.fixture(params=KINDS)
def packed(request, tmp_path, private_hub):
    """(folder, a function that opens a split of a folder, what writes its first file, class names)"""
    config, write, rewrite, classes = KINDS[request.param]
    return write(tmp_path / "data"), opener(config)[0], rewrite, classes


@pytest.mark.parametrize("cache_gib", [16.0, 0.0])
def test_any_image_is_read_at_once(packed, cache_gib):
    root, open_split, _, classes = packed
    data = open_split(root, cache_gib=cache_gib)
    assert isinstance(data, MemoryDataset if cache_gib else LazyImages)
    assert values(data) == list(range(15))
    assert data.classes == classes
    assert data.labels.tolist() == [v % 3 for v in range(15)]
    assert data[14][1] == data[-1][1] == 2
    assert data[3][0].shape == (3, 8, 8)
    test = open_split(root, "test", cache_gib=cache_gib, channels=1)
    assert values(test) == [100, 101, 102, 103]
    assert test.labels.tolist() == [1, 2, 0, 1]
    assert test.classes == classes


def test_workers_read_the_files(packed):
    root, open_split, _, _ = packed
    data = open_split(root, cache_gib=0.0)
    for there in (data, pickle.loads(pickle.dumps(data))):
        ((pixels, labels),) = loader(there, [[14, 0, 7]], 1, torch.device("cpu"))
        assert pixels.float().mean((1, 2, 3)).tolist() == [14, 0, 7]
        assert labels.tolist() == [2, 0, 1]


def test_limit_keeps_a_fixed_choice(packed):
    root, open_split, _, _ = packed
    data = open_split(root, limit=7)
    assert len(data) == 7
    assert values(data) == values(open_split(root, limit=7, cache_gib=0.0))
    assert data.labels.tolist() == [v % 3 for v in values(data)]
    assert values(data) == sorted(values(data)) != list(range(7))


def test_the_fingerprint_follows_content_and_config_and_not_the_place(packed, tmp_path):
    root, open_split, rewrite, _ = packed
    base = open_split(root).fingerprint
    shutil.copytree(root, tmp_path / "copy")
    assert open_split(tmp_path / "copy").fingerprint == base == open_split(root, cache_gib=0.0).fingerprint
    over = ({"size": 9}, {"channels": 1}, {"limit": 5}, {"limit": 6}, {"classes": ("x", "y", "z")})
    others = [open_split(root, **fields).fingerprint for fields in over]
    others.append(open_split(root, "test").fingerprint)
    rewrite(tmp_path / "copy", [0, 1, 2, 3, 4, 8])
    others.append(open_split(tmp_path / "copy").fingerprint)
    assert values(open_split(tmp_path / "copy"))[:6] == [0, 1, 2, 3, 4, 8], "a rewritten file is read anew"
    assert len({base, *others}) == 8


@pytest.mark.parametrize("form", ["TGA", "BMP", "PPM"])
def test_an_image_without_compression_counts_whole(packed, tmp_path, form):
    """Sets that differ in the middle of their images share neither fingerprint nor decoded pixels."""
    root, open_split, rewrite, _ = packed
    for name, grey in (("one", 10), ("other", 200)):
        pixels = Image.new("RGB", (100, 100))
        pixels.paste((grey,) * 3, (0, 45, 100, 55))
        file = io.BytesIO()
        pixels.save(file, form)
        shutil.copytree(root, tmp_path / name)
        rewrite(tmp_path / name, [file.getvalue()])
    one, other = (open_split(tmp_path / name) for name in ("one", "other"))
    assert one.fingerprint != other.fingerprint
    assert not torch.equal(one[0][0], other[0][0])


def test_a_cache_that_cannot_be_written_stops_nothing(packed, tmp_path, monkeypatch):
    root, open_split, _, _ = packed
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"decoded images cannot be kept in .*decoded whenever they are read"):
        data = open_split(root)
    assert values(data) == list(range(15))


def test_a_disk_that_fills_while_images_are_decoded_stops_nothing(packed, monkeypatch):
    root, open_split, _, _ = packed

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded, "_header", full)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*No space left on device.*decoded whenever"):
        assert values(open_split(root)) == list(range(15))


@pytest.mark.parametrize("name", ["images.npy", "broken.json", "source.json", "gone"])
def test_a_damaged_cache_is_made_anew(packed, private_cache, name):
    root, open_split, _, _ = packed
    open_split(root)
    (folder,) = (private_cache / "decoded").iterdir()
    file = folder / name
    if name == "gone":
        (folder / "broken.json").unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    told = "source.json is damaged: .* nothing is known of" if name == "source.json" else "the images are decoded anew"
    with pytest.warns(UserWarning, match=told):
        assert values(open_split(root)) == list(range(15))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values(open_split(root)) == list(range(15))
