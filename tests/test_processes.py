"""`--processes N`: several processes share a recipe's stages out."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import processes
import tiny
from dmvae import cli
from dmvae.commands import processes as side
from dmvae.commands.parser import CheckFailed
from dmvae.commands.processes import environments, side_by_side
from dmvae.commands.run import run
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime import console as bars
from dmvae.runtime.done import read_done
from dmvae.runtime.files import locked
from dmvae.runtime.signals import Interrupted
from dmvae.training.checkpoint import steps
from dmvae.training.loop import CHECKPOINTS

ONE_THREAD = processes.PLAIN | {"OMP_NUM_THREADS": "1"}


def test_without_a_gpu_each_has_its_share_of_the_cpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [env["OMP_NUM_THREADS"] for env in environments(3)] == ["2", "2", "2"]
    assert {env["OMP_NUM_THREADS"] for env in environments(20)} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert {env["OMP_NUM_THREADS"] for env in environments(3)} == {"5"}
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [env["OMP_NUM_THREADS"] for env in environments(2)] == ["3", "3"]


@pytest.mark.parametrize(("visible", "expected"), [(None, ["0", "1", "0"]), ("4,7", ["4", "7", "4"])])
def test_gpus_go_round(monkeypatch, visible, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments(3)] == expected


class Forked(processes.Command):
    """In place of a process that would import torch first."""

    def __init__(self, words, variables):
        pipe = Path(tempfile.mkdtemp()) / "pipe"
        os.mkfifo(pipe)
        super().__init__(*words, out=str(pipe), **variables)
        self.stdout, self.kill, self.send_signal = pipe.open(), self.process.kill, self.signal

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode


@pytest.mark.slow
def test_two_share_the_stages_out_and_leave_what_one_does(tmp_path, monkeypatch, capsys, plain_report):
    two = {"a": tiny.RECIPE["variants"]["kl"], "b": tiny.RECIPE["variants"]["kl"] | {"seed": 1}}
    monkeypatch.setattr(side, "_started", Forked)
    run("run", [str(tiny.write(tmp_path, variants=two, evaluate=None)), "--processes", "2"])
    said = capsys.readouterr().out
    assert said.count("summary:  ") == said.count("data: 48 training") == 1
    (tmp_path / "alone").mkdir()
    for job in tiny.run(tiny.write(tmp_path / "alone", variants=two, evaluate=None), until="generator"):
        folder = tmp_path / "run/stages" / job.folder.name
        assert said.count(f"run (new) {folder}\n") == 1
        if job.stage.name == "generator":
            name = "generator/diffusion_pytorch_model.safetensors"
            assert read_done(folder)["files"][name] == read_done(job.folder)["files"][name]


WAITS = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); signal.pause()"
"""A process that ends as one whose state was saved."""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
STOPS = "import os, signal; os.kill(os.getppid(), signal.SIGTERM)"
"""One that sends its starter a signal."""


@pytest.mark.parametrize(
    ("scripts", "error", "told"),
    [
        (["print('dmvae: no such field'); exit(2)"] * 2, ValueError, "process . of 2: no such field"),
        (["import os, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(2)"] * 2, ValueError, "exit code 2"),
        ([WAITS, "import os; os.kill(os.getpid(), 9)"], CheckFailed, "killed by SIGKILL; the same command goes on"),
        ([WAITS, "print('dmvae: a/matching: loss'); exit(3)"], side.Unended, "process 2 of 2: a/matching: loss"),
        ([WAITS, "exit(130)"], Interrupted, None),
        ([f"{STOPS}; signal.pause()", WAITS], Interrupted, None),
        ([f"{DEAF}; {STOPS}; print('dmvae: disk full'); exit(1)", WAITS], CheckFailed, "process 1 of 2: disk full"),
    ],
    ids=["mistake", "late", "killed", "diverged", "stopped", "signalled", "not saved"],
)
def test_how_processes_end_is_told(monkeypatch, scripts, error, told):
    """Also where one ends after its output did, or could not save what a signal had asked it to."""
    given = iter(scripts)

    def started(words, variables):
        command = [sys.executable, "-c", next(given)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    monkeypatch.setattr(side, "_started", started)
    with pytest.raises(error, match=told):
        side_by_side(["run"], 2)


def test_tracebacks_are_asked_of_all(monkeypatch, capsys):
    def started(words, variables):
        command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    monkeypatch.setattr(side, "_started", started)
    monkeypatch.setattr(sys, "argv", ["dmvae", "run", "--debug", "r.yaml"])
    side_by_side(["run", "r.yaml"], 2)
    assert capsys.readouterr().out.splitlines() == ["['run', 'r.yaml', '--debug']"]


def test_modules_are_sought_where_the_command_seeks_them(tmp_path, monkeypatch):
    """And not in the current folder, whose files may have any name."""
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    process = side._started(["--version"], os.environ)
    assert process.stdout.read().startswith("dmvae ")


def test_a_process_stops_where_the_one_that_started_it_is_gone():
    process = side._started(["run", "smoke"], os.environ)
    process.stdin.close()
    assert process.wait(timeout=60) == -signal.SIGTERM  # it had not begun to train


@pytest.mark.parametrize("width", [60, 120])
def test_in_a_terminal_the_bar_of_each_stays_below_and_moves_each_second(monkeypatch, width):
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(side, "console", terminal)
    monkeypatch.setattr(side, "in_terminal", lambda: True)
    assert [variables[bars.EVERY] for variables in environments(2)] == ["1", "1"]
    output = side._Output(2)
    for number, title, done in ((0, "a  tokenizer", 9), (1, "b  tokenizer", 30), (0, "a  tokenizer", 10)):
        with io.StringIO() as file:
            monkeypatch.setattr(bars, "_OUT", file)
            bar = bars.Bar(title, 40, "images")
            bar.step(done, note="loss tokenizer 0.5, discriminator 0.7")
            bar._line()
            output.take(number, file.getvalue().rstrip("\n"))
    terminal.print(output.live.get_renderable())
    first, second = terminal.file.getvalue().splitlines()
    assert re.match(r"  a  tokenizer \S+ +10/40 0:00 left", first)
    assert re.match(r"  b  tokenizer \S+ +30/40 0:00 left", second)
    assert ("discriminator 0.7" in first) == (width == 120)
    output.take(0, "a/tokenizer: skip (finished)")
    terminal.print(output.live.get_renderable())
    assert terminal.file.getvalue().splitlines()[-1].startswith("  b")


def test_they_are_given_the_words_and_say_for_this_one_what_these_mean(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("dmvae.commands.run.side_by_side", lambda words, count: asked.extend([*words, count]))
    path, options = str(tiny.write(tmp_path)), ["--matching.steps", "7", "--name", "a {b}"]
    run("run", ["--processes", "2", path, *options, "--variant", "kl", "--variant", "matched", "--no-report"])
    assert asked == ["run", path, "--no-report", "--variant", "kl", "--variant", "matched", *options, 2]
    assert capsys.readouterr().out == ""  # that --matching.steps does not reach kl


def test_a_plugin_that_is_edited_while_they_run_costs_no_table(tmp_path, monkeypatch):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from dmvae.datasets.shapes import Shapes\n"
        "from dmvae.registry import register\n"
        "@register('mine')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Shapes):\n"
        "    pass\n"
    )
    path = tiny.write(tmp_path, plugins=[str(plugin)], data__type="mine")
    planned = [job.folder for job in plan(load(path), tmp_path / "run")]
    edit = lambda *_: plugin.write_text(plugin.read_text() + "# for the next study\n")
    told = []
    monkeypatch.setattr("dmvae.commands.run.side_by_side", edit)
    monkeypatch.setattr("dmvae.commands.run.finish_chosen", lambda jobs, *_: told.extend(job.folder for job in jobs))
    run("run", ["--processes", "2", str(path)])
    assert told == planned


def test_what_has_ended_is_in_the_table_though_a_training_diverged(tmp_path, monkeypatch, capsys):
    def diverges(*_):
        raise side.Unended("process 1 of 2: kl/tokenizer: loss")

    told = []
    monkeypatch.setattr("dmvae.commands.run.side_by_side", diverges)
    monkeypatch.setattr("dmvae.commands.run.finish_chosen", lambda jobs, *_: told.extend(jobs))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", str(tiny.write(tmp_path)), "--processes", "2"])
    assert stopped.value.code == 3
    assert "dmvae: process 1 of 2: kl/tokenizer: loss\n" in capsys.readouterr().err
    assert told


def saved(tmp_path):
    """Steps of the last checkpoint of each tokenizer, of those that have one."""
    folders = (tmp_path / "run/stages").glob("tokenizer-*")
    return [found[-1] for folder in folders if (found := sorted(steps(folder / CHECKPOINTS)))]


@pytest.mark.slow
def test_a_signal_reaches_all_and_each_saves(tmp_path):
    over = {"tokenizer__steps": 100_000, "losses__adversarial__weight": 0.0, "run__save_every": 10}  # minutes
    path = tiny.write(tmp_path, variants={"a": {"seed": 0}, "b": {"seed": 1}}, **over)
    tiny.run(path, only="encoder")
    running = processes.Command("tokenizer", str(path), "--processes", "2", **ONE_THREAD)
    until = time.monotonic() + 120
    while len(saved(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    running.signal(signal.SIGINT)
    result = running.result()
    assert result.returncode == 130, result.stdout + result.stderr
    assert "stopped; the state was saved" in result.stderr
    assert all(step > 0 for step in saved(tmp_path))
    for folder in (tmp_path / "run/stages").glob("tokenizer-*"):
        with locked(folder, wait=False) as free:
            assert free


def test_a_mistake_is_told_as_by_one_process(tmp_path):
    result = processes.command("run", str(tiny.write(tmp_path)), "--processes", "2", "--variant", "no", **ONE_THREAD)
    assert result.returncode == 2
    assert "no variant is called 'no'" in result.stderr


@pytest.mark.parametrize(("given", "why"), [("0", "--processes must be at least 1"), ("2", "under torchrun")])
def test_numbers_and_launchers_that_cannot_be(tmp_path, monkeypatch, given, why):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=why):
        run("run", [str(tiny.write(tmp_path)), "--processes", given])
