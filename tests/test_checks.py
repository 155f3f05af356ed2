"""What a data set of somebody's own gives is looked at before the first stage."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from dmvae import checks, generators, jobs
from dmvae.datasets import look_again, open_dataset
from dmvae.datasets.memory import MemoryDataset
from dmvae.datasets.shapes import Shapes
from dmvae.models.base import Model
from dmvae.recipe import load
from dmvae.references import ReferenceConfig
from dmvae.references.array import ArrayReference

IMAGES = torch.zeros(48, 3, 12, 12, dtype=torch.uint8)
LABELS = torch.arange(48) % 3


class Own:
    """A plugin's data set, right but for what a test makes wrong."""

    classes = ("a", "b", "c")

    def __init__(self, images=IMAGES, labels=LABELS):
        self.images, self.labels = images, labels

    def __len__(self):
        return 48

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


class Many(Own):
    def __getitems__(self, indices):
        return self.images[indices].float(), self.labels[indices]


class Listed(Own):
    def __getitems__(self, indices):
        """As torch's own loader takes them."""
        return [self[i] for i in indices]


class Alone(Own):
    def __getitem__(self, i):
        return self.images[i]


class Three(Own):
    def __getitem__(self, i):
        return self.images[i], int(self.labels[i]), f"{i}.png"


def late(labels):
    """A label of no class, where no item is looked at."""
    return torch.where(torch.arange(48) == 47 - 4, 7, labels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Own(), None),
        (MemoryDataset(IMAGES, LABELS, Own.classes), None),
        (Own(IMAGES.float() * 255), r"item 0 is torch.float32 \[3, 12, 12\]; give a uint8 image \[3, 12, 12\]"),
        (Own(IMAGES[..., :8]), r"item 0 is torch.uint8 \[3, 12, 8\]; give a uint8 image"),
        (Own(IMAGES.movedim(1, 3)), r"item 0 is torch.uint8 \[12, 12, 3\]; give a uint8 image"),
        (Own(IMAGES.numpy()), "item 0 is ndarray; give a uint8 image"),
        (Many(), r"item 0 is torch.float32 \[3, 12, 12\]; give a uint8 image"),
        (Listed(), r"__getitems__ returned list of 9 for 9 indices; give a pair, \(uint8 images \[9, C, H, W\]"),
        (Alone(), r"item 0 is torch.uint8 \[3, 12, 12\]; give a pair, \(uint8 image, label\)"),
        (Three(), r"item 0 is tuple of 3; give a pair, \(uint8 image, label\)"),
        (Own(labels=LABELS + 1), "item 11 has the label 3; there are 3 classes|has the label 3; there are 3"),
        (Own(labels=late(LABELS)), "labels run from 0 to 7; there are 3 classes"),
        (Own(labels=LABELS.float()), r"\.labels of the test split is torch.float32 \[48\]; give int64 \[48\]"),
        (Own(labels=LABELS[:40]), r"\.labels of the test split is torch.int64 \[40\]; give int64 \[48\]"),
        (Own(labels=LABELS.tolist()), r"\.labels of the test split is list of 48; give int64 \[48\]"),
    ],
)
def test_items_and_labels_are_looked_at(tmp_path, monkeypatch, data, message):
    recipe = load(tiny.write(tmp_path))["kl"]
    monkeypatch.setattr(checks, "open_dataset", lambda config, split: data)
    if message is None:
        return checks._try_data(recipe, "test")
    with pytest.raises(ValueError, match=message):
        checks._try_data(recipe, "test")


def test_splits_that_name_classes_differently_are_told(tmp_path, monkeypatch):
    recipe, test = load(tiny.write(tmp_path))["kl"], Own()
    test.classes = ("b", "a", "c")
    monkeypatch.setattr(checks, "open_dataset", lambda config, split: test if split == "test" else Own())
    checks._try_data(recipe, "train")
    with pytest.raises(ValueError, match="the test split has the classes b, a, c, not a, b, c"):
        checks._try_data(recipe, "test")


def test_every_split_is_looked_at_that_a_stage_reads(tmp_path, monkeypatch):
    recipe, seen = load(tiny.write(tmp_path))["kl"], []
    monkeypatch.setattr(checks, "_try_data", lambda recipe, split: seen.append(split))
    assert list(checks.problems(recipe, recipe.stages())) == []
    assert sorted(seen) == ["test", "train"]


