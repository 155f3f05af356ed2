"""Parquet files, and columns and splits of theirs, that cannot be used: each is told with its place and the fix."""

import errno
import json
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmvae import pipeline
from dmvae.datasets.huggingface import HuggingFace, Place
from dmvae.runtime import distributed
from packed import features, images, opener, parquet, png, rows, values

open_split, fails = opener(HuggingFace)
pytestmark = pytest.mark.usefixtures("private_hub")


def test_columns_that_do_not_fit(tmp_path):
    def table(columns, metadata=None):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        parquet(folder / "train.parquet", columns, metadata)
        return folder

    pixels, numbers = images([1, 2]), pa.array([0, 1])
    file = r"/train\.parquet"
    fails(
        table({"x": numbers, "label": numbers}),
        rf"{file}: no column holds encoded images; there are x \(int64\), label",
    )
    fails(
        table({"image": pixels, "x": numbers}),
        rf"{file}: no column holds labels; .*image.*, x \(int64\).*label_column.*none",
    )
    fails(table({"image": pixels, "b": pixels, "label": numbers}), "several columns hold images, image, b: name one in")
    nested = pa.array([[[1, 2], [3, 4]]] * 2)
    fails(table({"image": nested, "label": numbers}), r"no column holds encoded images; there are image \(List\)")
    fails(
        table({"image": nested, "label": numbers}), rf"{file}, column image: holds List, .*nested", image_column="image"
    )
    fails(
        table({"image": pixels, "label": pa.array([[0], [1, 2]])}),
        rf"{file}, column label: holds List, not one .*nested",
    )
    fails(
        table({"image": pixels, "label": pa.array([0.5, 1])}),
        rf"{file}, column label: holds float64, not one whole number",
    )
    fails(table({"image": pixels, "label": pa.array([0, None])}), rf"{file}, row 1, column label: no label")
    fails(table({"image": pixels, "label": pa.array(["a", None])}), rf"{file}, row 1, column label: no label")
    fails(table({"image": pixels, "label": pa.array([0, 10**9])}), r"column label: labels run from 0 to 1000000000")
    good = table({"image": pixels, "label": numbers})
    fails(good, r"has no column 'lable', which data\.label_column names; did you mean 'label'", label_column="lable")
    fails(good, r"has no column 'img', which data\.image_column", image_column="img")
    named = table({"image": pixels, "label": numbers}, features(("dog", "cat")))
    other = "its classes are dog, cat, in this order, and data.classes names the same in another"
    fails(named, other, classes=("cat", "dog"))
    assert open_split(named, classes=("hound", "kitten")).classes == ("hound", "kitten")
    fails(good, r"row 1, column label: label 1 is not in 0 to 0, the classes of data\.classes", classes=("a",))
    array = {
        "image": {"_type": "Array3D", "shape": [2, 2, 3], "dtype": "uint8"},
        "label": {"_type": "Value", "dtype": "int64"},
    }
    cells = pa.array([[[[1, 2, 3]] * 2] * 2] * 2, pa.list_(pa.list_(pa.list_(pa.uint8()))))
    metadata = {"huggingface": json.dumps({"info": {"features": array}})}
    fails(
        table({"image": cells, "label": numbers}, metadata),
        r"no column holds encoded images; there are image \((Array3D|List)\)",
    )


def test_labels_that_the_names_do_not_fit(tmp_path):
    rows(tmp_path / "train.parquet", [0, 1, 2], features())
    parquet(tmp_path / "test.parquet", {"image": images([1, 2]), "label": pa.array([-1, -1])}, features())
    fails(
        tmp_path,
        r"test\.parquet, row 0, column label: label -1 .* \(2 such labels of 2\): -1 means .* no labels",
        "test",
    )
    rows(tmp_path / "b" / "train.parquet", [0, 1, 2], features(("cat", "dog")))
    fails(tmp_path / "b", r"row 2, column label: label 2 is not in 0 to 1, the classes of column label")
    parquet(tmp_path / "c" / "train.parquet", {"image": images([1, 2]), "label": pa.array([0, 2**63], pa.uint64())})
    fails(tmp_path / "c", rf"train\.parquet, row 1, column label: label {2**63} is no class")


def test_files_whose_classes_are_numbered_otherwise(tmp_path):
    """`datasets` gives all files the names of the first, and leaves their numbers as they are."""
    rows(tmp_path / "train-0.parquet", [0, 1, 2], features())
    rows(tmp_path / "train-1.parquet", [0, 1, 2], features())
    test = rows(tmp_path / "test.parquet", [0, 1, 2], features(("owl", "dog", "cat")))
    assert open_split(tmp_path).classes == ("cat", "dog", "owl"), "the test split is not read"
    place = r"column label: class 0 is owl, but cat in .*train-0\.parquet: .*align_labels_with_mapping"
    fails(tmp_path, rf"/test\.parquet, {place}", "test")
    fails(tmp_path, rf"/test\.parquet, {place}", train_split="train[:2]+test[1:]")
    assert open_split(tmp_path, "test", label_column="none").classes == ("all",)
    rows(test, [0, 1], features(("cat", "dog")))
    fails(tmp_path, r"/test\.parquet, column label: class 2 is missing, but owl in .*train-0", "test")
    rows(test, [0, 1, 2])
    assert open_split(tmp_path, "test").labels.tolist() == [0, 1, 2], "numbers without names contradict none"
    rows(tmp_path / "train-1.parquet", [0, 1, 2], features(("cat", "owl", "dog")))
    fails(tmp_path, r"/train-1\.parquet, column label: class 1 is owl, but dog in .*/train-0\.parquet")
    rows(tmp_path / "train-1.parquet", [0, 1, 2], {"huggingface": "{"})
    fails(tmp_path, r"/train-1\.parquet: what it says of its columns for `datasets` cannot be read")


