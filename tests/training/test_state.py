"""Random numbers, data order, averages, checkpoints: what resume rests on."""

import json
import pickle
import re
import resource
import shutil
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import processes
from dmvae import config as configs
from dmvae.runtime import distributed, done
from dmvae.runtime.random import Random
from dmvae.training import checkpoint
from dmvae.training.data import order
from dmvae.training.ema import Average
from dmvae.training.health import hopeless
from dmvae.training.logging import Figures, read_figures
from dmvae.training.optim import adamw, learning_rate_factor
from dmvae.training.stage import TrainingConfig


def test_random_is_a_function_of_its_key():
    a, b, c = Random(0, "stage", 7), Random(0, "stage", 7), Random(0, "stage", 8)
    x = a.normal(4, 2)
    assert torch.equal(x, b.normal(4, 2))
    assert not torch.equal(x, c.normal(4, 2))
    assert torch.equal(torch.randn(3, generator=a), torch.randn(3, generator=b))


def test_two_ranks_draw_what_one_draws(monkeypatch):
    from dmvae.runtime import distributed

    whole = Random(0, 1).normal(8, 3)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(Random(0, 1).normal(4, 3))
    assert torch.equal(torch.cat(parts), whole)


def test_order_shows_every_item_once_a_pass_and_resumes_anywhere():
    whole = list(order(10, 4, ("k",), 0, 10))
    seen = [i for batch in whole for i in batch]
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert list(order(10, 4, ("k",), 3, 10)) == whole[3:]


def test_ema_of_constant_weights_is_the_weights_and_it_is_put_back():
    net = nn.Linear(2, 2)
    average = Average(net, 0.9)
    for _ in range(5):
        average.update()
    assert torch.allclose(average.tensors[0], net.weight)
    with torch.no_grad():
        net.weight.add_(1)
    moved = net.weight.clone()
    with average.applied():
        assert torch.allclose(net.weight, moved - 1, atol=1e-6)
    assert torch.equal(net.weight, moved)


def test_ema_follows_weights_by_its_decay_which_begins_low():
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    average, expected = Average(net, 0.25), 0.0
    for n, decay in enumerate((0.1, 2 / 11, 0.25, 0.25)):
        with torch.no_grad():
            net.weight.fill_(n + 1.0)
        average.update()
        expected = decay * expected + (1 - decay) * (n + 1)
        assert float(average.tensors[0]) == pytest.approx(expected)


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(steps=100, warmup=10, schedule="cosine")
    factors = [learning_rate_factor(config, s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert factors[-1] < 0.01
    assert learning_rate_factor(TrainingConfig(steps=5), 3) == 1


RAE = {"steps": 800, "learning_rate": 2e-4, "final_learning_rate": 2e-5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"schedule": "linear", "decay_from": 0.05}, {0: 1, 40: 1, 41: 1 - 0.9 / 760, 420: 0.55, 800: 0.1}),
        ({"schedule": "linear", "warmup": 40}, {0: 1 / 40, 39: 1, 40: 1, 420: 0.55, 800: 0.1}),
        ({"schedule": "linear", "warmup": 8, "decay_from": 0.05}, {3: 0.5, 7: 1, 40: 1, 420: 0.55, 610: 0.325}),
        ({"schedule": "linear", "final_learning_rate": 0}, {0: 1, 200: 0.75, 600: 0.25, 800: 0}),
        ({"schedule": "cosine", "warmup": 40}, {39: 1, 40: 1, 230: 0.55 + 0.45 * 2**-0.5, 420: 0.55, 800: 0.1}),
        ({"schedule": "cosine", "final_learning_rate": 2e-4}, {0: 1, 400: 1, 800: 1}),
    ],
)
def test_a_learning_rate_falls_from_where_it_says_to_where_it_says(given, expected):
    config = TrainingConfig(**RAE | given)
    assert {step: learning_rate_factor(config, step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "generator: final_learning_rate: schedule: constant does not fall; set linear or cosine, or leave it out"),
        ({"final_learning_rate": 0, "decay_from": 0.5}, "generator: decay_from: schedule: constant does not fall"),
        (
            {"schedule": "linear", "final_learning_rate": "3e-4"},
            "generator: final_learning_rate: 0.0003 is above the learning_rate of 0.0002, from which it falls; give at",
        ),
        ({"schedule": "linear", "decay_from": 1}, "generator.decay_from: expected a number, 0 to below 1, got 1"),
        (
            {"schedule": "linear", "decay_from": 0.05, "warmup": 41},
            "generator: decay_from: 0.05 of 800 steps is within the 41 of warmup, after which the fall begins any",
        ),
    ],
)
def test_a_fall_that_there_is_not_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.read(TrainingConfig, RAE | given, "generator")


