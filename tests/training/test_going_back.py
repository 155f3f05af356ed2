"""A training that is not well goes back once with smaller rates, and stops the second time."""

import json
import math
import os
import re
import signal
from dataclasses import replace

import pytest
import torch

import tiny
from dmvae.inputs import kept_steps
from dmvae.runtime.signals import Interrupted
from dmvae.stages.matching import MatchingStage, MatchingTraining
from dmvae.training import loop
from dmvae.training.logging import read_figures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder whose run has all that matching reads."""
    folder = tmp_path_factory.mktemp("health")
    tiny.begin(write(folder), "reference")
    return folder


def write(folder, run=None, **over):
    matching = {"steps": 10, "student_steps": 1, "weight": 0.1, **over}
    given = {f"run__{name}": value for name, value in ({"save_every": 4} | (run or {})).items()}
    given |= {f"matching__{name}": value for name, value in matching.items()}
    # fewer tensors: most of the time goes into checkpoints
    return tiny.write(folder, variants={"main": {}}, losses__adversarial__weight=0.0, **given)


@pytest.fixture
def quick(monkeypatch):
    """Two steps are judged together, and trouble shows within four: from step 4 on, in step 8."""
    monkeypatch.setattr("dmvae.training.trainer.WINDOW", 2)
    for module in ("loop", "trainer"):
        monkeypatch.setattr(f"dmvae.training.{module}.LOOKBACK", 4)


def scales(monkeypatch, factor, *, once, cut=None):
    """From step 4 on, latents are scaled at every step; with `once`, until the training has gone back. At the step
    `cut` the power goes."""
    updates = MatchingStage.updates

    def scaled(self, networks, batch, rng):
        if batch.step == cut:
            raise RuntimeError("power cut")
        back = (self.inputs.out / loop.ROLLED_BACK).exists()
        if batch.step >= 4 and not (once and back):
            with torch.no_grad():
                for p in list(networks.autoencoder.bottleneck.parameters())[-2:]:
                    p.mul_(factor)
                networks.autoencoder.latent_mean.mul_(factor)
        yield from updates(self, networks, batch, rng)

    monkeypatch.setattr(MatchingStage, "updates", scaled)


def done(folder):
    return json.loads((folder / "run/main/matching/done.json").read_text())


@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_not_finite_counts_from_its_step(prepared, quick, monkeypatch, every):
    """It is noticed by step 9, from which it would go back to 6."""
    for module in ("loop", "trainer"):
        monkeypatch.setattr(f"dmvae.training.{module}.LOOKBACK", 3)
    updates = MatchingStage.updates

    def breaks(self, networks, batch, rng):
        for update in updates(self, networks, batch, rng):
            ill = batch.step == 7 and not (self.inputs.out / loop.ROLLED_BACK).exists()
            yield replace(update, loss=update.loss * (math.nan if ill else 1.0))

    monkeypatch.setattr(MatchingStage, "updates", breaks)
    tiny.run(
        write(prepared, {"log_every": every, "save_every": 3}, steps=9, weight=0.17 + every / 1000), only="matching"
    )
    assert re.match("step (7|8): .*it goes back to step 3, with all", done(prepared)["rolled_back"])


def test_a_loss_that_never_was_finite_is_told_at_once(prepared, quick, monkeypatch, capsys):
    """The second turn's is not, when it moves for the first time: smaller learning rates would not help."""
    updates = MatchingStage.updates

    def ill(self, networks, batch, rng):
        for update in updates(self, networks, batch, rng):
            yield replace(update, loss=update.loss * (math.nan if update.trains == "tokenizer" else 1.0))

    monkeypatch.setattr(MatchingStage, "updates", ill)
    with pytest.raises(FloatingPointError, match=r"The first gradient of tokenizer already was not finite.*parts of"):
        tiny.run(write(prepared, weight=0.175), only="matching")
    assert "goes back" not in capsys.readouterr().out


