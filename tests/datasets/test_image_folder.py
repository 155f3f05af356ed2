import errno
import os
import shutil
import signal
import time
import warnings
from contextlib import ExitStack
from multiprocessing import active_children

import pytest
import torch
from PIL import Image

from dmvae import config as configs
from dmvae.datasets import image_folder, skipped
from dmvae.datasets.image_file import BrokenImage
from dmvae.datasets.image_folder import FolderDataset, ImageFolder, ends
from dmvae.datasets.loading import loader, passes
from dmvae.datasets.memory import MemoryDataset

BOTH = pytest.mark.parametrize("cache", ["auto", "memory", "none"])


def picture(path, value, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def classes(root, cats=20, dogs=10):
    """Cats have even values, dogs odd ones; some lie deeper; what is no image lies about."""
    for i in range(cats):
        picture(root / "cat" / ("deep/er" if i % 3 == 0 else "") / f"{i}.png", 2 * i)
    for i in range(dogs):
        picture(root / "dog" / f"{i}.PNG", 2 * i + 1)
    (root / "README.md").write_text("not an image")
    (root / "cat" / "notes.txt").write_text("nor this")
    picture(root / "cat" / ".hidden.png", 255)
    picture(root / ".thumbs" / "x.png", 255)
    return root


def open_split(root, split="train", **fields):
    return ImageFolder(**({"root": str(root), "size": 8} | fields)).build(split)


def values(data):
    return [int(data[i][0].float().mean()) for i in range(len(data))]


def cut(path):
    """Damage that the header does not show."""
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@BOTH
def test_class_folders_give_labels_and_names(tmp_path, cache):
    classes(tmp_path)
    train, test = (open_split(tmp_path, s, cache=cache) for s in ("train", "test"))
    for data in (train, test):
        assert data.classes == ("cat", "dog")
        assert [v % 2 for v in values(data)] == data.labels.tolist()
        assert [data[i][1] for i in range(len(data))] == data.labels.tolist()
        assert data[0][0].shape == (3, 8, 8)
    assert sorted(values(train) + values(test)) == sorted([2 * i for i in range(20)] + [2 * i + 1 for i in range(10)])
    assert isinstance(train, FolderDataset if cache == "none" else MemoryDataset)


@BOTH
def test_many_at_once_equal_one_by_one(tmp_path, cache):
    data = open_split(classes(tmp_path), cache=cache)
    batches = loader(data, [[4, 0, 9]], 1, torch.device("cpu"))
    assert batches.workers == (cache == "none"), "what is in memory needs no workers, what is decoded does"
    ((images, labels),) = batches
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    for k, i in enumerate([4, 0, 9]):
        assert torch.equal(images[k], data[i][0])
        assert labels[k] == data[i][1]


def test_cached_and_uncached_agree(tmp_path, private_cache):
    classes(tmp_path)
    every = [open_split(tmp_path, cache=cache) for cache in ("none", "memory", "auto", "auto")]
    assert len({data.fingerprint for data in every}) == 1
    reference = torch.stack([image for image, _ in every[0]])
    for data in every[1:]:
        assert torch.equal(data.__getitems__(range(len(data)))[0], reference)
        assert torch.equal(data.labels, every[0].labels)
    assert len(list((private_cache / "decoded").iterdir())) == 1


def test_large_sets_are_decoded_when_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dmvae.datasets.image_folder.MEMORY_BYTES", 100)
    assert isinstance(open_split(classes(tmp_path)), FolderDataset)


def test_loader_workers_read_the_folder(tmp_path):
    data = open_split(classes(tmp_path), cache="none")
    images = torch.cat([images for images, _ in passes(data, 9, 2, torch.device("cpu"))])
    assert torch.equal(images, torch.stack([image for image, _ in data]))


def test_a_flat_folder_has_one_class(tmp_path):
    for i in range(5):
        picture(tmp_path / f"{i}.png", i)
    (tmp_path / "empty folder").mkdir()
    data = open_split(tmp_path, channels=1)
    assert data.classes == ("all",)
    assert data.labels.unique().tolist() == [0]
    assert data[0][0].shape == (1, 8, 8)


def test_the_split_is_a_property_of_each_file(tmp_path):
    classes(tmp_path / "a", cats=200)
    before = set(values(open_split(tmp_path / "a", "test", valid_fraction=0.3)))
    assert 0.15 < len(before) / 210 < 0.45
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    picture(tmp_path / "b" / "cat" / "new.png", 251)
    assert before - {251} == set(values(open_split(tmp_path / "b", "test", valid_fraction=0.3))) - {251}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_no_split_is_empty(tmp_path, fraction):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    sizes = [len(open_split(tmp_path, s, valid_fraction=fraction)) for s in ("train", "test")]
    assert min(sizes) == 1
    assert sum(sizes) == 3


@pytest.mark.parametrize("held_out", ["test", "val", "valid"])
def test_split_folders_are_used(tmp_path, held_out):
    classes(tmp_path / "train")
    picture(tmp_path / held_out / "dog" / "a.png", 77)
    data = open_split(tmp_path, "test")
    assert values(data) == [77]
    assert data.labels.tolist() == [1]  # as in train/, though test/ has no cat
    assert len(open_split(tmp_path)) == 30


def test_train_alone_is_split(tmp_path):
    classes(tmp_path / "train")
    assert open_split(tmp_path).classes == ("cat", "dog")
    assert len(open_split(tmp_path)) + len(open_split(tmp_path, "test")) == 30


def test_limit_keeps_a_choice_across_classes(tmp_path):
    data = open_split(classes(tmp_path), limit=12)
    assert len(data) == 12
    assert data.labels.unique().tolist() == [0, 1]
    assert values(data) == values(open_split(tmp_path, limit=12, cache="none"))


def test_fingerprint_follows_content_and_config_not_place(tmp_path):
    classes(tmp_path / "a")
    base = open_split(tmp_path / "a").fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_split(tmp_path / "b").fingerprint == base
    others = [open_split(tmp_path / "a", **f).fingerprint for f in ({"size": 9}, {"channels": 1}, {"limit": 5})]
    others.append(open_split(tmp_path / "a", "test").fingerprint)
    picture(tmp_path / "b" / "dog" / "0.PNG", 200, size=(90, 70))
    picture(tmp_path / "b" / "dog" / "1.PNG", 200, size=(90, 70))
    others.append(open_split(tmp_path / "b").fingerprint)
    assert len({base, *others}) == 6


@BOTH
def test_a_rewritten_file_is_decoded_anew(tmp_path, cache):
    for i in range(4):
        picture(tmp_path / f"{i}.bmp", 10)
    before = open_split(tmp_path, cache=cache).fingerprint
    for i in range(4):
        picture(tmp_path / f"{i}.bmp", 20)  # of the same size in bytes
    data = open_split(tmp_path, cache=cache)
    assert set(values(data)) == {20}
    assert data.fingerprint != before, "features and latents of the old images are not these"


def test_the_ends_of_a_large_file_are_looked_at(tmp_path):
    path = tmp_path / "a"
    seen = set()
    for place in (0, 4095, 12_287, 8_192):
        data = bytearray(12_288)
        data[place] = 1
        path.write_bytes(data)
        seen.add(ends(path))
    path.write_bytes(bytes(5000))
    assert len(seen | {ends(path)}) == 5
    assert ends(tmp_path / "none") == ""


def test_formats_without_compression_are_read_whole(tmp_path):
    picture(tmp_path / "a.bmp", 7, size=(64, 64))
    before, data = ends(tmp_path / "a.bmp"), bytearray((tmp_path / "a.bmp").read_bytes())
    data[len(data) // 2] += 1
    (tmp_path / "a.bmp").write_bytes(data)
    assert ends(tmp_path / "a.bmp") != before


@pytest.mark.filterwarnings("ignore:skipped")
def test_damaged_files_that_one_cache_leaves_out_are_another_fingerprint(tmp_path):
    classes(tmp_path)
    cut(tmp_path / "dog" / "3.PNG")
    memory, read = (open_split(tmp_path, valid_fraction=1e-9, cache=cache) for cache in ("memory", "none"))
    assert (len(memory), len(read)) == (28, 29)
    assert memory.fingerprint != read.fingerprint


def break_some(root):
    (root / "cat" / "1.png").write_bytes(b"")
    (root / "cat" / "2.png").write_text("hello")
    return root


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
def test_broken_files_are_an_error_on_request(tmp_path, cache):
    break_some(classes(tmp_path))
    with pytest.raises(ValueError, match=r"2 unreadable images: .*1\.png.*on_broken: skip"):
        open_split(tmp_path, valid_fraction=1e-9, cache=cache, on_broken="error")


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are opened to look at them. Those that a test has just made count as settled."""
    monkeypatch.setattr(image_folder, "SETTLED", -1.0)
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
        if path.name == "4.png":
            raise BrokenImage(f"{path}: not ours")

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
    monkeypatch.setattr(image_folder, "SETTLED", 0.5)
    time.sleep(0.6)
    found(tmp_path)
    assert (private_cache / "folder_index").exists()


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


def test_layout_errors_say_what_to_fix(tmp_path):
    def fails(root, message, split="train", **fields):
        with pytest.raises(ValueError, match=message):
            open_split(root, split, **fields)

    fails(tmp_path / "nowhere", r"data\.root: .*nowhere does not exist")
    (tmp_path / "file").touch()
    fails(tmp_path / "file", "is a file")
    (tmp_path / "none" / "sub").mkdir(parents=True)
    (tmp_path / "none" / "a.txt").touch()
    fails(tmp_path / "none", r"no images in .*none; looked for .*\.bmp .*\.webp")
    classes(tmp_path / "gap")
    (tmp_path / "gap" / "bird").mkdir()
    (tmp_path / "gap" / "__MACOSX").mkdir()
    fails(tmp_path / "gap", r"class folder .*gap/bird has no image: delete it")
    (tmp_path / "gap" / "ant").mkdir()
    fails(tmp_path / "gap", r"class folders ant, bird of .*gap have no image: delete them")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.parquet").touch()
    fails(tmp_path / "tables", "no images in .*tables.*for its .parquet files set data.type to huggingface")
    classes(tmp_path / "mixed")
    picture(tmp_path / "mixed" / "loose.png", 1)
    fails(tmp_path / "mixed", r"both loose images \(loose\.png, 1 in all\) and class folders.*cat/")
    picture(tmp_path / "one" / "a.png", 1)
    fails(tmp_path / "one", "one image: it cannot be split")
    picture(tmp_path / "headless" / "test" / "a.png", 1)
    fails(tmp_path / "headless", r"has test/ but no train/")
    classes(tmp_path / "odd" / "train")
    picture(tmp_path / "odd" / "test" / "fish" / "a.png", 1)
    fails(tmp_path / "odd", "class 'fish', which train/ has not", split="test")
    for i in range(3):
        (tmp_path / "junk" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "junk" / "x" / f"{i}.png").touch()
    fails(tmp_path / "junk", "none of its 2 images of this split is readable", valid_fraction=1e-9)


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5])
def test_a_fraction_outside_0_to_1_is_named(value):
    with pytest.raises(ValueError, match=f"valid_fraction: expected a number, above 0, to below 1, got {float(value)}"):
        configs.read(ImageFolder, {"root": ".", "valid_fraction": value})


def test_workers_outlive_the_signals_that_stop_a_training(tmp_path):
    """torchrun's SIGTERM and a terminal's Ctrl-C reach them too, and the training still has a state to save."""
    data = open_split(classes(tmp_path), cache="none")
    batches = iter(loader(data, [[i % len(data)] for i in range(40)], 1, torch.device("cpu")))
    next(batches)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(active_children()[0].pid, number)
    assert sum(len(labels) for _, labels in batches) == 39
