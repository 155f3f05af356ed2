"""Figures of a training: their means, the rows of the log, and the trackers."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

import tiny
from dmvae.recipe import load
from dmvae.training.health import hopeless
from dmvae.training.logging import Figures, read_figures, values_of


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


def test_trackers_get_the_recipe_and_wandb_its_project(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = load(tiny.write(tmp_path, decoder__steps=3))["matched"]
    values = values_of(recipe, "decoder")
    assert values["decoder"]["steps"] == 3
    assert {"name", "seed", "run", "data", "autoencoder", "losses"} < values.keys()
    assert not {"tokenizer", "generator", "evaluate"} & values.keys()
    opened = []
    run = SimpleNamespace(finish=lambda: None, define_metric=lambda *a, **named: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: opened.append(named) or run))
    for project in ("", "mine"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        Figures(tmp_path, "wandb", 0, "x", values).close()
    assert [named["project"] for named in opened] == ["dmvae", "mine"]
    assert all(named["config"] == values for named in opened)
    json.dumps(values)
    Figures(tmp_path, "tensorboard", 0, "x", values).close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("recipe/text_summary")
    (text,) = events[0].tensor_proto.string_val
    fence, *lines, last = text.decode().split("\n")
    assert fence == last == "```"
    assert yaml.safe_load("\n".join(lines)) == values