def test_names_of_other_classes_than_the_columns(root):
    fails(
        root,
        r"train-00000-of-00002\.parquet \(first of 2 files of split train\), column label: has 3 classes, cat, dog, "
        r"owl, but data\.classes names 2, Katze, Hund: name every class",
        classes=("Katze", "Hund"),
    )
    fails(root, r"but data\.classes names 8, a, b, c, d, e, f and 2 more: ", "test", classes=tuple("abcdefgh"))
    test = open_split(root, "test", classes=("Katze", "Hund", "Eule"))
    assert (test.classes, test.labels.tolist()) == (("Katze", "Hund", "Eule"), [1, 2, 0, 1])


def test_what_a_split_lacks_names_its_first_file(root, tmp_path):
    place = r"animals/train-00000-of-00002\.parquet \(first of 2 files of split {}\): has no column 'x'"
    fails(root, place.format("train"), image_column="x")
    fails(root, place.format(r"train\[:9\]"), label_column="x", train_split="train[:9]")
    fails(root, r"val-00000-of-00001\.parquet: has no column 'x'", "test", image_column="x")
    parquet(tmp_path / "b" / "train-0.parquet", {"image": images([1])})
    parquet(tmp_path / "b" / "train-1.parquet", {"image": images([2])})
    fails(tmp_path / "b", r"/train-0\.parquet \(first of 2 files of split train\): no column holds labels")
    assert Place("me/it", "train", [], [])() == "me/it, split train", "where the files are not here"


def test_a_file_without_a_row_is_named(root):
    table = pq.read_table(next(root.glob("train*.parquet")))
    pq.write_table(table.slice(0, 0), root / "train-00009.parquet")
    fails(root, r"train-00009\.parquet: has no row, or none in its first group: delete it")
    with pq.ParquetWriter(root / "train-00009.parquet", table.schema) as file:
        file.write_table(table)
        file.write_table(table.slice(0, 0))
    assert len(open_split(root)) > len(table), "an empty group behind another is read"


def test_files_that_cannot_be_read(tmp_path, root):
    fails(tmp_path / "no" / "where" / "at all", "does not exist .*nor is it a hub id")
    fails(tmp_path / "x.parquet", "does not exist")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", r"data\.root: .*empty cannot be read .*give a folder of parquet files")
    damaged = root / "train-00001-of-00002.parquet"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-100])
    fails(root, r"train-00001-of-00002\.parquet: not a readable parquet file \(.*\); fetch it again")
    parquet(damaged, {"picture": images([1]), "label": pa.array([1])})
    fails(
        root,
        r"train-00001-of-00002\.parquet: has columns picture, label, but .*train-00000.*\.parquet has image, label",
    )
    rows(tmp_path / "none" / "train.parquet", [], features())
    fails(tmp_path / "none", r"none.*(has no row|cannot be read)")
    fails(root.parent / "none", "has no such subset as data.subset says", subset="other")


def test_a_folder_for_tables_that_cannot_be_written_is_not_the_data_s_fault(tmp_path, root, monkeypatch):
    """A node without a home folder, or one with a quota."""
    import datasets

    def full(*args, **kwargs):
        raise datasets.exceptions.DatasetGenerationError("generating") from OSError(errno.ENOSPC, "No space left")

    told = (
        r"data\.root: .*animals: the package datasets keeps a copy of its tables in .*, which cannot be written \(.*{}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(datasets.DatasetBuilder, "download_and_prepare", full)
        fails(root, told.format(r"No space left\); set HF_HOME to a folder with room"))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/datasets")
    fails(root, told.format("Not a directory"))


def test_a_node_without_the_tables_of_rank_0_says_where_they_should_lie(tmp_path, root, monkeypatch):
    import datasets

    opened = pickle.dumps({"train": open_split(root, cache_gib=0)})
    shutil.rmtree(datasets.config.HF_DATASETS_CACHE)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "broadcast", lambda _: pickle.loads(opened))
    with pytest.raises(ValueError, match=r"data\.root: rank 0 reads a file .*train\.arrow.*; set HF_HOME to a folder"):
        pipeline.run({}, tmp_path / "run")


def test_images_are_not_read_in_place_of_tables(tmp_path):
    rows(tmp_path / "train/0.parquet", range(6), features())
    for i in range(3):
        (tmp_path / f"train/{i}.png").write_bytes(png(i))
    fails(tmp_path, r"holds train/0\.parquet, but the package datasets reads files such as .*\.png there: move")
    assert values(open_split(tmp_path / "train/0.parquet")) == list(range(6))
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/0.parquet").rename(tmp_path / "train/.cache/0.parquet")
    assert len(open_split(tmp_path, label_column="none")) == 3


def test_a_hub_id_without_a_network(monkeypatch):
    fails(
        "somebody/pictures",
        r"somebody/pictures is no folder here .*could not be had from the hub: .*hf download .*data\.root",
    )


def test_the_package_is_an_extra(root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    fails(root, r"pip install 'dmvae\[huggingface\]'")