def test_parts_that_have_passed_are_not_tried_again_unless_their_class_or_a_value_is_another(monkeypatch):
    """As a plugin's classes are, read again after they were edited: of the same name and text."""
    monkeypatch.setattr(checks, "_passed", set())
    tried = []

    def check(part):
        tried.append(part)
        if part == 3:
            raise ValueError("no 3")

    def edited():
        class Plugin:
            def __repr__(self):
                return "Plugin()"

        return Plugin

    first, second = edited(), edited()
    for by in ([1], [1], [2], [first()], [first()], [second()], [first], [first], [second]):
        assert list(checks._complaint("", check, 0, by=by)) == []
    assert len(tried) == 6
    for _ in range(2):
        assert list(checks._complaint("place", check, 3, by=[3])) == ["place: no 3"]


class Mine(Shapes):
    """As a plugin's, for it is not in the package."""

    def build(self, split):
        return None if self.limit == 1 else Own()


def test_a_plugin_s_data_set_that_lacks_something_is_told():
    for limit, what in ((None, "Own, which lacks fingerprint"), (1, "None")):
        with pytest.raises(ValueError, match=f"^data: 'shapes': build returned {what}; give an object with .*classes"):
            open_dataset(Mine(size=12, limit=limit), "train")


def test_a_data_set_that_does_not_keep_to_its_limit_is_told(monkeypatch):
    config = Shapes(size=12, count=48, limit=8)
    assert len(open_dataset(config, "train")) == 8
    monkeypatch.setattr(Shapes, "build", lambda self, split: Own())
    look_again()
    with pytest.raises(ValueError, match=r"data\.limit: 8, and 'shapes' gives 48 images of train"):
        open_dataset(config, "train")
    look_again()


def test_the_content_of_files_in_fields_counts_in_fingerprints(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Mine(ReferenceConfig):
        file: Path
        words: str = ""

    file = tmp_path / "points.npz"
    file.write_bytes(b"one")
    before = jobs._content(Mine(file=file))
    assert before == jobs._content(Mine(file=file, words="other"))
    file.write_bytes(b"two")
    assert jobs._content(Mine(file=file)) != before


def test_new_files_of_a_class_that_derives_from_one_with_a_fingerprint_count(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Mine(ArrayReference):
        more: Path

    points, more = tmp_path / "points.npy", tmp_path / "more"
    points.write_bytes(b"one")
    more.write_bytes(b"one")
    seen = [jobs._content(Mine(path=str(points), more=more))]
    assert seen[0]["content"][0].startswith(jobs._content(ArrayReference(path=str(points)))["content"][0])
    for file in (points, more):
        file.write_bytes(b"two")
        seen.append(jobs._content(Mine(path=str(points), more=more)))
        assert seen[-1] not in seen[:-1]


def test_a_folder_counts_by_the_names_and_contents_of_its_files(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Mine(ReferenceConfig):
        folder: Path

    folder = tmp_path / "weights"
    (folder / "deep").mkdir(parents=True)
    seen = []
    for change in (
        lambda: (folder / "deep" / "a").write_text("one"),
        lambda: (folder / "deep" / "a").write_text("other"),
        lambda: (folder / "deep" / "a").rename(folder / "a"),
    ):
        change()
        seen.append(jobs._content(Mine(folder=folder)))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    shutil.copytree(folder, tmp_path / "copy" / "weights")
    assert jobs._content(Mine(folder=tmp_path / "copy" / "weights")) == seen[-1]


def test_files_of_data_count_by_what_its_build_returns(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Mine(Shapes):
        folder: Path

    (tmp_path / "a").write_text("one")
    before = jobs._content(Mine(size=8, folder=tmp_path))
    (tmp_path / "a").write_text("other")
    assert jobs._content(Mine(size=8, folder=tmp_path)) == before


def test_two_generators_whose_networks_have_one_name_are_told(monkeypatch):
    """What one has saved would be loaded as the other."""

    def made(weight):
        class Net(Model):
            w = weight

        return SimpleNamespace(network=Net)

    kinds = {"a": made(1), "b": made(2)}
    monkeypatch.setattr(generators, "names", lambda _: [*kinds])
    monkeypatch.setattr(generators, "find", lambda _, name: kinds[name])
    with pytest.raises(ValueError, match="generator 'b': its network is called Net, as is one of test_checks; give"):
        generators.networks()
    kinds["b"] = kinds["a"]
    assert [*generators.networks()] == ["Net"]
