"""A training that is not well is noticed, goes back once with smaller rates, and stops the second time."""

import json
import math
import os
import random
import re
import signal
from dataclasses import replace

import pytest
import torch

import tiny
from dmvae.inputs import kept_steps
from dmvae.runtime import distributed
from dmvae.runtime.signals import Interrupted
from dmvae.stages.bounds import BOUNDS, spread
from dmvae.stages.matching import MatchingStage, MatchingTraining
from dmvae.training import checkpoint, loop
from dmvae.training.health import Bound, Health, Unwell
from dmvae.training.logging import read_figures

pytestmark = pytest.mark.slow

LOSS = Bound(figure="loss", usual=1.0, above=2.0, means="it grows", advice="less")
SPREAD = Bound(figure="spread", usual=1.0, below=0.2, means="it shrinks", advice="less")


def judged(bound, windows):
    """The number of the window at whose end it is found unwell, or None."""
    health = Health([bound], torch.device("cpu"))
    for i, window in enumerate(windows):
        for value in window:
            health.add({"other": 9.0} if value is None else {bound.figure: torch.tensor(float(value))})
        health.end_window(i)
        try:
            health.judge()
        except Unwell:
            return i
    return None


@pytest.mark.parametrize(
    ("bound", "windows", "found"),
    [
        (LOSS, [[1, 3], [3.9, 4.0], [4.1, 4.1], [5, 5]], 3),  # the bound is twice the first mean
        (LOSS, [[0.1], [1.9], [2.1], [1.9], [2.1]], None),  # or twice what is usual; one window alone is chance
        (LOSS, [[0.1], [2.1], [None], [2.1]], 3),  # a window without the figure says nothing
        (LOSS, [[1], [math.nan]], 1),
        (LOSS, [[math.inf]], 0),
        (SPREAD, [[3], [0.25], [0.19], [0.1]], 3),
        (SPREAD, [[0.1], [0.03], [0.03]], None),  # it began small
    ],
)
def test_two_windows_out_of_bounds_are_not_well(bound, windows, found):
    assert judged(bound, windows) == found


def test_what_is_halfway_out_of_bounds_is_told_once():
    bound = replace(SPREAD, warns=0.5, warning="it is thin")
    health, told = Health([bound], torch.device("cpu")), []
    for step, value in enumerate([1.0, 0.4, 0.6, 0.4, 0.4, 0.4, 0.9, 0.3, 0.3], 1):
        health.add({"spread": value})
        health.end_window(step)
        told += health.judge()
    assert told == ["warning: it is thin: spread is 0.4 by step 5"]


def test_ranks_are_judged_together(monkeypatch):
    """One is well, at 1.5 times its start; the mean with another's 3 is not."""
    for other, well in ((1.0, True), (3.0, False)):
        health = Health([LOSS], torch.device("cpu"))
        for step, (own, theirs) in enumerate([(1.0, 1.0), (1.5, other), (1.5, other)], 1):
            sums = torch.tensor([[theirs, 1.0]])
            monkeypatch.setattr(distributed, "average", lambda x, sums=sums: (x + sums) / 2)
            health.add({"loss": own})
            health.end_window(step)
            if well or step < 3:  # two windows in a row
                health.judge()
            else:
                with pytest.raises(Unwell, match=r"loss is 2\.25"):
                    health.judge()


def test_a_checkpoint_has_all_that_is_judged():
    health = Health([LOSS], torch.device("cpu"))
    health.add({"loss": 1.0})
    health.end_window(1)
    health.judge()
    health.add({"loss": 3.0})
    again = Health([LOSS], torch.device("cpu"))
    again.state.copy_(health.state)
    for one in (health, again):
        one.end_window(2)
        one.judge()
        one.add({"loss": 3.0})
        one.end_window(3)
        with pytest.raises(Unwell):
            one.judge()


def test_windows_that_are_judged_late_are_judged_as_they_were():
    """Trouble of the second and the third window is told of the third, although the fourth is well."""
    soon, late = (Health([LOSS], torch.device("cpu")) for _ in range(2))
    for step, value in enumerate([1.0, 3.0, 4.0, 1.0], 1):
        for health in (soon, late):
            health.add({"loss": torch.tensor(value)})
            health.end_window(step)
        if step < 3:
            soon.judge()
        elif step == 3:
            with pytest.raises(Unwell, match="loss is 4, and was 1 at the start"):
                soon.judge()
    with pytest.raises(Unwell, match="loss is 4, and was 1 at the start") as error:
        late.judge()
    assert error.value.step == 3
    assert torch.equal(soon.state[:, 2:], late.state[:, 2:])


