"""The beginning of a data set stands for the whole, though its files lie class by class."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.mixed import fair_order, mixed, spaced, stratified
from dmvae.evaluation.images import DatasetImages


@pytest.fixture
def folder(tmp_path):
    """Ten classes of thirty images, all of one grey that tells class and number."""
    for label in range(10):
        for number in range(30):
            path = tmp_path / "images" / "test" / f"class {label}" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * label + number // 2, dtype=np.uint8)).save(path)
    shutil.copytree(tmp_path / "images" / "test", tmp_path / "images" / "train")
    return tmp_path / "images"


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_part_of_a_folder_holds_every_class(folder, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = ImageFolder(root=str(folder), size=8, cache=cache).build("test")
    assert data.labels[:60].unique().tolist() == [0, 1], "files come class by class"
    part = DatasetImages(data, 60)
    assert part.labels.unique().tolist() == list(range(10))
    assert part.labels.bincount().min() >= 2
    images = torch.cat(list(part.batches(range(60), 7)))
    assert torch.equal(images[:, 0, 0, 0].long() // 20, part.labels), "images keep their labels"
    again = torch.cat(list(part.batches(range(30, 50), 20)))
    assert torch.equal(again, images[30:50])
    whole = DatasetImages(data)
    assert whole.facts["fingerprint"] == data.fingerprint != part.facts["fingerprint"]
    assert torch.equal(torch.cat(list(whole.batches(range(300), 100)))[:60], images)
    assert whole.labels.bincount().tolist() == [30] * 10


def test_items_are_named_as_they_lie(folder):
    data = ImageFolder(root=str(folder), size=8, cache="none").build("test")
    shuffled = mixed(data)
    for i in (0, 7, 299):
        assert f"class {int(shuffled.labels[i])}/" in str(shuffled.name(i)).replace("\\", "/")


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (torch.arange(100) % 10, True),
        (torch.arange(100) // 10, False),
        (torch.randint(10, (500,), generator=torch.Generator().manual_seed(0)), True),
        (torch.cat([torch.arange(100) // 10, torch.arange(100) // 10]), False),
        ((torch.rand(500, generator=torch.Generator().manual_seed(0)) < 0.02).long(), True),
        (torch.cat([torch.randint(5, (99,)), 5 + torch.randint(5, (99,))]), False),
        (torch.randint(100, (5000,), generator=torch.Generator().manual_seed(0)), True),
        (torch.zeros(50, dtype=torch.int64), False),
        (torch.zeros(1, dtype=torch.int64), True),
        (torch.zeros(0, dtype=torch.int64), True),
    ],
)
def test_an_order_that_is_fair_already_stays(labels, kept):
    order = fair_order(labels)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    assert torch.equal(order, torch.arange(len(labels))) == kept
    assert torch.equal(order, fair_order(labels))


def test_some_items_are_evenly_spaced_unless_that_would_be_a_choice_of_classes():
    by_turns, in_rows = torch.arange(4000) % 10, torch.arange(4000) // 400
    at_random = torch.randint(10, (4000,), generator=torch.Generator().manual_seed(0))
    assert by_turns[spaced(by_turns, 2000)].bincount().tolist() == [200] * 10
    for labels in (in_rows, at_random):
        assert torch.equal(spaced(labels, 2000), torch.linspace(0, 3999, 2000).long())
    assert torch.equal(spaced(by_turns, 9000), torch.arange(4000)), "all, where there are no more"
    assert len(spaced(by_turns, 2000)) == len(stratified(by_turns, 2000)) == 2000
    assert len(spaced(by_turns[:0], 5)) == 0
    assert int(spaced(torch.zeros(1, dtype=torch.int64).expand(2**24 + 4), 2)[-1]) == 2**24 + 3