def test_latents_that_collapse_once_are_taken_back_with_their_snapshots(prepared, quick, monkeypatch, capsys):
    scales(monkeypatch, 0.2, once=True)
    rolled_back, found = loop._rolled_back, []

    def going_back(stage, *asked):
        there = kept_steps(stage.inputs.out)
        trainer = rolled_back(stage, *asked)
        found.append((there, kept_steps(stage.inputs.out)))
        return trainer

    monkeypatch.setattr(loop, "_rolled_back", going_back)
    tiny.run(write(prepared, weight=0.11, keep_at=[3, 5, 7]), only="matching")
    assert found == [([3, 5, 7], [3])]
    assert kept_steps(prepared / "run/main/matching") == [3, 5, 7]
    facts, out = done(prepared), capsys.readouterr().out
    assert facts["steps"] == 10
    for told in (facts["rolled_back"], out):
        assert "the latents have collapsed" in told
        assert "it goes back to step 4, with all learning rates times 0.25. To avoid this: " in " ".join(told.split())
        assert "lower matching.weight or matching.learning_rate" in " ".join(told.split())
    log = (prepared / "run/main/matching/log.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in log]
    assert steps == sorted(set(steps))
    assert json.loads(log[-1])["health/spread"] > 0.2


def test_without_a_pull_latents_go_where_they_go(prepared, quick, monkeypatch, capsys):
    """Nothing but reconstruction moves them, so their distance from the reference is no failure."""
    scales(monkeypatch, 0.4, once=False)
    tiny.run(write(prepared, weight=0.0), only="matching")
    assert "rolled_back" not in done(prepared)
    assert "goes back" not in capsys.readouterr().out
    log = (prepared / "run/main/matching/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["health/spread"] < 0.1


def test_latents_that_shrink_are_told_and_not_taken_back(prepared, quick, monkeypatch, capsys):
    scales(monkeypatch, 0.88, once=False)
    tiny.run(write(prepared, {"save_every": 100}, steps=12, weight=0.14), only="matching")
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning: the latents have shrunk") == 1
    assert "raise matching.student_steps" in said
    assert "rolled_back" not in done(prepared)


def test_killed_before_and_after_it_went_back_it_ends_the_same(prepared, quick, monkeypatch):
    """It goes back at step 8, from 3 on; the checkpoints of 3 and 9 are of half a window."""
    path, found = write(prepared, {"save_every": 3}, weight=0.12), []
    for cuts in ((), (7, 9)):
        for cut in cuts:
            with monkeypatch.context() as patch:
                scales(patch, 0.2, once=True, cut=cut)
                with pytest.raises(RuntimeError, match="power cut"):
                    tiny.run(path, only="matching")
        with monkeypatch.context() as patch:
            scales(patch, 0.2, once=True)
            tiny.run(path, only="matching")
        assert "step 8: " in done(prepared)["rolled_back"]
        found.append(tiny.weights(prepared / "run"))
        for name in ("done.json", loop.ROLLED_BACK):
            (prepared / "run/main/matching" / name).unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_it_goes_back_as_far_where_it_is_noticed_late(prepared, quick, monkeypatch):
    """Two windows are out of bounds by step 8, from which it goes back past 5; a row of the log may come later."""
    scales(monkeypatch, 0.2, once=True)
    found = []
    for every in (2, 100):
        tiny.run(write(prepared, {"log_every": every, "save_every": 5}, weight=0.13), only="matching")
        assert "step 8: " in done(prepared)["rolled_back"]
        assert "it goes back to step 0" in done(prepared)["rolled_back"]
        found.append(tiny.weights(prepared / "run"))
        for name in ("done.json", loop.ROLLED_BACK):
            (prepared / "run/main/matching" / name).unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_signal_that_comes_with_trouble_stops_it_once_it_has_gone_back(prepared, quick, monkeypatch):
    advance = loop.Trainer.advance

    def troubled(trainer, batch, figures):
        last = advance(trainer, batch, figures)
        if trainer.step == 8 and not trainer.slowed:
            os.kill(os.getpid(), signal.SIGTERM)
            figures.add({"loss": torch.tensor(math.nan)})
        return last

    path = write(prepared, weight=0.18)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "advance", troubled)
        with pytest.raises(Interrupted):
            tiny.run(path, only="matching")
    folder = prepared / "run/main/matching"
    assert (folder / loop.ROLLED_BACK).exists()
    assert not (folder / "done.json").exists()
    tiny.run(path, only="matching")
    assert "rolled_back" in done(prepared)


@pytest.mark.parametrize(
    ("factor", "over", "message"),
    [
        (0.2, {}, "the latents have collapsed.*although it went back before.*lower matching.weight"),
        (1.25, {"student_learning_rate": 0.0}, "student does not keep up.*of tokenizer times.*raise matching.stud"),
        (1.0, {"learning_rate": 1e3, "warmup": 0}, "matching: .*although it went back before.*lower"),
        (0.2, {"learning_rate": 0.0}, "the latents have collapsed: [^(]*; from the same settings it always will"),
    ],
)
def test_what_does_not_get_well_is_an_error_the_second_time(prepared, quick, monkeypatch, factor, over, message):
    scales(monkeypatch, factor, once=False)
    with pytest.raises(FloatingPointError, match=message):
        tiny.run(write(prepared, steps=30, **over), only="matching")


def test_what_is_not_finite_is_not_saved_where_a_batch_is_waited_for(prepared, monkeypatch):
    """Ctrl-C between two rows of the log, after a weight has become NaN or a gradient's norm has overflowed."""

    class Interrupting:
        def __init__(self, data):
            self.data = data

        def __iter__(self):
            return self

        def __next__(self):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return next(self.data)

        def close(self):
            self.data.close()

    batches, advance = loop.batches, loop.Trainer.advance

    def poisoned(trainer, *given):
        with monkeypatch.context() as patch:
            if trainer.step == 1 and Interrupting.poison == "norm":
                patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(math.inf))
            last = advance(trainer, *given)
        if trainer.step == 3 and Interrupting.poison == "weight":
            next(trainer.networks.autoencoder.parameters()).data.fill_(float("nan"))
        return last

    monkeypatch.setattr(loop, "batches", lambda *given: Interrupting(batches(*given)))
    monkeypatch.setattr(loop.Trainer, "advance", poisoned)
    path = write(prepared, {"save_every": 100, "log_every": 100}, weight=0.17)
    for left, poison in ((3, "weight"), (3, "norm"), (3, None), (0, None), (2, None)):
        Interrupting.left, Interrupting.poison = left, poison
        with pytest.raises(KeyboardInterrupt) as stop:
            tiny.run(path, only="matching")
        assert isinstance(stop.value, Interrupted) == (poison is None), "which says that the state was saved"
        assert bool(list(prepared.glob("run/main/matching/checkpoints/step-*"))) == (poison is None)
    rows = read_figures(prepared / "run/main/matching/log.jsonl")
    assert [row["step"] for row in rows] == [3, 5], "none for no step"
    assert all("student/loss" in row for row in rows)


def test_a_training_that_is_well_is_the_same_without(prepared, quick):
    found = []
    for rollback in (True, False):
        tiny.run(write(prepared, {"save_every": 100}, steps=6, rollback=rollback), only="matching")
        assert "rolled_back" not in done(prepared)
        found.append({name: value for name, value in tiny.weights(prepared / "run").items() if "/matching/" in name})
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert MatchingTraining(steps=1).rollback