@pytest.mark.parametrize("before", [{}, {"approach": {"recent": torch.ones(3)}}])
def test_a_checkpoint_that_does_not_know_of_health_or_of_what_was_measured_is_read(tmp_path, before):
    checkpoint.save(tmp_path, 1, {"networks": {"w": torch.ones(2), **before}})
    state = {
        "networks": {"w": torch.zeros(2), "approach": {"recent": torch.zeros(3), "labels": torch.full((3,), -1)}},
        "health": {"state": torch.full((1, 4), 7.0)},
    }
    assert checkpoint.load(tmp_path, state, optional=loop.LATER) == 1
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


def test_the_first_step_that_is_not_finite_is_known_however_late_it_is_told():
    health = Health([Bound(figure="x", usual=1.0, means="", advice="")], torch.device("cpu"))
    for step, value in enumerate((1.0, math.inf, math.nan, 2.0), 1):
        assert health.ill_since() == (None if step < 3 else 2)
        health.see(torch.tensor(value), step)
    assert health.ill_since() == 2


@pytest.mark.parametrize("every", [1, 7, 100])
def test_a_loss_that_is_not_finite_counts_from_its_step(prepared, quick, monkeypatch, every):
    updates = MatchingStage.updates

    def breaks(self, networks, batch, rng):
        for update in updates(self, networks, batch, rng):
            ill = batch.step == 11 and not (self.inputs.out / loop.ROLLED_BACK).exists()
            yield replace(update, loss=update.loss * (math.nan if ill else 1.0))

    monkeypatch.setattr(MatchingStage, "updates", breaks)
    over = {"run__log_every": every, "run__save_every": 5, "matching__weight": 0.17 + every / 1000}
    values = {"matching__steps": 16, "matching__student_steps": 1} | over
    tiny.run(tiny.write(prepared, variants={"main": {}}, **values), only="matching")
    assert re.match("step (11|12): .*it goes back to step 5, with all", done(prepared)["rolled_back"])


def test_the_spread_is_that_about_the_mean_of_each_place():
    z = torch.randn(64, 3, 2, 2) * 0.5 + 7 * torch.randn(1, 3, 2, 2)
    assert float(spread(z)) == pytest.approx(0.5, rel=0.1)
    assert float(spread(torch.ones(4, 3, 2, 2))) == 0


