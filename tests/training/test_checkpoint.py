"""Checkpoints: whole, listed, the last two kept, and nothing of what they hold is run."""

import json
import pickle
import random
import resource
import shutil
import threading
import zlib
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import processes
from dmvae.runtime import distributed, done
from dmvae.training import checkpoint
from dmvae.training.trainer import LATER
from hostile import Runs, flip


def state(value, size=4):
    return {"networks": {"a": {"w": torch.full((size,), value)}}, "progress": {"step": int(value)}}


def test_checkpoint_round_trip_keeps_the_last_two(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(float(step)))
    assert checkpoint.steps(tmp_path) == [2, 3]
    into = state(0.0)
    assert checkpoint.load(tmp_path, into) == 3
    assert torch.equal(into["networks"]["a"]["w"], torch.full((4,), 3.0))
    assert into["progress"]["step"] == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "list", "more"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(float(step)))
    file = next((tmp_path / "step-00000002").glob("*.distcp"))
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    elif damage == "delete":
        file.unlink()
    elif damage == "more":
        (file.parent / "__9_0.distcp").touch()
    else:
        (file.parent / "files.json").write_text("{")
    into = state(0.0)
    with pytest.warns(UserWarning, match="step-00000002.*trying the checkpoint before it"):
        assert checkpoint.load(tmp_path, into) == 1
    assert torch.equal(into["networks"]["a"]["w"], torch.full((4,), 1.0))


def test_damaged_checkpoints_of_later_steps_take_no_other_s_place(tmp_path):
    """As a copy without hidden files leaves them: the training begins anew, and may be killed again."""
    for step in (8, 9):
        checkpoint.save(tmp_path, step, state(float(step)))
        (tmp_path / f"step-{step:08d}/.metadata").unlink()
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        assert checkpoint.load(tmp_path, state(0.0)) is None
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(float(step)))
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        assert checkpoint.load(tmp_path, state(0.0)) == 3
    for step in range(4, 11):
        checkpoint.save(tmp_path, step, state(float(step)))
    assert checkpoint.steps(tmp_path) == [9, 10]
    assert checkpoint.load(tmp_path, state(0.0)) == 10


def test_a_kill_while_an_older_checkpoint_is_removed_leaves_none_that_lacks_files(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(float(step)))

    def killed(path, **_):
        if path.exists():
            (path / "files.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 3, state(3.0))
    assert checkpoint.steps(tmp_path) == [2, 3]


def test_a_kill_while_a_checkpoint_takes_another_s_place_loses_neither(tmp_path, monkeypatch):
    """As a training that goes back saves its step once more."""
    checkpoint.save(tmp_path, 1, state(1.0))
    rename = Path.rename

    def killed(path, to):
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 1, state(2.0))
    into = state(0.0)
    assert checkpoint.load(tmp_path, into) == 1
    assert into["networks"]["a"]["w"].unique().tolist() == [1.0]
    checkpoint.save(tmp_path, 1, state(2.0))
    assert checkpoint.load(tmp_path, into) == 1
    assert into["networks"]["a"]["w"].unique().tolist() == [2.0]
    assert [path.name for path in tmp_path.glob("*.old")] == []


def test_files_are_listed_as_they_lie_there_and_none_is_read_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(done, "crc", None)
        checkpoint.save(tmp_path, 1, state(1.0, size=700_000) | {"text": "x", "empty": torch.zeros(0)})
    folder = tmp_path / "step-00000001"
    listed = json.loads((folder / "files.json").read_text())
    there = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "files.json"}
    assert set(there) == {".metadata", "__0_0.distcp"}
    assert listed == {name: [len(data), zlib.crc32(data)] for name, data in there.items()}


def test_a_file_that_changes_before_it_is_listed_is_told(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1.0))
    collect = checkpoint.distributed.collect

    def meddles(value, group):
        with (tmp_path / "step-00000002.part/__0_0.distcp").open("a") as file:
            file.write("x")
        return collect(value, group)

    monkeypatch.setattr(checkpoint.distributed, "collect", meddles)
    with pytest.raises(OSError, match=r"__0_0\.distcp not as written a moment ago"):
        checkpoint.save(tmp_path, 2, state(2.0))
    assert checkpoint.steps(tmp_path) == [1]


