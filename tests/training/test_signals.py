"""A wish to stop: taken once, whoever repeats it, and never lost."""

import json
import os
import signal
import time

import pytest

import tiny
from dmvae import cli
from dmvae.runtime import signals as module
from dmvae.runtime.signals import Interrupted, signals
from dmvae.training import loop


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture
def heard():
    """SIGHUP, also where nohup began these tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_one_wish_may_come_several_times_at_once(number, monkeypatch, heard):
    """torchrun sends on what it gets: where all processes of a job are stopped, ranks are told twice."""
    before = [signal.getsignal(s) for s in module.SIGNALS]
    with signals() as received:
        send(number)
        send(signal.SIGTERM)
        assert received == [number]
        monkeypatch.setattr(module, "AGAIN", -1.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert [signal.getsignal(s) for s in module.SIGNALS] == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals() as received:
            send(signal.SIGHUP)
            assert not received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_is_not_pythons_stays(monkeypatch):
    """Of a program that embeds Python and has set its own: getsignal says None, and signal takes none back."""
    before, known = signal.getsignal(signal.SIGINT), signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda s: None if s == signal.SIGINT else known(s))
    with signals() as received:
        assert known(signal.SIGINT) is before
        send(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert known(signal.SIGINT) is before


def test_a_command_that_a_script_began_with_an_ampersand_can_be_stopped(capsys):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cli.main(["--version"])
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "last", "stage"),
    [
        (loop.Trainer, "save_networks", lambda trainer: trainer.stage.name),
        (loop.Figures, "close", lambda figures: figures.path.parent.name),
    ],
    ids=["saving", "closing"],
)
def test_a_signal_at_the_very_end_of_a_stage_stops_before_the_next(tmp_path, monkeypatch, owner, last, stage):
    path = tiny.write(tmp_path)
    act = getattr(owner, last)

    def stopped(self, *given):
        if stage(self).startswith("tokenizer"):
            send(signal.SIGTERM)
        act(self, *given)

    monkeypatch.setattr(owner, last, stopped)
    with pytest.raises(Interrupted):
        tiny.run(path, "kl")
    run = tmp_path / "run"
    assert json.loads((run / "kl/tokenizer/done.json").read_text())["steps"] == 6
    assert not (run / "kl/latents/done.json").exists()
    monkeypatch.undo()
    tiny.run(path, "kl")
    assert (run / "kl/evaluate/done.json").exists()


@pytest.mark.slow
def test_a_state_that_could_not_be_saved_is_not_said_to_be(tmp_path, monkeypatch):
    """A loss has become NaN, and while the next batch does not come a signal does."""
    path = tiny.write(tmp_path)

    def never(*_):
        yield from ()
        raise KeyboardInterrupt

    def trouble(self):
        raise FloatingPointError("loss is NaN")

    monkeypatch.setattr(loop, "batches", never)
    monkeypatch.setattr(loop.Trainer, "require_finite", trouble)
    with pytest.raises(KeyboardInterrupt) as stop:
        tiny.run(path, "kl")
    assert not isinstance(stop.value, Interrupted)
