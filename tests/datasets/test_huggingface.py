"""Parquet files as a data set: which columns and splits are found, what is kept of them, and images that are broken."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from benchmarks import half_of_the_classes

from dmvae.datasets import columns
from dmvae.datasets.encoded import LazyImages
from dmvae.datasets.huggingface import HuggingFace
from packed import IMAGE, features, images, noise, opener, parquet, png, rows, values

open_split, fails = opener(HuggingFace)
pytestmark = pytest.mark.usefixtures("private_hub")


def test_decoded_images_are_kept_in_one_file_that_is_mapped(root, private_cache, monkeypatch):
    first = open_split(root)
    (folder,) = (private_cache / "decoded").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["broken.json", "images.npy", "source.json"]
    stored = np.load(folder / "images.npy", mmap_mode="r")
    assert (stored.shape, stored.dtype) == ((15, 3, 8, 8), np.uint8)
    monkeypatch.setattr("dmvae.datasets.encoded.decode", None)
    again = open_split(root)
    assert torch.equal(again.__getitems__(range(15))[0], first.__getitems__(range(15))[0])
    assert again.fingerprint == first.fingerprint


def test_a_kill_while_decoding_leaves_nothing_that_looks_finished(root, private_cache, monkeypatch):
    from dmvae.datasets import encoded

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encoded, "decode", killed)
        with pytest.raises(KeyboardInterrupt):
            open_split(root)
    assert list((private_cache / "decoded").iterdir()) == []
    assert values(open_split(root)) == list(range(15))


def test_a_full_disk_means_decoding_as_images_are_read(root, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.warns(UserWarning, match=r"cannot be kept in .*decoded \(.* do not fit.*XDG_CACHE_HOME"):
        assert isinstance(open_split(root), LazyImages)


def test_columns_are_found_by_type(tmp_path):
    text = pa.array(["owl", "cat", "owl"])
    parquet(
        tmp_path / "a" / "train.parquet",
        {"n": pa.array([7, 8, 9]), "img": pa.array([png(v) for v in range(3)]), "label": text},
    )
    data = open_split(tmp_path / "a")
    assert (data.classes, data.labels.tolist(), values(data)) == (("cat", "owl"), [1, 0, 1], [0, 1, 2])
    assert open_split(tmp_path / "a", label_column="n", classes=tuple("0123456789")).labels.tolist() == [7, 8, 9]
    assert open_split(tmp_path / "a", label_column="none").classes == ("all",)
    data = open_split(tmp_path / "a", classes=("owl", "dog", "cat"))
    assert (data.classes, data.labels.tolist()) == (("owl", "dog", "cat"), [0, 2, 0])
    fails(tmp_path / "a", r"row 1, column label: 'cat' is none of the 2 classes", classes=("owl", "dog"))
    rows(tmp_path / "b" / "train.parquet", [0, 1, 5])
    assert open_split(tmp_path / "b").classes == ("0", "1", "2"), "numbers without names"
    sound = pa.array([{"bytes": b"RIFF", "path": None}] * 3, IMAGE)
    kinds = {
        "sound": {"_type": "Audio"},
        "photo": {"_type": "Image"},
        "kind": {"_type": "ClassLabel", "names": ["a", "b"]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": kinds}})}
    parquet(
        tmp_path / "c" / "train.parquet",
        {"sound": sound, "photo": images(range(3)), "kind": pa.array([0, 1, 1])},
        metadata,
    )
    data = open_split(tmp_path / "c")
    assert (data.classes, values(data)) == (("a", "b"), [0, 1, 2]), "sounds are never read"


def test_every_second_class_of_a_set_is_a_set(root, tmp_path, monkeypatch, capsys):
    """As the published study's Tiny ImageNet was made of the whole one."""
    monkeypatch.setattr("sys.argv", ["half", str(tmp_path / "half"), "--root", str(root)])
    half_of_the_classes.main()
    assert "train.parquet: 10 images of 2 classes" in capsys.readouterr().out
    train, test = (open_split(tmp_path / "half", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "owl")
    assert values(train) == [v for v in range(15) if v % 3 != 1]
    assert train.labels.tolist() == [(v % 3) // 2 for v in values(train)]
    assert values(test) == [101, 102]
    monkeypatch.setattr("sys.argv", ["half", str(tmp_path / "other"), "--root", str(root), "--label", "image"])
    with pytest.raises(SystemExit):
        half_of_the_classes.main()
    assert "--label: image is no column of classes; columns are " in capsys.readouterr().err


def test_splits(root):
    assert values(open_split(root, train_split="train[:20%]")) == [0, 1, 2]
    both = {"train_split": "train[:80%]", "test_split": "train[80%:]+validation"}
    assert values(open_split(root, "test", **both)) == [12, 13, 14, 100, 101, 102, 103]
    message = r"3 rows of the test split train\[80%:\]\+validation are of the train split train too; cut both"
    fails(root, message, "test", test_split=both["test_split"])
    fails(root, r"1 row of the test split", "test", train_split="train[:14]", test_split="train[13:]")
    fails(root, r"has no split 'tset', only train, validation: set data\.test_split", "test", test_split="tset")
    fails(root, r"split 'train\[x\]' cannot be read", train_split="train[x]")
    fails(root, r"split train\[:0\] has no row|cannot be read", train_split="train[:0]")
    one = root / "train-00000-of-00002.parquet"
    assert values(open_split(one)) == list(range(6))
    fails(
        one, r"has no split called test, .* or valid, only train: name one in data\.test_split, or cut one off", "test"
    )


def test_what_a_table_holds_is_hashed_once(root, monkeypatch):
    passes = []
    monkeypatch.setattr(columns.Columns, "all", lambda self, all=columns.Columns.all: passes.append(1) or all(self))
    first = open_split(root).fingerprint
    assert (open_split(root).fingerprint, len(passes)) == (first, 1)
    assert open_split(root, limit=3).fingerprint != first
    assert len(passes) == 2
    parquet(root / "train-00000-of-00002.parquet", {"image": images(range(20, 26)), "label": pa.array([0] * 6)})
    assert open_split(root).fingerprint != first


def test_the_test_split_is_labelled_as_the_train_split(tmp_path):
    parquet(tmp_path / "train.parquet", {"image": images(range(3)), "label": pa.array(["a", "b", "c"])})
    parquet(tmp_path / "test.parquet", {"image": images([7]), "label": pa.array(["c"])})
    test = open_split(tmp_path, "test")
    assert (test.classes, test.labels.tolist()) == (("a", "b", "c"), [2])
    parquet(tmp_path / "test.parquet", {"image": images([7]), "label": pa.array(["d"])})
    fails(tmp_path, r"test\.parquet, row 0, column label: 'd' is none of the 3 classes", "test")


def test_large_images_count_by_their_ends(tmp_path):
    base, seen = noise(80), set()
    assert len(base) > 9000
    for number, place in enumerate((0, 4095, len(base) - 4096, len(base) - 1)):
        data = bytearray(base)
        data[place] ^= 1
        folder = tmp_path / str(number)
        parquet(folder / "train.parquet", {"image": images([bytes(data)]), "label": pa.array([0])})
        seen.add(open_split(folder, cache_gib=0.0).fingerprint)
    assert len(seen) == 4


def broken(tmp_path, cell):
    cells = [0, 1, 2, cell, 4, 1]
    parquet(tmp_path / "train-0.parquet", {"image": images(cells[:2]), "label": pa.array([0, 1])}, features())
    parquet(tmp_path / "train-1.parquet", {"image": images(cells[2:]), "label": pa.array([2, 0, 1, 0])}, features())
    return tmp_path


@pytest.mark.parametrize(
    ("cell", "why"),
    [(None, "no image in this row"), (b"", ""), (noise()[:900], ""), (b"text", r"cannot identify image file(?! <)")],
)
def test_broken_images(tmp_path, cell, why):
    broken(tmp_path, cell)
    place = rf"train-1\.parquet, row 1, column image: .*{why}"
    fails(tmp_path, rf"1 unreadable image: .*{place}.*on_broken: skip")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=rf"skipped 1 unreadable image of 6: .*{place}"):
            data = open_split(tmp_path, on_broken="skip")
        assert values(data) == [0, 1, 2, 4, 1]
        assert data.labels.tolist() == [0, 1, 2, 1, 0]
    lazy = open_split(tmp_path, cache_gib=0.0)
    with pytest.raises(ValueError, match=rf"unreadable image: .*{place}"):
        lazy[3]
    lazy = open_split(tmp_path, cache_gib=0.0, on_broken="skip")
    with pytest.warns(UserWarning, match=rf"another of its class .*{place}"):
        assert (int(lazy[3][0].float().mean()), lazy[3][1]) == (1, 0)


def test_a_row_that_names_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cells = pa.array([{"bytes": png(0), "path": None}, {"bytes": None, "path": str(tmp_path / "pipe")}], IMAGE)
    parquet(tmp_path / "train-0.parquet", {"image": cells, "label": pa.array([0, 0])}, features(["cat"]))
    with pytest.warns(UserWarning, match=r"which cannot be read: .*pipe is no file"):
        assert len(open_split(tmp_path, on_broken="skip")) == 1
