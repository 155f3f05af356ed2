"""Output that nobody can take: to a closed pipe, a full disk, a log in ASCII, a terminal that is gone."""

import errno
import io
import os
import subprocess
import sys

import pytest

import processes
import tiny
from dmvae import cli
from dmvae.runtime import console as terminal
from dmvae.runtime.console import Bar, console, require_printed

pytestmark = pytest.mark.slow


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    for command in ("--help", "recipes"):
        line = f"{sys.executable} -m dmvae {command} | head -n 1; exit ${{PIPESTATUS[0]}}"
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=processes.environment())
        assert result.stderr == ""
        assert len(result.stdout.splitlines()) == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    told = processes.Command("run", "smoke", "--help", out=str(pipe))
    pipe.open().close()
    result = told.result()
    assert (result.returncode, result.stderr) == (1, "")
    closed = f"{sys.executable} -m dmvae --help | true"
    assert subprocess.run(["bash", "-c", closed], capture_output=True, env=processes.environment()).stderr == b""


def cold(*arguments):
    """For commands that import no torch: without the start of the process that others are forked from. Python shall
    keep what it could not write, and try again at its end, which PYTHONUNBUFFERED would take from it."""
    with open("/dev/full", "w") as full:
        line, env = [sys.executable, "-m", "dmvae", *arguments], processes.environment() | {"PYTHONUNBUFFERED": ""}
        return subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, env=env)


def forked(*arguments):
    return processes.command(*arguments, out="/dev/full")


@pytest.mark.parametrize(
    ("start", "command"),
    [(cold, "--version"), (cold, "recipes"), (forked, "run smoke --help"), (forked, "encode --help")],
)
def test_what_cannot_be_listed_is_told(start, command):
    result = start(*command.split())
    assert result.returncode == 1
    assert result.stderr.startswith("dmvae: No space left on device: standard output; ")
    assert len(result.stderr.splitlines()) == 1


class Full(io.StringIO):
    """A log on a disk without room."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


class Left(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("log", [Full, Left])
def test_what_cannot_be_printed_ends_no_training(monkeypatch, log):
    monkeypatch.setattr(sys, "stdout", log())
    monkeypatch.setattr(terminal.time, "monotonic", iter(range(0, 10_000, 20)).__next__)  # so every step is told
    console.print("data: 3 images")
    with Bar("stage", 2, "images") as bar:
        bar.step()
        bar.step()
    assert bar.done == 2
    with pytest.raises(OSError, match="standard output"):
        require_printed()
    require_printed()  # it is told once


def test_a_training_whose_log_is_full_ends_well_and_a_dry_run_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr("dmvae.pipeline.run", lambda *_, **__: console.print("tokenizer: trained"))
    line = ["tokenizer", str(tiny.write(tmp_path))]
    cli.main(line)
    with pytest.raises(SystemExit) as stop:
        cli.main([*line, "--dry-run"])
    assert stop.value.code == 1


def test_a_log_in_ascii_has_no_arrows_and_no_error(monkeypatch):
    log = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(cli, "_dispatch", lambda _: console.print("gFD \u2193 in bild\u00e4r"))
    cli.main([])
    assert log.buffer.getvalue() == b"gFD ? in bild?r\n"


def test_without_a_stdout_a_command_ends_well(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(cli, "_dispatch", lambda _: None)
    cli.main([])


def test_a_terminal_that_closes_while_a_bar_is_shown_ends_no_training(monkeypatch):
    """rich puts a stand-in of its own in the place of standard output then."""

    class Terminal(io.StringIO):
        closed_by_user = False

        def isatty(self):
            return True

        def write(self, text):
            if self.closed_by_user:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Bar("stage", 2, "images") as bar:
        assert bar.progress
        bar.step()
        console.print("a warning")
        print("of somebody else")
        shown.closed_by_user = True
        console.print("another")
        bar.step()
    assert "a warning" in shown.getvalue()
    assert "of somebody else" in shown.getvalue()
    assert "another" not in shown.getvalue()