def test_a_matching_watches_what_it_logs():
    watched = {bound.figure for bound in BOUNDS}
    assert watched == {"health/spread", "health/error", "student/lag", "distance/whole", "distance/token"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder whose run has all that matching reads."""
    folder = tmp_path_factory.mktemp("health")
    tiny.run(write(folder), until="reference")
    return folder


def write(folder, **over):
    values = {"steps": 16, "student_steps": 1, "weight": 0.1, **over}
    return tiny.write(folder, variants={"main": {}}, **{f"matching__{name}": value for name, value in values.items()})


@pytest.fixture
def quick(monkeypatch):
    """Two steps are judged together, and trouble shows within four."""
    monkeypatch.setattr(loop, "WINDOW", 2)
    monkeypatch.setattr(loop, "LOOKBACK", 4)


def scales(monkeypatch, factor, *, once, cut=None):
    """From step 8 on, latents are scaled at every step; with `once`, until the training has gone back. At the step
    `cut` the power goes."""
    updates = MatchingStage.updates

    def scaled(self, networks, batch, rng):
        if batch.step == cut:
            raise RuntimeError("power cut")
        back = (self.inputs.out / loop.ROLLED_BACK).exists()
        if batch.step >= 8 and not (once and back):
            with torch.no_grad():
                for p in list(networks.autoencoder.bottleneck.parameters())[-2:]:
                    p.mul_(factor)
                networks.autoencoder.latent_mean.mul_(factor)
        yield from updates(self, networks, batch, rng)

    monkeypatch.setattr(MatchingStage, "updates", scaled)


def done(folder):
    return json.loads((folder / "run/main/matching/done.json").read_text())


def test_latents_that_collapse_once_are_taken_back(prepared, quick, monkeypatch, capsys):
    scales(monkeypatch, 0.2, once=True)
    tiny.run(write(prepared, weight=0.11), only="matching")
    facts, out = done(prepared), capsys.readouterr().out
    assert facts["steps"] == 16
    for told in (facts["rolled_back"], out):
        assert "the latents have collapsed" in told
        assert "it goes back to step 6, with all learning rates times 0.25. So that" in " ".join(told.split())
        assert "lower matching.weight or matching.learning_rate" in " ".join(told.split())
    log = (prepared / "run/main/matching/log.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in log]
    assert steps == sorted(set(steps))
    assert json.loads(log[-1])["health/spread"] > 0.2


def test_snapshots_of_what_is_taken_back_go_too(prepared, quick, monkeypatch):
    scales(monkeypatch, 0.2, once=True)
    rolled_back, found = loop._rolled_back, []

    def going_back(stage, *asked):
        there = kept_steps(stage.inputs.out)
        trainer = rolled_back(stage, *asked)
        found.append((there, kept_steps(stage.inputs.out)))
        return trainer

    monkeypatch.setattr(loop, "_rolled_back", going_back)
    tiny.run(write(prepared, weight=0.15, keep_at=[5, 8, 10]), only="matching")
    assert found == [([5, 8, 10], [5])]
    assert kept_steps(prepared / "run/main/matching") == [5, 8, 10]


def test_latents_that_shrink_are_told_and_not_taken_back(prepared, quick, monkeypatch, capsys):
    scales(monkeypatch, 0.88, once=False)
    tiny.run(write(prepared, weight=0.14), only="matching")
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning: the latents have shrunk") == 1
    assert "raise matching.student_steps" in said
    assert "rolled_back" not in done(prepared)


def test_killed_before_and_after_it_went_back_it_ends_the_same(prepared, quick, monkeypatch):
    """It goes back at step 12, from 6 on."""
    path, found = write(prepared, weight=0.12), []
    for cuts in ((), (11, 13)):
        for cut in cuts:
            with monkeypatch.context() as patch:
                scales(patch, 0.2, once=True, cut=cut)
                with pytest.raises(RuntimeError, match="power cut"):
                    tiny.run(path, only="matching")
        with monkeypatch.context() as patch:
            scales(patch, 0.2, once=True)
            tiny.run(path, only="matching")
        assert "step 12: " in done(prepared)["rolled_back"]
        found.append(tiny.weights(prepared / "run"))
        for name in ("done.json", loop.ROLLED_BACK):
            (prepared / "run/main/matching" / name).unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_it_goes_back_as_far_where_it_is_noticed_late(prepared, quick, monkeypatch):
    """Two windows are out of bounds by step 12, from which it goes back past 9; a row of the log may come later."""
    scales(monkeypatch, 0.2, once=True)
    found = []
    for every in (2, 100):
        path = tiny.write(
            prepared,
            variants={"main": {}},
            run__log_every=every,
            run__save_every=9,
            matching__steps=16,
            matching__student_steps=1,
            matching__weight=0.13,
        )
        tiny.run(path, only="matching")
        assert "step 12: " in done(prepared)["rolled_back"]
        assert "it goes back to step 0" in done(prepared)["rolled_back"]
        found.append(tiny.weights(prepared / "run"))
        for name in ("done.json", loop.ROLLED_BACK):
            (prepared / "run/main/matching" / name).unlink()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_signal_that_comes_with_trouble_stops_it_once_it_has_gone_back(prepared, quick, monkeypatch):
    advance = loop.Trainer.advance

    def troubled(trainer, batch, figures):
        last = advance(trainer, batch, figures)
        if trainer.step == 12 and not trainer.slowed:
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
    own = {"steps": 16, "student_steps": 1, "weight": 0.17}
    own = {f"matching__{name}": value for name, value in own.items()}
    path = tiny.write(prepared, variants={"main": {}}, run__save_every=100, run__log_every=100, **own)
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
        tiny.run(write(prepared, rollback=rollback), only="matching")
        assert "rolled_back" not in done(prepared)
        found.append({name: value for name, value in tiny.weights(prepared / "run").items() if "/matching/" in name})
    assert found[0].keys() == found[1].keys() != set()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert MatchingTraining(steps=1).rollback
