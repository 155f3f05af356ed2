"""Folders of images: labels, splits, ways of reading and the errors of their layout."""

import errno
import os
import shutil
import signal
from multiprocessing import active_children

import pytest
import torch
from folders import BOTH, classes, open_split, picture
from PIL import Image

from dmvae import config as configs
from dmvae.datasets import image_folder
from dmvae.datasets.image_folder import FolderDataset, ImageFolder, ends
from dmvae.datasets.loading import loader, passes
from dmvae.datasets.memory import MemoryDataset
from dmvae.runtime.hashing import digest
from packed import values


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
    monkeypatch.setattr("dmvae.datasets.image_folder.CACHED_BYTES", 100)
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


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation"])
def test_split_folders_are_used(tmp_path, held_out):
    classes(tmp_path / "train")
    picture(tmp_path / held_out / "dog" / "a.png", 77)
    data = open_split(tmp_path, "test")
    assert values(data) == [77]
    assert data.labels.tolist() == [1]  # as in train/, though test/ has no cat
    assert len(open_split(tmp_path)) == 30


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_link_to_the_train_split_is_no_test_split(tmp_path, split):
    classes(tmp_path / "train")
    (tmp_path / "test").symlink_to("train")
    with pytest.raises(ValueError, match=r"train and .*test are one folder, .*train: give other images to test/"):
        open_split(tmp_path, split)
    (tmp_path / "test").rename(tmp_path / ".test")
    assert len(open_split(tmp_path)) + len(open_split(tmp_path, "test")) == 30


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
    for place in (8, 4095, 12_287, 8_192):
        data = bytearray(b"\x89PNG\r\n\x1a\n".ljust(12_288))
        data[place] = 1
        path.write_bytes(data)
        seen.add(ends(path))
    path.write_bytes(bytes(5000))
    assert len(seen | {ends(path)}) == 5
    assert ends(tmp_path / "none") == ""