def saved_by_two(rank, folder):
    """Two checkpoints of a tensor of which each rank has a half; then rank 1's half of the second is damaged."""
    distributed.start()
    done.crc, crc = None, done.crc
    for step in (1, 2):
        whole = torch.full((6, 1000), float(step))
        sharded = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
        checkpoint.save(folder, step, {"w": sharded} | ({"step": step} if rank == 0 else {}))
    done.crc = crc
    into = {"w": torch.zeros(6, 1000)}
    assert checkpoint.load(folder, into) == 2
    assert into["w"].unique().tolist() == [2.0]
    distributed.barrier()
    if rank == 0:
        file = folder / "step-00000002/__1_0.distcp"
        flip(file, -2000)
    with pytest.warns(UserWarning, match=r"__1_0\.distcp is corrupt"):
        assert checkpoint.load(folder, into) == 1
    assert into["w"].unique().tolist() == [1.0]
    distributed.stop()


@pytest.mark.slow
def test_each_of_two_ranks_lists_its_own_files(tmp_path):
    assert processes.on_ranks(saved_by_two, tmp_path) == [0, 0]
    folder = tmp_path / "step-00000002"
    listed = json.loads((folder / "files.json").read_text())
    assert set(listed) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert all(listed[name][0] == (folder / name).stat().st_size for name in listed)


@pytest.mark.parametrize("where", ["list", "number"])
def test_a_checkpoint_of_somebody_else_runs_nothing(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path, 1, {"a": torch.ones(2), "b": Runs() if where == "number" else 1})
    folder = tmp_path / "step-00000001"
    if where == "list":
        data = pickle.dumps([Runs()])
        (folder / ".metadata").write_bytes(data)
        files = json.loads((folder / "files.json").read_text())
        files[".metadata"] = [len(data), zlib.crc32(data)]
        (folder / "files.json").write_text(json.dumps(files))
    with pytest.raises(ValueError, match=r"step-00000001: refused, because it asks for \S*open"):
        checkpoint.load(tmp_path, {"a": torch.zeros(2), "b": 0})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("files", [[], {"x": 1}, {"x": [1]}, {"../../x": [0, 0]}, {1: ["a", {}]}])
def test_a_list_of_files_that_is_none_is_damage(tmp_path, files):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(float(step)))
    (tmp_path / "step-00000002/files.json").write_text(json.dumps(files))
    with pytest.warns(UserWarning, match="step-00000002.*trying the checkpoint before it"):
        assert checkpoint.load(tmp_path, state(0.0)) == 1


def test_another_architecture_is_refused(tmp_path):
    checkpoint.save(tmp_path, 1, state(1.0))
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.load(tmp_path, state(0.0, size=5))


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    checkpoint.save(tmp_path, 1, state(1.0))
    (tmp_path / "step-00000002.part").mkdir()
    assert checkpoint.steps(tmp_path) == [1]


