import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from dmvae.datasets import fashion_mnist
from dmvae.datasets.fashion_mnist import FashionMNIST, read_idx

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder, *, zipped=True, images=IMAGES, labels=LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Neither the Debian package nor the network."""

    def no_network(*_, **__):
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "no-debian")
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", no_network)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_are_padded_with_zeros_to_32(tmp_path, zipped, split):
    data = FashionMNIST(root=write(tmp_path, zipped=zipped)).build(split)
    image, label = data[11]
    assert image.shape == (1, 32, 32)
    assert label == 1
    assert torch.equal(image[0, 2:30, 2:30], torch.from_numpy(IMAGES[11]))
    assert int(image.sum()) == int(IMAGES[11].sum())
    assert data.classes[9] == "ankle boot"


def test_sizes_channels_and_limit(tmp_path):
    root = write(tmp_path)
    assert torch.equal(FashionMNIST(root=root, size=28).build("train")[0][0][0], torch.from_numpy(IMAGES[0]))
    assert FashionMNIST(root=root, size=16, channels=3).build("train")[0][0].shape == (3, 16, 16)
    assert FashionMNIST(root=root, size=64).build("train")[0][0].shape == (1, 64, 64)
    assert len(FashionMNIST(root=root, limit=5).build("train")) == 5


def test_fingerprint_changes_with_the_content(tmp_path):
    first = FashionMNIST(root=write(tmp_path)).build("train").fingerprint
    changed = IMAGES.copy()
    changed[3, 3, 3] ^= 1
    assert FashionMNIST(root=write(tmp_path, images=changed)).build("train").fingerprint != first


def test_data_folder_of_the_environment_is_found(tmp_path, monkeypatch):
    write(tmp_path / "fashion-mnist")
    monkeypatch.setenv("DMVAE_DATA", str(tmp_path))
    assert len(FashionMNIST().build("test")) == 12


def test_download_lands_in_the_cache_once(monkeypatch, private_cache):
    calls = []

    def fetch(folder, download):
        calls.append(folder)
        write(Path(folder) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
    for _ in range(2):
        assert len(FashionMNIST().build("train")) == 12
    assert len(calls) == 1
    assert [p.name for p in private_cache.iterdir()] == ["FashionMNIST"]


def test_nowhere_to_be_found_names_both_ways():
    with pytest.raises(ValueError, match=r"(?s)no network in tests.*apt-get install dataset-fashion-mnist.*root"):
        FashionMNIST().build("train")


def test_missing_root_and_root_without_files(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root: .*nowhere does not exist"):
        FashionMNIST(root=str(tmp_path / "nowhere")).build("train")
    with pytest.raises(ValueError, match="has no t10k-images"):
        FashionMNIST(root=str(tmp_path)).build("test")
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="neither train-labels-idx1-ubyte nor"):
        FashionMNIST(root=str(tmp_path)).build("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(IMAGES)[:-5], "truncated"),
        (idx(IMAGES) + b"x", "overlong"),
        (idx(IMAGES)[:9], "truncated"),
        (b"", "starts with nothing"),
        (b"<html>404</html>", "starts with 3c68746d"),
        (b"\0\0\x0d\x01\0\0\0\0", "not an IDX"),
        (b"\0\0\x08\0", "truncated"),
    ],
)
def test_damaged_plain_files(tmp_path, content, message):
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(tmp_path, "images")
    assert str(tmp_path / "images") in str(caught.value)


@pytest.mark.parametrize("content", [gzip.compress(idx(IMAGES))[:-300], b"not gzip", b"\x1f\x8b\x08\0" + b"\xff" * 90])
def test_damaged_gzip_files(tmp_path, content):
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.gz: damaged gzip"):
        read_idx(tmp_path, "images")


def test_files_that_do_not_belong_together(tmp_path):
    with pytest.raises(ValueError, match="do not belong together"):
        FashionMNIST(root=write(tmp_path, labels=LABELS[:4])).build("train")
    with pytest.raises(ValueError, match="label 21"):
        FashionMNIST(root=write(tmp_path, labels=LABELS + 12)).build("train")
