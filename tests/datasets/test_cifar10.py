import hashlib
import io
import pickle
import re
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dmvae.datasets.cifar10 import CIFAR10
from dmvae.runtime.shipped import recipe_file

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write(path, images=IMAGES, labels=None, column="image", cells=None):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(i), "path": None} for i in images] if cells is None else cells
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = list(range(len(cells))) if labels is None else labels
    pq.write_table(pa.table({column: cells, "label": labels}), path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_keeps_pixels_and_labels(tmp_path, column):
    write(tmp_path / "train.parquet", column=column)
    data = CIFAR10(root=str(tmp_path)).build("train")
    assert torch.equal(data.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2))
    assert data.labels.tolist() == list(range(10))
    assert data.classes[3] == "cat"


def test_the_head_of_the_recipe_of_fid_writes_them_as_files(tmp_path, monkeypatch):
    write(tmp_path / "DIR" / "train.parquet")
    (tmp_path / "TRAINING_IMAGES").mkdir()
    monkeypatch.chdir(tmp_path)
    head = recipe_file("cifar10_fid").read_text().replace("\n#", " ")
    exec(re.search(r'python -c "(.*?)"', head)[1], {})
    files = sorted((tmp_path / "TRAINING_IMAGES").iterdir())
    assert [file.name for file in files] == [f"{number:05}.png" for number in range(10)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), IMAGES)


def test_jpeg_decodes_as_pillow_does(tmp_path):
    jpeg = encoded(IMAGES[0], "JPEG")
    write(tmp_path / "test.parquet", cells=[{"bytes": jpeg, "path": "a.jpg"}])
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert np.array_equal(CIFAR10(root=str(tmp_path)).build("test")[0][0].permute(1, 2, 0), expected)


def test_shards_are_read_in_order_and_limited(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00002.parquet", IMAGES[:6])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", IMAGES[6:])
    data = CIFAR10(root=str(tmp_path)).build("train")
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    limited = CIFAR10(root=str(tmp_path), limit=7).build("train")
    assert torch.equal(limited.images, data.images[:7])
    assert limited.fingerprint != data.fingerprint


def test_size_and_channels(tmp_path, monkeypatch):
    write(tmp_path / "cifar10" / "train.parquet")
    monkeypatch.setenv("DMVAE_DATA", str(tmp_path))
    assert CIFAR10(size=16, channels=1).build("train")[0][0].shape == (1, 16, 16)
    large = CIFAR10(size=48).build("train")
    assert large.images.shape[-1] == 32  # enlarged as it is read
    assert large[0][0].shape == (3, 48, 48)


def test_fingerprint_changes_with_the_content(tmp_path):
    write(tmp_path / "train.parquet")
    first = CIFAR10(root=str(tmp_path)).build("train").fingerprint
    write(tmp_path / "train.parquet", IMAGES[::-1])
    assert CIFAR10(root=str(tmp_path)).build("train").fingerprint != first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cells": [{"bytes": b"junk", "path": "x"}]}, r"train\.parquet, row 0: not a readable JPEG or PNG"),
        ({"cells": [{"bytes": None, "path": "x.png"}]}, "row 0: holds no image bytes"),
        ({"labels": [*range(9), 10]}, "row 9: label 10"),
        ({"labels": [float(n) for n in range(10)]}, r"train\.parquet, row 0: label 0\.0 is no whole number"),
        ({"labels": [False] * 10}, r"train\.parquet, row 0: label False is no whole number"),
        (
            {"cells": [{"bytes": encoded(i), "path": None} for i in (IMAGES[0], IMAGES[0, ..., 0].astype(np.uint16))]},
            r"train\.parquet, row 1: an image of 16 bits",
        ),
        ({"column": "picture"}, "columns are .*picture"),
        ({"images": []}, "without a row|holds no"),
        (
            {"cells": [{"bytes": encoded(i), "path": None} for i in (IMAGES[0], IMAGES[1][:16])]},
            "images of 2 sizes",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, fields, message):
    write(tmp_path / "train.parquet", **fields)
    with pytest.raises(ValueError, match=message):
        CIFAR10(root=str(tmp_path)).build("train")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root: .* does not exist"):
        CIFAR10(root=str(tmp_path / "nowhere")).build("train")
    with pytest.raises(ValueError, match=r"has no test\*\.parquet"):
        CIFAR10(root=str(tmp_path)).build("test")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"train\.parquet: not a readable parquet"):
        CIFAR10(root=str(tmp_path)).build("train")
    with pytest.raises(ValueError, match=r"no network in tests.*data\.root"):
        CIFAR10().build("train")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"dmvae\[parquet\]"):
        CIFAR10(root=str(tmp_path)).build("train")


def test_python_batches(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def dump(name, value):
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    flat = IMAGES.transpose(0, 3, 1, 2).reshape(10, -1)
    entry = dump("data_batch_1", {"data": flat, "labels": list(range(10))})
    meta_name, meta_md5 = dump("batches.meta", {"label_names": list("abcdefghij")})
    original = torchvision.datasets.CIFAR10
    monkeypatch.setattr(original, "train_list", [entry])
    monkeypatch.setattr(original, "test_list", [])
    monkeypatch.setattr(original, "meta", {"filename": meta_name, "key": "label_names", "md5": meta_md5})
    for root in (tmp_path, folder):
        data = CIFAR10(root=str(root), limit=8).build("train")
        assert torch.equal(data.images, torch.from_numpy(IMAGES[:8]).permute(0, 3, 1, 2))
        assert data.labels.tolist() == list(range(8))
    (folder / "data_batch_1").write_bytes(b"cut")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        CIFAR10(root=str(tmp_path)).build("train")
