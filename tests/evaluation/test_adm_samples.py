"""Samples as the .npz of ADM: the same pixels in the same order, a batch at a time, and the same figures."""

import weakref
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from dmvae import cli
from dmvae.commands.measurements import measure
from dmvae.evaluation.images import SampleFiles, npz_images, write_npz
from dmvae.runtime.done import write_done
from dmvae.runtime.files import write_tensors

pytestmark = pytest.mark.usefixtures("cache")


def samples(folder, images, labels, batch=25):
    """As the stage `sample` writes them."""
    for number, start in enumerate(range(0, len(images), batch)):
        part = {"images": images[start : start + batch], "labels": labels[start : start + batch]}
        write_tensors(folder / f"samples-{number:05d}.safetensors", {k: v.contiguous() for k, v in part.items()})
    return folder


def test_pixels_labels_and_their_order_are_those_of_the_folder(data, tmp_path, capsys):
    images, labels = data[0]
    cli.main(["export", "adm-samples", str(samples(tmp_path / "s", images, labels)), "--out", str(tmp_path / "a.npz")])
    assert "60 images" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        assert (file["arr_0"].dtype, file["arr_1"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(file["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(file["arr_1"], labels.numpy())
    assert torch.equal(npz_images(tmp_path / "a.npz").images, images)
    with ZipFile(tmp_path / "a.npz") as file:
        info = file.getinfo("arr_0.npy")
        assert info.compress_type == ZIP_STORED
        assert info.extract_version >= 45, "room for more than 4 GiB"
        with file.open(info) as member:  # as ADM's reader of long files looks at it
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member) == ((60, 16, 16, 3), False, np.uint8)


def test_grey_samples_are_written_as_colour(data, tmp_path):
    grey = data[0][0][:30, :1]
    cli.main(
        ["export", "adm-samples", str(samples(tmp_path / "s", grey, data[0][1][:30])), "--out", f"{tmp_path}/a.npz"]
    )
    assert torch.equal(npz_images(tmp_path / "a.npz").images, grey.expand(-1, 3, -1, -1))


@pytest.mark.slow
def test_figures_are_those_of_the_folder(data, folders, tmp_path):
    made = samples(tmp_path / "s", *data[0])
    places = {"samples": str(made), "folder": folders[0]}
    found = {"the stage's files": measure("folder", [str(made), folders[1]], features=["effnet-lite0@32"])["metrics"]}
    for name, place in places.items():
        cli.main(["export", "adm-samples", place, "--out", str(tmp_path / f"{name}.npz")])
        result = measure("folder", [str(tmp_path / f"{name}.npz"), folders[1]], features=["effnet-lite0@32"])
        found[name] = result["metrics"]
    first = found.pop("the stage's files")
    assert found == dict.fromkeys(places, pytest.approx(first, rel=1e-5))


def test_images_of_several_sizes_take_the_option_that_the_error_names(data, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name, shape in (("a", (24, 20)), ("b", (16, 16))):
        Image.new("RGB", shape).save(tmp_path / f"images/{name}.png")
    given = ["export", "adm-samples", str(tmp_path / "images"), "--out", str(tmp_path / "a.npz")]
    with pytest.raises(SystemExit):
        cli.main(given)
    assert "give --size N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*given, "--size", "0"])
    assert "--size must be at least 1, got 0" in capsys.readouterr().err
    cli.main([*given, "--size", "8"])
    assert npz_images(tmp_path / "a.npz").images.shape == (2, 3, 8, 8)
    given[2] = str(samples(tmp_path / "s", *data[0]))
    with pytest.raises(SystemExit):
        cli.main([*given, "--size", "8"])
    assert "--size 8: the samples of a run have one size; leave it out" in capsys.readouterr().err


def test_samples_of_an_unfinished_stage_are_read_by_nobody(data, folders, tmp_path, monkeypatch):
    """A copy of the folder alone cannot tell, and is measured as it is."""
    place = samples(tmp_path / "stages/sample-0a1b/guidance-1", *data[0])
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN/sample").symlink_to(place.parent)
    for path in (place, tmp_path / "RUN/sample/guidance-1"):
        with pytest.raises(ValueError, match="guidance-1: its stage is not finished, so samples are missing"):
            measure("folder", [str(path), folders[1]])
    monkeypatch.chdir(place)
    with pytest.raises(ValueError, match="its stage is not finished"):
        SampleFiles(Path("."))
    assert len(SampleFiles(samples(tmp_path / "copied/guidance-1", *data[0]))) == 60
    write_done(place.parent, {"seconds": 1})
    assert len(SampleFiles(place)) == 60


class Source:
    """Ten batches that are made as they are asked for."""

    facts, labels = {}, None

    def __init__(self, stop=10):
        self.alive, self.most, self.stop = weakref.WeakSet(), 0, stop

    def __len__(self):
        return 640

    def batches(self, chosen, batch_size):
        for start in range(0, len(chosen), batch_size):
            if start // batch_size == self.stop:
                raise ValueError("broken")
            batch = torch.full((min(batch_size, len(chosen) - start), 3, 4, 4), start % 251, dtype=torch.uint8)
            self.alive.add(batch)
            self.most = max(self.most, len(self.alive))
            yield batch


def test_images_are_not_held_and_without_labels_there_are_none(tmp_path):
    source = Source()
    write_npz(source, tmp_path / "a.npz")
    assert source.most <= 2
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"]
        assert file["arr_0"][:, 0, 0, 0].tolist() == [i // 64 * 64 % 251 for i in range(640)]


def test_what_was_there_stays_until_all_is_written(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"before")
    with pytest.raises(ValueError, match="broken"):
        write_npz(Source(stop=3), tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["a.npz"]


@pytest.mark.parametrize(
    ("folder", "out", "message"),
    [
        ("s", "a.npy", "samples are written as .npz, name it so"),
        ("s", "s", "s: samples"),
        ("absent", "a.npz", "no such"),
        ("sample/guidance-1", "a.npz", "its stage is not finished, so samples are missing"),
    ],
)
def test_what_cannot_be_written_or_read_is_told(data, tmp_path, capsys, folder, out, message):
    samples(tmp_path / "s", *data[0])
    samples(tmp_path / "sample/guidance-1", *data[0])
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "adm-samples", str(tmp_path / folder), "--out", str(tmp_path / out)])
    assert (stop.value.code, message in capsys.readouterr().err) == (2, True)