def test_a_full_disk_is_said_and_costs_nothing_saved(tmp_path):
    """A limit on file size stands in for the disk: both make a write fail halfway."""
    checkpoint.save(tmp_path, 1, state(1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written to .*is the disk full"):
            checkpoint.save(tmp_path, 2, state(2.0, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(tmp_path, state(0.0)) == 1


def test_a_checkpoint_in_the_background_is_of_the_moment_it_was_asked_for(tmp_path, monkeypatch):
    begins, write = threading.Event(), checkpoint.save

    def late(*args):
        assert begins.wait(60)
        write(*args)

    monkeypatch.setattr(checkpoint, "save", late)
    background, now = checkpoint.Background(), state(1.0)
    background.save(tmp_path, 1, now)
    now["networks"]["a"]["w"].fill_(9)  # training goes on
    now["progress"]["step"] = 9
    assert checkpoint.steps(tmp_path) == []
    begins.set()
    background.save(tmp_path, 2, now)  # after the first has ended
    assert 1 in checkpoint.steps(tmp_path)
    background.wait()
    shutil.rmtree(tmp_path / "step-00000002")
    assert checkpoint.load(tmp_path, into := state(0.0)) == 1
    assert into["networks"]["a"]["w"].tolist() == [1.0] * 4
    assert into["progress"]["step"] == 1


def test_a_copy_of_the_state_does_not_change_with_it():
    now = {"networks": {"w": torch.ones(2)}, "progress": {"seen": [1]}}
    copy = checkpoint._copied(now)
    now["networks"]["w"].fill_(9)
    now["progress"]["seen"].append(2)
    assert copy["networks"]["w"].tolist() == [1, 1]
    assert copy["progress"] == {"seen": [1]}


def test_what_goes_wrong_in_the_background_is_raised_once(tmp_path):
    (tmp_path / "file").write_text("")
    background = checkpoint.Background()
    background.save(tmp_path / "file", 1, state(1.0))
    with pytest.raises(OSError, match="file"):
        background.wait()
    background.wait()


@pytest.mark.parametrize("before", [{}, {"approach": {"recent": torch.ones(3)}}])
def test_a_checkpoint_that_does_not_know_of_health_or_of_what_was_measured_is_read(tmp_path, before):
    checkpoint.save(tmp_path, 1, {"networks": {"w": torch.ones(2), **before}})
    state = {
        "networks": {"w": torch.zeros(2), "approach": {"recent": torch.zeros(3), "labels": torch.full((3,), -1)}},
        "health": {"state": torch.full((1, 4), 7.0)},
    }
    assert checkpoint.load(tmp_path, state, optional=LATER) == 1
    assert torch.equal(state["networks"]["w"], torch.ones(2))
    assert torch.equal(state["health"]["state"], torch.full((1, 4), 7.0))
    assert state["networks"]["approach"]["recent"].tolist() == [float(bool(before))] * 3
    assert state["networks"]["approach"]["labels"].tolist() == [-1] * 3
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.load(tmp_path, state)


def test_one_checkpoint_is_kept_that_is_older_than_trouble_can_be(tmp_path):
    for step in range(1, 15):
        checkpoint.save(tmp_path, step, {"w": torch.ones(1)}, back=4)
        kept = checkpoint.newest(tmp_path, step - 4, 1)
        assert step < 6 or 4 <= step - kept <= 6
    assert len(checkpoint.steps(tmp_path)) == 4
    checkpoint.forget(tmp_path, after=kept)
    assert checkpoint.steps(tmp_path) == [kept]
    assert checkpoint.newest(tmp_path, kept - 1, 1) is None


def test_where_it_goes_back_to_does_not_depend_on_when_it_was_stopped(tmp_path):
    """What a signal saved, here at steps 7 and 13, is to go on from, and not to go back to."""
    for step in (3, 6, 7, 9, 12, 13, 15, 18):
        checkpoint.save(tmp_path, step, {"w": torch.ones(1)}, back=6, every=3)
    assert checkpoint.steps(tmp_path) == [12, 15, 18]
    assert checkpoint.newest(tmp_path, 14, 3) == 12


@pytest.mark.parametrize("every", [2, 3, 5, 9])
def test_whenever_it_is_stopped_it_goes_back_as_far(tmp_path, monkeypatch, every):
    monkeypatch.setattr(checkpoint, "_quietly", lambda *_, **__: None)  # folders alone, without a state
    found = []
    for seed in range(4):
        folder, stops = tmp_path / str(seed), random.Random(seed).sample(range(1, 30), 9 if seed else 0)
        found.append([])
        for step in range(1, 30):
            found[-1].append(checkpoint.newest(folder, step - 8, every))  # before it is saved, it is judged
            if step % every == 0 or step in stops:
                checkpoint.save(folder, step, {}, back=8, every=every)
                assert checkpoint.steps(folder)[-1] == step
                assert len(checkpoint.steps(folder)) <= 6
    assert found[1:] == found[:1] * 3
    assert found[0][-1] is not None