@pytest.mark.parametrize(("name", "form"), [("bmp", "BMP"), ("tga", "TGA"), ("tif", "TIFF"), ("png", "BMP")])
def test_formats_without_compression_are_read_whole(tmp_path, name, form):
    path = tmp_path / f"a.{name}"
    Image.new("RGB", (64, 64), (7, 7, 7)).save(path, form)
    before, data = ends(path), bytearray(path.read_bytes())
    data[len(data) // 2] += 1
    path.write_bytes(data)
    assert ends(path) != before


@pytest.mark.parametrize(
    ("name", "options"), [("png", {}), ("jpg", {"quality": 99}), ("webp", {"lossless": True}), ("gif", {}), ("jp2", {})]
)
def test_of_formats_with_compression_the_ends_are_read(tmp_path, name, options):
    """Kept fingerprints of 0.1 hold this form."""
    for size in (4, 50, 256):
        path = tmp_path / f"{size}.{name}"
        Image.effect_noise((size, size), 90).save(path, **options)
        data = path.read_bytes()
        assert ends(path) == digest(len(data), data[:4096], data[4096:][-4096:])
        path.with_suffix(".bmp").write_bytes(b"BM" + data)
        assert ends(path.with_suffix(".bmp")) == digest(b"BM" + data)


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
    classes(tmp_path / "bare" / "train")
    picture(tmp_path / "bare" / "test" / "a.png", 1)
    fails(tmp_path / "bare", "bare/test holds loose images, and train/ class folders: sort them", split="test")
    for k, (one, other) in enumerate([("Train", "Test"), ("training", "testing"), ("train", "dev")]):
        classes(tmp_path / f"called{k}" / one)
        classes(tmp_path / f"called{k}" / other)
        fails(tmp_path / f"called{k}", rf"has ({one}/, {other}|{other}/, {one})/: call its two splits train/ and test/")
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


def test_a_root_above_the_data_is_told(tmp_path):
    for name in ("train", "test"):
        classes(tmp_path / "zip" / "photos" / name)
    with pytest.raises(ValueError, match=r"zip has photos/ alone, which has the splits; give .*zip/photos"):
        open_split(tmp_path / "zip")
    classes(tmp_path / "beside" / "train")
    picture(tmp_path / "beside" / "extra" / "a.png", 1)
    with pytest.raises(ValueError, match=r"has train/ with folders of its own, and extra/ without beside it"):
        open_split(tmp_path / "beside")
    for name in ("train", "ship", "car"):  # which may be a class
        for i in range(4):
            picture(tmp_path / "vehicles" / name / f"{i}.png", i)
    assert open_split(tmp_path / "vehicles").classes == ("car", "ship", "train")
    for name in ("train/steam", "ship/sail", "car/sedan"):
        for i in range(4):
            picture(tmp_path / "kinds" / name / f"{i}.png", i)
    assert open_split(tmp_path / "kinds").classes == ("car", "ship", "train")
    classes(tmp_path / "nested" / "photos")
    with pytest.warns(UserWarning, match=r"nested has photos/ alone, and so one class; where cat, dog .* are classes"):
        assert open_split(tmp_path / "nested").classes == ("photos",)


@pytest.mark.parametrize(
    "pair", [("train", "validate"), ("holdout", "train"), ("train_images", "val_images"), ("trn", "tst")]
)
def test_splits_by_other_names_are_no_classes(tmp_path, pair):
    classes(tmp_path / pair[0])
    picture(tmp_path / pair[1] / "dog" / "a.png", 1)
    message = rf"has {pair[0]}/, {pair[1]}/ with the same folders in them, dog/: call the two splits train/ and test/"
    with pytest.raises(ValueError, match=message):
        open_split(tmp_path)


def test_classes_with_the_same_folders_in_each_are_told(tmp_path):
    for name in ("sandals/black", "sandals/white", "trainers/black", "trainers/white"):
        for i in range(4):
            picture(tmp_path / name / f"{i}.png", i)
    message = (
        r"has sandals/, trainers/ with the same folders in them, black/, white/: the classes are sandals/, trainers/"
    )
    with pytest.warns(UserWarning, match=message):
        assert open_split(tmp_path).classes == ("sandals", "trainers")


@pytest.mark.parametrize("cache", ["auto", "memory", "none"])
def test_a_disk_that_fails_for_a_while_takes_no_image_out_of_the_set(tmp_path, monkeypatch, cache):
    classes(tmp_path / "data")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        whole = open_split(tmp_path / "data", valid_fraction=0.01, cache="none")
    opened = Image.open

    def failing(file, *arguments, **named):
        if str(file).endswith("cat/1.png"):
            raise OSError(errno.EREMOTEIO if cache == "memory" else errno.EIO, "Input/output error")
        return opened(file, *arguments, **named)

    with monkeypatch.context() as bad:
        bad.setattr(Image, "open", failing)
        with pytest.raises(ValueError, match=r"cat/1\.png cannot be read: Input/output error"):
            open_split(tmp_path / "data", valid_fraction=0.01, cache=cache)
        with pytest.raises(ValueError, match=r"cat/1\.png cannot be read: Input/output error"):
            [whole[i] for i in range(len(whole))]
    assert len(open_split(tmp_path / "data", valid_fraction=0.01, cache=cache)) == len(whole)


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_the_same_files_are_another_set_where_another_number_is_read(tmp_path, monkeypatch, cache):
    """A decoder that has come makes images of what was left out; latents and images go together by their places."""
    classes(tmp_path / "data")
    (tmp_path / "data/cat/1.png").write_bytes(b"a format of tomorrow")
    without = open_split(tmp_path / "data", valid_fraction=0.01, cache=cache)
    read = image_folder.read_image
    grey = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    monkeypatch.setattr(image_folder, "read_image", lambda path, *of: grey if path.name == "1.png" else read(path, *of))
    monkeypatch.setattr(image_folder, "check_header", lambda path: None)
    monkeypatch.setattr(image_folder, "PIXELS", (4, ".tomorrow"))
    every = open_split(tmp_path / "data", valid_fraction=0.01, cache=cache)
    assert len(every) == len(without) + 1
    assert every.fingerprint != without.fingerprint


def test_what_could_not_be_read_is_tried_again_where_a_decoder_has_come(tmp_path, monkeypatch):
    classes(tmp_path / "data")
    (tmp_path / "data/cat/1.png").write_bytes(b"a format of tomorrow")
    whole = open_split(tmp_path / "data", valid_fraction=0.01)
    read = image_folder.read_image
    grey = torch.full((3, 8, 8), 7, dtype=torch.uint8)
    monkeypatch.setattr(image_folder, "read_image", lambda path, *of: grey if path.name == "1.png" else read(path, *of))
    assert len(open_split(tmp_path / "data", valid_fraction=0.01)) == len(whole), "it is kept"
    monkeypatch.setattr(image_folder, "PIXELS", (4, ".tomorrow"))
    assert len(open_split(tmp_path / "data", valid_fraction=0.01)) == len(whole) + 1
