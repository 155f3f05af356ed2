"""Files that are no images, and a cache that cannot be written: what can go on goes on, and says so."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.image_scan import scan
from dmvae.evaluation.images import FolderImages


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / f"images/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_only_regular_files_are_read(images):
    os.mkfifo(images / "a/fifo.png")
    (images / "a/zero.png").symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match=r"left out: .*no regular file; remove it") as warned:
        entries, _ = scan(images)
    assert len(entries) == 6
    assert {str(w.message).split()[2].rpartition("/")[2] for w in warned} == {"fifo.png", "zero.png"}
    with pytest.warns(UserWarning, match="no regular file"):
        assert len(FolderImages(images)) == 6


def test_a_link_to_itself_is_as_one_that_leads_nowhere(images):
    (images / "a/dangling.png").symlink_to("nowhere.png")
    (images / "a/loop.png").symlink_to("loop.png")
    (images / "loop").symlink_to("loop")
    with pytest.warns(UserWarning, match=r"skipped 2 unreadable images of 7: .*dangling.png.*loop.png"):
        data = ImageFolder(root=str(images), size=8, valid_fraction=1e-9).build("train")
    assert len(data) == 5  # one is the test split


@pytest.mark.filterwarnings("ignore:left out")
def test_a_link_to_a_folder_above_it_counts_nothing_twice(images):
    (images / "a/latest").symlink_to(".")
    (images / "b/deep").mkdir()
    (images / "b/deep/up").symlink_to("../..")
    (images / "b/other").symlink_to("../a")
    with pytest.warns(UserWarning, match=r"left out: .* leads back to a folder that it lies in") as warned:
        entries, _ = scan(images)
    assert len(entries) == 6 + 3, "a link to another folder is followed"
    assert {str(w.message).split()[2].rpartition("/")[2] for w in warned} == {"latest", "up"}
    (images / "b/deep/up").unlink()
    (images / "b/deep/up").symlink_to("../../..")
    assert len(scan(images)[0]) == 6 + 3, "nor what lies beside the folder that is scanned"
    (images / "all").symlink_to(".")
    with pytest.raises(ValueError, match=r"class folder .*/all has no image"):
        scan(images)


def test_a_cache_that_cannot_be_written_stops_nothing(images, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"decoded images cannot be kept in .*decoded whenever they are read"):
        data = ImageFolder(root=str(images), size=8).build("train")
    assert len(data) >= 4


def test_a_damaged_cache_is_made_anew(images, private_cache):
    config = ImageFolder(root=str(images), size=8)
    before = config.build("train").images.clone()  # not what is mapped from the file
    (kept,) = (private_cache / "decoded").glob("*/images.npy")
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"the images are decoded anew"):
        assert (config.build("train").images == before).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.build("train")
