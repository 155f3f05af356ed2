"""Files are there whole or not at all."""

import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from dmvae.runtime.files import sweep, whole


def test_a_file_and_a_folder_take_the_place_of_what_was_there(tmp_path):
    for content in ("one", "two"):
        with whole(tmp_path / "deep/file") as part:
            part.write_text(content)
        with whole(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).touch()
    assert (tmp_path / "deep/file").read_text() == "two"
    assert os.listdir(tmp_path / "folder") == ["two"]
    assert sorted(os.listdir(tmp_path)) == ["deep", "folder"]


def half(path):
    path.write_text("half")
    raise RuntimeError


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("one")
    with pytest.raises(RuntimeError), whole(tmp_path / "file") as part:
        half(part)
    assert (tmp_path / "file").read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_an_error_of_the_system_also_in_safetensors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises(OSError, match=r"tensors could not be written .*is the disk full"),
            whole(tmp_path / "tensors") as part,
        ):
            save_file({"x": torch.zeros(100_000)}, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / "a/b.12.part").mkdir(parents=True)
    (tmp_path / "a/c.13.part").touch()
    (tmp_path / "a/d").touch()
    sweep(tmp_path)
    assert os.listdir(tmp_path / "a") == ["d"]
