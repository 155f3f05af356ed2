"""What a kill or a power cut at any moment leaves is whole: the order of what is written and what is removed. And a run
that waits for a data worker can be stopped."""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import processes
import tiny
from dmvae import pipeline
from dmvae.training import checkpoint


def recorded(monkeypatch):
    """Names of what is flushed, and "removed NAME" of folders that go, in order."""
    made, flushed, remove = [], processes.FSYNC, shutil.rmtree

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
    gone = made.index("removed step-00000001.part")
    assert {"files.json", ".metadata", "step-00000003.part", tmp_path.name} <= set(made[:gone])


HANGS = """
import os, time, torch
from dataclasses import dataclass
from pathlib import Path
from dmvae.datasets import DatasetConfig
from dmvae.registry import register

@register("hangs")
@dataclass(frozen=True, kw_only=True)
class Data(DatasetConfig):
    note: str = ""

    def build(self, split):
        return Items(self.note)

class Items:
    classes, fingerprint, labels = ("a", "b", "c"), "x", torch.arange(48) % 3

    def __init__(self, note):
        self.note = note

    def __len__(self):
        return 48

    def __getitem__(self, i):
        if i == 19:
            Path(self.note).write_text(str(os.getpid()))
            time.sleep(10**6)
        return torch.full((3, 12, 12), 5 * i, dtype=torch.uint8), i % 3
"""


@pytest.mark.slow
def test_a_signal_while_a_worker_hangs_saves_and_leaves_nothing_running(tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    note = tmp_path / "note"
    data = {"type": "hangs", "size": 12, "note": str(note)}
    over = {"plugins": [str(tmp_path / "hangs.py")], "variants": None, "encoder": None, "run__workers": 1}
    training = {"tokenizer__steps": 10**6, "tokenizer__train_encoder": True}
    path = tiny.write(tmp_path, data=data, run__save_every=10**6, **training, **over)
    process = processes.Command("tokenizer", str(path))
    while not (note.exists() and note.read_text()):
        assert not process.ended(), process.result().stderr
        time.sleep(0.05)
    time.sleep(1)  # by now the training waits for the batch
    process.signal(signal.SIGTERM)
    result = process.result(timeout=30)
    assert result.returncode == 130
    assert "the state was saved" in result.stderr
    assert list(tmp_path.glob("run/stages/tokenizer*/checkpoints/step-*"))
    assert not Path("/proc", note.read_text()).exists()


def killed_while_it_writes(path):
    flush = checkpoint.flush

    def kill(part):
        flush(part)
        if part.name == "step-00000004.part":
            time.sleep(0.2)  # training goes on meanwhile
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.flush = kill
    tiny.run(Path(path), "kl", "tokenizer")


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(tmp_path, capsys):
    paths = []
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        paths.append(tiny.write(tmp_path / name, run__save_every=2, tokenizer__steps=12))
    process = processes.FORKS.Process(target=killed_while_it_writes, args=(str(paths[0]),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (there,) = tmp_path.glob("killed/run/stages/tokenizer-*/checkpoints")
    assert sorted(folder.name for folder in there.iterdir()) == ["step-00000002", "step-00000004.part"]
    for path in paths:
        tiny.run(path, "kl", "tokenizer")
    assert "resumes at step 2 of 12" in capsys.readouterr().out
    killed, whole = (tiny.weights(path.parent / "run") for path in paths)
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
