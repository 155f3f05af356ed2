"""What is kept of a folder, so that a second start opens no file, and when it is not trusted."""

import errno
import os
import shutil
import time
import warnings
from contextlib import ExitStack

import pytest
from folders import BOTH, break_some, classes, open_split, picture

from dmvae.datasets import image_folder, image_scan, skipped
from dmvae.datasets.image_folder import FolderDataset, ends


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are opened to look at them. Those that a test has just made count as settled."""
    monkeypatch.setattr(image_scan, "SETTLED", -1.0)
    names = []
    for look in ("ends", "check_header"):
        there = getattr(image_folder, look)
        monkeypatch.setattr(image_folder, look, lambda path, there=there: names.append(path.name) or there(path))
    return names


def found(root, monkeypatch=None, **fields):
    """(what a data set is, what is told of files that are left out); given `monkeypatch`, as if nothing were kept."""
    skipped._skipped.clear()
    with warnings.catch_warnings(record=True) as warned, ExitStack() as stack:
        warnings.simplefilter("always")
        if monkeypatch is not None:
            patch = stack.enter_context(monkeypatch.context())
            patch.setattr(image_folder, "_known", lambda *_: None)
            patch.setattr(image_folder, "write_json", lambda *_: None)
        data = open_split(root, **({"valid_fraction": 1e-9, "cache": "none"} | fields))
    told = [str(w.message) for w in warned], dict(skipped._skipped)
    names = [data.name(i) for i in range(len(data))] if isinstance(data, FolderDataset) else len(data)
    return (data.fingerprint, data.classes, data.labels.tolist(), names), told


@BOTH
def test_a_second_start_opens_no_file(tmp_path, opened, cache):
    classes(tmp_path)
    first = found(tmp_path, cache=cache)
    assert len(set(opened)) == 29
    opened.clear()
    assert found(tmp_path, cache=cache) == first
    assert opened == []


def test_splits_limits_and_ways_of_reading_have_indices_of_their_own(tmp_path, opened, private_cache):
    classes(tmp_path)
    ways = [("train", {}), ("test", {}), ("train", {"limit": 12}), ("train", {"cache": "none"})]
    first = [open_split(tmp_path, split, **fields).fingerprint for split, fields in ways]
    opened.clear()
    assert [open_split(tmp_path, split, **fields).fingerprint for split, fields in ways] == first
    assert opened == []
    assert len(list((private_cache / "folder_index").iterdir())) == 4


@pytest.mark.parametrize("change", ["rewrite", "add", "remove", "rename", "touch", "swap", "keep its time"])
def test_whatever_changes_the_files_are_looked_at_anew(tmp_path, opened, monkeypatch, private_cache, change):
    classes(tmp_path)
    one, two, three = (tmp_path / name for name in ("cat/0.bmp", "dog/0.bmp", "cat/x.bmp"))
    for i, path in enumerate((one, two)):
        picture(path, 10 + i)  # of the same size in bytes
        os.utime(path, (1e9, 1e9))
    before, _ = found(tmp_path)
    if change == "add":
        shutil.copy2(one, three)
    elif change == "remove":
        one.unlink()
    elif change == "rename":
        one.rename(three)
    elif change == "touch":
        os.utime(one)
    elif change == "swap":
        one.rename(three)
        two.rename(one)
        three.rename(two)
    else:
        picture(one, 20)
        if change == "keep its time":
            os.utime(one, (1e9, 1e9))
    opened.clear()
    after = found(tmp_path)
    assert len(set(opened)) >= 29
    assert after == found(tmp_path, monkeypatch)
    assert (after[0] == before) == (change == "touch")
    opened.clear()
    assert found(tmp_path) == after
    assert opened == []
    assert len(list((private_cache / "folder_index").iterdir())) == 1, "an old index gives way to the new one"


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"ends"', '"ands"'),
        lambda text: text.replace("0", "1", 1),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_index_is_made_anew(tmp_path, opened, private_cache, harm):
    classes(tmp_path)
    first = found(tmp_path)
    (kept,) = (private_cache / "folder_index").iterdir()
    kept.write_text(harm(kept.read_text()))
    told, (warned, _) = found(tmp_path)
    assert told == first[0]
    assert [f"the index of {tmp_path} is made anew" in text for text in warned] == [True]
    opened.clear()
    assert found(tmp_path) == first
    assert opened == []


@pytest.mark.parametrize("why", ["full", "not ours", "no folder"])
def test_an_index_that_cannot_be_kept_stops_nothing(tmp_path, opened, monkeypatch, why):
    classes(tmp_path / "images")
    first, _ = found(tmp_path / "images", monkeypatch)
    (tmp_path / "file").touch()
    if why == "no folder":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:

        def fails(*_):
            raise OSError(errno.ENOSPC if why == "full" else errno.EACCES, why)

        monkeypatch.setattr(image_folder, "write_json", fails)
        if why == "not ours":
            monkeypatch.setattr(image_folder, "read_json", fails)
    for _ in range(2):
        told, (warned, _) = found(tmp_path / "images")
        assert told == first
        assert ["indices of folders cannot be kept in" in text for text in warned] == [True]


def test_unreadable_files_are_told_of_each_time_and_read_when_they_can_be(tmp_path, opened, monkeypatch):
    break_some(classes(tmp_path))
    first, told = found(tmp_path)
    assert "skipped 2 unreadable images of 29" in told[0][0]
    opened.clear()
    assert found(tmp_path) == (first, told) == found(tmp_path, monkeypatch)
    assert set(opened[:4]) == {"1.png", "2.png"}

    def not_ours(path):
        return f"{path}: not ours" if path.name == "4.png" else ""

    classes(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "check_header", not_ours)
        patch.setattr(image_folder, "ends", lambda path: "" if path.name == "4.png" else ends(path))
        shut, told = found(tmp_path)
    assert "4.png: not ours" in told[0][0]
    open_again = found(tmp_path)  # with no other size or time, as when a network drive is there again
    assert open_again == found(tmp_path, monkeypatch)
    assert open_again[0] != shut
    opened.clear()
    assert found(tmp_path) == open_again
    assert opened == []


def test_files_that_have_changed_a_moment_ago_are_not_trusted(tmp_path, private_cache, monkeypatch):
    """They may change again within what their file system takes for one moment."""
    classes(tmp_path)
    found(tmp_path)
    assert not (private_cache / "folder_index").exists()
    monkeypatch.setattr(image_scan, "SETTLED", 0.5)
    time.sleep(0.6)
    found(tmp_path)
    assert (private_cache / "folder_index").exists()
