import pytest
import torch
from PIL import Image

from dmvae import config as configs
from dmvae.datasets import DatasetConfig
from dmvae.datasets.memory import MemoryDataset, resize, to_channels
from dmvae.registry import names
from dmvae.runtime.hashing import digest


def noise(n=6, channels=3, side=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


def small(**extra):
    return MemoryDataset(noise(), torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"), **extra)


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("indices", [[3, 0, 5], torch.tensor([3, 0, -1])])
def test_many_at_once_equal_one_by_one(size, indices):
    data = small(size=size)
    images, labels = data.__getitems__(indices)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.shape == (3, 3, size or 8, size or 8)
    for k, i in enumerate(indices):
        image, label = data[int(i)]
        assert isinstance(label, int)
        assert torch.equal(images[k], image)
        assert labels[k] == label


def test_an_index_past_the_end_is_an_index_error():
    with pytest.raises(IndexError):
        small()[6]


def test_fingerprint_follows_images_labels_and_classes():
    base = small().fingerprint
    assert len(base) == 16
    assert small().fingerprint == base
    images = noise()
    images[0, 0, 0, 0] ^= 1
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert MemoryDataset(images, labels, ("a", "b", "c")).fingerprint != base
    assert MemoryDataset(noise(), labels.flip(0), ("a", "b", "c")).fingerprint != base
    assert MemoryDataset(noise(), labels, ("a", "b", "d")).fingerprint != base
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise().float(), torch.zeros(6, dtype=torch.int64), "float32"),
        (noise()[0], torch.zeros(3, dtype=torch.int64), r"\[3, 8, 8\]"),
        (noise(), torch.zeros(5, dtype=torch.int64), r"\[5\]"),
        (noise(), torch.zeros(6), "float32"),
        (noise(), torch.full((6,), 3), "3 classes"),
    ],
)
def test_arrays_that_disagree_are_named(images, labels, message):
    with pytest.raises(ValueError, match=message):
        MemoryDataset(images, labels, ("a", "b", "c"))


def test_grey_is_pillows_and_colour_repeats():
    images = noise(2)
    pillow = Image.fromarray(images[1].permute(1, 2, 0).numpy()).convert("L")
    assert list(to_channels(images, 1)[1].flatten()) == list(pillow.tobytes())
    grey = noise(2, 1)
    assert torch.equal(to_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    assert to_channels(images, 3) is images


def test_resize_takes_the_central_square():
    images = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    images[..., 2:6] = 200
    assert (resize(images, 4) == 200).all()
    assert (resize(images, 9) == 200).all()
    assert (resize(images, 2) == 200).all()
    assert (resize(images.mT, 4) == 200).all()
    corner = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    corner[0, 0, :4, 4:] = 200
    assert (resize(corner, 4)[0, 0] > 100).tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize(
    ("field", "value"), [("size", 0), ("channels", 2), ("channels", 4), ("limit", 0), ("limit", -3)]
)
def test_common_fields_are_checked_and_named(field, value):
    with pytest.raises(ValueError, match=rf"^data.*{field}.* {value}"):
        configs.read(DatasetConfig, {"type": "shapes", field: value}, "data")


def test_every_data_set_of_the_folder_is_registered():
    assert {"cifar10", "fashion_mnist", "image_folder", "shapes"} <= set(names(DatasetConfig))
