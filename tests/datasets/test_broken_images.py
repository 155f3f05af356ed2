"""Unreadable files of a folder: left out, told of, or an error."""

import warnings

import pytest
from folders import BOTH, break_some, classes, cut, open_split

from packed import values


@pytest.mark.filterwarnings("ignore:skipped")
def test_damaged_files_that_one_cache_leaves_out_are_another_fingerprint(tmp_path):
    classes(tmp_path)
    cut(tmp_path / "dog" / "3.PNG")
    memory, read = (open_split(tmp_path, valid_fraction=1e-9, cache=cache) for cache in ("memory", "none"))
    assert (len(memory), len(read)) == (28, 29)
    assert memory.fingerprint != read.fingerprint


@BOTH
def test_broken_files_are_skipped_with_one_warning(tmp_path, cache):
    break_some(classes(tmp_path))
    message = r"skipped 2 unreadable images of 29: .*1\.png: empty file; .*2\.png"
    for _ in range(2):  # the second time from the cache, where there is one
        with pytest.warns(UserWarning, match=message) as seen:
            data = open_split(tmp_path, valid_fraction=1e-9, cache=cache)
        assert len(seen) == 1
        assert len(data) == 27
        assert [v % 2 for v in values(data)] == data.labels.tolist()


@BOTH
def test_one_broken_image_stops_nothing_where_it_is_all_that_a_split_has_of_its_class(tmp_path, cache):
    classes(tmp_path / "train")
    classes(tmp_path / "test", dogs=1)
    (tmp_path / "test/dog/0.PNG").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"skipped 1 unreadable image of 21: .*0\.PNG: empty file"):
        data = open_split(tmp_path, "test", cache=cache)
    assert data.labels.tolist() == [0] * 20


@BOTH
def test_a_class_whose_images_are_all_broken_is_an_error(tmp_path, cache):
    classes(tmp_path, dogs=2)
    for name in ("0.PNG", "1.PNG"):
        (tmp_path / "dog" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image of class 'dog' in this split is readable: .*copy them anew"):
        open_split(tmp_path, valid_fraction=1e-9, cache=cache)


@BOTH
def test_broken_files_are_an_error_on_request(tmp_path, cache):
    break_some(classes(tmp_path))
    with pytest.raises(ValueError, match=r"2 unreadable images: .*1\.png.*on_broken: skip"):
        open_split(tmp_path, valid_fraction=1e-9, cache=cache, on_broken="error")


def test_truncated_files_are_found_when_all_are_decoded(tmp_path):
    classes(tmp_path)
    cut(tmp_path / "dog" / "3.PNG")
    with pytest.warns(UserWarning, match=r"3\.PNG"):
        assert len(open_split(tmp_path, valid_fraction=1e-9)) == 28


def test_truncated_files_met_while_reading_give_another_of_the_class(tmp_path):
    classes(tmp_path)
    cut(tmp_path / "cat" / "19.png")  # the last cat: the next good one is past the dogs
    data = open_split(tmp_path, valid_fraction=1e-9, cache="none")
    index = next(i for i in range(len(data)) if b"19.png" in data.paths[i])
    for i in (index, index - len(data)):
        with pytest.warns(UserWarning, match=r"another of its class.*19\.png"):
            image, label = data[i]
        assert label == 0
        assert int(image.float().mean()) % 2 == 0
    with pytest.raises(ValueError, match=r"unreadable image: .*19\.png.*on_broken: skip"):
        open_split(tmp_path, valid_fraction=1e-9, cache="none", on_broken="error")[index]


def test_a_class_without_a_readable_image_ends_in_an_error(tmp_path):
    classes(tmp_path, dogs=2)
    for name in ("0.PNG", "1.PNG"):
        cut(tmp_path / "dog" / name)
    data = open_split(tmp_path, valid_fraction=1e-9, cache="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="class 'dog' has no readable image"):
            data[len(data) - 1]
