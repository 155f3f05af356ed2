"""What a kill or a power cut at any moment leaves is whole: the order of what is written and what is removed."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from dmvae import pipeline
from dmvae.training import checkpoint


def recorded(monkeypatch):
    """Names of what is flushed, and "removed NAME" of folders that go, in order."""
    made, flushed, remove = [], os.fsync, shutil.rmtree

    def fsync(handle):
        made.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        flushed(handle)

    def rmtree(path, **options):
        made.append(f"removed {Path(path).name}")
        remove(path, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    return made


def test_a_stage_is_on_the_disk_before_it_is_done_and_done_before_its_checkpoints_go(tmp_path, monkeypatch):
    (tmp_path / "network").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "network/model.safetensors")  # not by way of `whole`
    (tmp_path / "checkpoints").mkdir()
    made = recorded(monkeypatch)
    pipeline._finish(SimpleNamespace(folder=tmp_path, done=tmp_path / "done.json"), {"seconds": 1})
    done = made.index("done.json")
    assert {"model.safetensors", "network", tmp_path.name} <= set(made[:done])
    assert tmp_path.name in made[done : made.index("removed checkpoints")]


def test_a_checkpoint_is_on_the_disk_before_older_ones_go(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.zeros(1)})
    made = recorded(monkeypatch)
    checkpoint.save(tmp_path, 3, {"x": torch.zeros(1)})
    gone = made.index("removed step-00000001")
    assert {"files.json", ".metadata", "step-00000003.part", tmp_path.name} <= set(made[:gone])
