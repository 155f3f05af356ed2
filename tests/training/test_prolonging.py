"""A training of more steps goes on from one of fewer, and ends where it would have ended without it."""

import json
import os
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import cli, prolonging
from dmvae.runtime.done import damage, read_done
from dmvae.runtime.files import locked
from dmvae.stages.generator import GeneratorStage
from dmvae.training.checkpoint import steps
from dmvae.training.trainer import Trainer
from plans import count_only, rows

FAST = {"generator__learning_rate": 1e-2, "generator__ema": 0.5, "reference__learning_rate": 1e-2}
NETWORK = {"generator": ("kl", "generator"), "reference": ("matched", "teacher")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stage -> weights and steps of the log of a training of ten steps that had nothing to go on from."""
    found = {}
    for stage, (variant, network) in NETWORK.items():
        folder = tmp_path_factory.mktemp(stage)
        here = train(folder, stage, variant, 10)
        found[stage] = load_file(here / network / "diffusion_pytorch_model.safetensors"), logged(here)
    return found


def train(folder, stage, variant, count, **over):
    """Train the stage for so many steps; returns its folder."""
    path = tiny.write(folder, **(FAST | {f"{stage}__steps": count} | over))
    jobs = tiny.run(path, variant, until=stage)
    return next(job.folder for job in jobs if job.stage.name == stage)


def logged(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def begun(capsys):
    """Whether a training went on from another, and from which step."""
    told = " ".join(capsys.readouterr().out.split()).partition("goes on from step ")[2]
    return int(told.split()[0]) if told else None


@pytest.mark.parametrize("stage", NETWORK)
def test_more_steps_go_on_where_fewer_ended_and_end_as_if_they_had_not(tmp_path, stage, whole, capsys):
    variant, network = NETWORK[stage]
    few = train(tmp_path, stage, variant, 6)
    assert steps(few / "checkpoints") == [6]
    first = load_file(few / network / "diffusion_pytorch_model.safetensors")
    assert begun(capsys) is None
    more = train(tmp_path, stage, variant, 10, **{f"{stage}__keep_at": [6]})
    assert begun(capsys) == 6
    weights, rows = whole[stage]
    assert same(weights, load_file(more / network / "diffusion_pytorch_model.safetensors"))
    assert not same(weights, first)
    assert logged(more) == rows
    assert read_done(more)["steps"] == 10
    assert steps(more / "checkpoints") == [10]
    kept = more / "snapshots/step-00000006" / network / "diffusion_pytorch_model.safetensors"
    assert same(first, load_file(kept)), "the end of the shorter training, which kept no snapshot of it"
    assert damage(few, read_done(few)) is None
    assert steps(few / "checkpoints") == [6], "the shorter training can be gone on from again"


def killed(folder, count, at, **over):
    """Train the generator for so many steps, and kill it at step `at`; returns its folder."""
    with tiny.cut(GeneratorStage, at, saved="run__save_every" in over):
        train(folder, "generator", "kl", count, **over)
    return next(file.parents[1] for file in folder.glob("run/stages/generator-*/checkpoints/planned.json"))


def test_an_interrupted_training_is_gone_on_from_too(tmp_path, whole, capsys):
    killed(tmp_path, 8, 5, run__save_every=2, generator__keep_at=[3])
    capsys.readouterr()
    more = train(tmp_path, "generator", "kl", 10, run__save_every=2, generator__keep_at=[3])
    assert begun(capsys) == 4
    assert same(whole["generator"][0], load_file(more / "generator/diffusion_pytorch_model.safetensors"))
    assert (more / "snapshots/step-00000003/generator/config.json").is_file()


def test_a_damaged_state_gives_way_to_the_one_before_it(tmp_path, whole, capsys):
    few = killed(tmp_path, 8, 5, run__save_every=2)
    file = next((few / "checkpoints/step-00000004").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        more = train(tmp_path, "generator", "kl", 10, run__save_every=2)
    assert "resumes at step 2 of 10" in capsys.readouterr().out
    assert same(whole["generator"][0], load_file(more / "generator/diffusion_pytorch_model.safetensors"))
    assert logged(more) == whole["generator"][1]


def test_what_an_own_start_without_a_checkpoint_left_is_replaced(tmp_path, whole, capsys):
    over = {"run__picture_every": 2, "generator__keep_at": [3]}
    more = killed(tmp_path, 10, 3, **over)
    shutil.rmtree(more / "snapshots/step-00000003/generator")  # killed while it was written
    train(tmp_path, "generator", "kl", 6, **over)
    capsys.readouterr()
    train(tmp_path, "generator", "kl", 10, **over)
    assert begun(capsys) == 6
    assert logged(more) == whole["generator"][1]
    assert [int(file.stem[5:]) for file in sorted(more.glob("pictures/*"))] == [2, 4, 6, 8, 10]
    assert (more / "snapshots/step-00000003/generator/config.json").is_file()


def test_pictures_of_later_steps_are_not_taken(tmp_path):
    longer = killed(tmp_path, 10, 5, run__save_every=3, run__picture_every=1)
    few = train(tmp_path, "generator", "kl", 3, run__picture_every=1)
    assert few != longer
    assert [int(file.stem[5:]) for file in sorted(few.glob("pictures/*"))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"run__keep_state": False}, {}),
        ({"generator__schedule": "cosine"}, {"generator__schedule": "cosine"}),
        ({}, {"generator__batch_size": 4}),
        ({}, {"generator__keep_at": [3]}),
        ({}, {"run__keep_every": 2}),
        ({}, {"seed": 1}),
        ({"generator__steps": 12}, {}),
    ],
)
def test_other_trainings_begin_anew(tmp_path, before, after, capsys):
    """The state was not kept, other steps have other learning rates, another batch, snapshots that were passed, another
    seed, and a training that is longer already."""
    train(tmp_path, "generator", "kl", 6, **before)
    more = train(tmp_path, "generator", "kl", 8, **after)
    assert begun(capsys) is None
    assert read_done(more)["steps"] == 8


def test_a_kill_while_the_state_is_taken_over_loses_nothing(tmp_path, whole, monkeypatch, capsys):
    train(tmp_path, "generator", "kl", 6)
    link = prolonging._link
    monkeypatch.setattr(prolonging, "_link", lambda *of: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, "generator", "kl", 10)
    monkeypatch.setattr(prolonging, "_link", link)
    more = train(tmp_path, "generator", "kl", 10)
    assert begun(capsys) == 6
    assert same(whole["generator"][0], load_file(more / "generator/diffusion_pytorch_model.safetensors"))
    assert logged(more) == whole["generator"][1]


def test_another_user_s_files_are_copied(tmp_path, monkeypatch, capsys):
    train(tmp_path, "generator", "kl", 6)
    monkeypatch.setattr(os, "geteuid", lambda uid=os.geteuid(): uid + 1)
    monkeypatch.setattr(os, "link", lambda *of: pytest.fail("a file whose permissions cannot be set"))
    train(tmp_path, "generator", "kl", 8)
    assert begun(capsys) == 6


def test_a_training_that_another_process_runs_is_left_alone(tmp_path, monkeypatch, capsys):
    few = killed(tmp_path, 6, 5, run__save_every=2)
    monkeypatch.setattr(prolonging, "MOMENT", 0.2)
    with locked(few):
        train(tmp_path, "generator", "kl", 8)
    assert begun(capsys) is None


def test_a_process_that_looks_through_a_finished_training_is_waited_for(tmp_path, monkeypatch, capsys):
    """As one does that has just started, or that goes on from it too."""
    few = train(tmp_path, "generator", "kl", 6)
    monkeypatch.setattr(prolonging, "MOMENT", 0.0)
    looks = ExitStack()
    assert looks.enter_context(locked(few))
    monkeypatch.setattr(prolonging.time, "sleep", lambda _: looks.close())
    train(tmp_path, "generator", "kl", 8)
    assert begun(capsys) == 6


def test_a_damaged_network_is_written_again_from_the_state(tmp_path, monkeypatch, capsys):
    few = train(tmp_path, "generator", "kl", 6)
    weights = few / "generator/diffusion_pytorch_model.safetensors"
    first = load_file(weights)
    weights.unlink()
    monkeypatch.setattr(Trainer, "advance", lambda *of: pytest.fail("trained again"))
    train(tmp_path, "generator", "kl", 6)
    assert "the stage is run again" in " ".join(capsys.readouterr().out.split())
    assert same(first, load_file(weights))


def test_a_damaged_snapshot_is_trained_again(tmp_path, whole, capsys):
    """Also where the shorter training has it: its files are the same ones."""
    over = {"generator__keep_at": [3]}
    train(tmp_path, "generator", "kl", 6, **over)
    more = train(tmp_path, "generator", "kl", 10, **over)
    file = more / "snapshots/step-00000003/generator/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    with file.open("r+b") as held:
        held.seek(-1, 2)
        held.write(bytes([content[-1] ^ 1]))
    capsys.readouterr()
    train(tmp_path, "generator", "kl", 10, **over)
    assert begun(capsys) is None
    assert file.read_bytes() == content
    assert damage(more, read_done(more)) is None


def test_a_plan_says_it(tmp_path, monkeypatch, capsys):
    train(tmp_path, "generator", "kl", 6)
    count_only(monkeypatch)  # a step of each stage is one operation
    path = tiny.write(tmp_path, **FAST, generator__steps=9)
    capsys.readouterr()
    second = ["--gpus", "1", "--peak", "1e-12", "--utilisation", "1"]  # an operation each
    cli.main(["plan", str(path), "--variant", "kl", "--generator.ema", "0.6", *second])
    anew = capsys.readouterr().out
    cli.main(["plan", str(path), "--variant", "kl", *second])
    told = capsys.readouterr().out
    assert "from step 6" in told
    assert "begins anew" not in told
    assert "9.0 s of training, " in anew
    assert "3.0 s of training, " in told, "what is to do is what is left"
    assert rows(told, "generator")[1][5] == "9.0 s", "of all its steps"


def test_a_plan_says_from_which_checkpoint_a_stopped_training_goes_on(tmp_path, monkeypatch, capsys):
    count_only(monkeypatch)
    path = tiny.write(tmp_path, **FAST, generator__steps=9, run__save_every=4)
    with tiny.cut(GeneratorStage, 6):
        tiny.run(path, "kl", until="generator")
    capsys.readouterr()
    cli.main(["plan", str(path), "--variant", "kl"])
    told = rows(capsys.readouterr().out, "generator")
    assert told[0][-1] == "from step 4"
    assert len(told[1]) == 6, "no column of times that nobody knows"