def test_a_new_optimizer_has_moved_nothing():
    p = nn.Parameter(torch.ones(3))
    optimizer = adamw([p], TrainingConfig(steps=1, weight_decay=0.1), 0.1)
    assert torch.equal(p.detach(), torch.ones(3))
    assert optimizer.state[p]["step"] == 0


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


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "list"])
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
    else:
        (file.parent / "files.json").write_text("{")
    into = state(0.0)
    with pytest.warns(UserWarning, match="step-00000002.*trying the checkpoint before it"):
        assert checkpoint.load(tmp_path, into) == 1
    assert torch.equal(into["networks"]["a"]["w"], torch.full((4,), 1.0))


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
        data = bytearray(file.read_bytes())
        data[-2000] ^= 1
        file.write_bytes(data)
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


class Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


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


def test_figures_average_and_forget_what_runs_again(tmp_path):
    figures = Figures(tmp_path, "none", 0, "x")
    for i in range(4):
        figures.add({"loss": torch.tensor(float(i))})
    figures.write(10)
    figures.add({"loss": 5.0})
    figures.write(20)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3')
    assert [row["loss"] for row in read_figures(tmp_path / "log.jsonl")] == [1.5, 5.0]
    Figures(tmp_path, "none", 10, "x")
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [10]


def test_a_figure_that_is_not_finite_is_named(tmp_path):
    figures = Figures(tmp_path, "none", 0, "x")
    figures.add({"a/loss": 1.0, "b/loss": float("nan")})
    with pytest.raises(FloatingPointError, match="b/loss became nan by step 4"):
        figures.write(4)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (FloatingPointError("loss became nan by step 4"), "loss became nan by step 4"),
        (torch.linalg.LinAlgError("linalg.eigh: failed to converge"), "a matrix became NaN or infinite"),
    ],
)
def test_what_is_not_finite_is_told_with_what_helps(error, what, tmp_path):
    said = hopeless("matching", tmp_path, error, slowed=False)
    assert re.match(f"matching: {what}.* a lower --matching.learning_rate or a longer", said)


def test_figures_that_are_not_there_at_every_step_are_means_of_what_there_is(tmp_path):
    figures = Figures(tmp_path, "none", 0, "x")
    for total, count in ((3.0, 1.0), (0.0, 0.0), (5.0, 3.0)):
        figures.add({"gap": torch.tensor([total, count]), "never": torch.zeros(2), "loss": total})
    assert figures.write(3) == {"gap": 2.0, "loss": pytest.approx(8 / 3)}


def test_tensorboard_keeps_the_row_of_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, last in ((0, 3), (2, 4)):  # killed at 3, resumed from 2
        figures = Figures(tmp_path, "tensorboard", start, "x")
        for step in range(start + 1, last + 1):
            figures.add({"loss": float(step)})
            figures.write(step)
        figures.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_ranks_hear_of_each_other_one_step_later_and_in_the_last_at_once(monkeypatch):
    from dmvae.runtime import distributed

    others = iter([False, True, False, True])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def all_reduce(x, op, async_op):
        x.clamp_(min=float(next(others)))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    any_rank = distributed.SharedFlag()
    assert [any_rank(False), any_rank(False), any_rank(False), any_rank(False, now=True)] == [False, False, True, True]


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


def test_what_goes_wrong_in_the_background_is_raised_once(tmp_path):
    (tmp_path / "file").write_text("")
    background = checkpoint.Background()
    background.save(tmp_path / "file", 1, state(1.0))
    with pytest.raises(OSError, match="file"):
        background.wait()
    background.wait()


def test_rows_of_wandb_have_their_own_axis_and_a_folder_is_a_run(tmp_path, monkeypatch):
    """Its steps only grow: rows that come again, after a kill or where a training goes back, would be dropped."""
    opened, rows, axes = [], [], []
    run = SimpleNamespace(
        log=rows.append, finish=lambda: None, define_metric=lambda *a, **named: axes.append((a, named))
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: opened.append(named["id"]) or run))
    for folder in ("a/matching-0123", "a/matching-0123", "b/matching-0123"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        figures = Figures(tmp_path / folder, "wandb", 0, "x")
        figures.add({"loss": 2.0})
        figures.write(4)
        figures.close()
    assert opened[0] == opened[1] != opened[2]
    assert all(name.startswith("matching-0123-") for name in opened)
    assert rows == [{"step": 4, "loss": 2.0}] * 3
    assert axes == [(("*",), {"step_metric": "step"})] * 3
