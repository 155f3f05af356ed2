"""`--processes N`: one command starts N of its kind on this machine, which share a recipe's stages out."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dmvae.commands.parser import UNENDED, CheckFailed
from dmvae.pipeline import STARTED
from dmvae.runtime import distributed
from dmvae.runtime.console import EVERY, console, fitted, in_terminal, printable
from dmvae.runtime.signals import Interrupted, signals

BAR = re.compile(r"  (\S.*?) +(\d+)/(\d+)  (.*)  \d+s, (\d+)s left")
"""A bar's line, as `dmvae.runtime.console.Bar` writes it into a pipe: title, steps done, of how many, rate and losses,
seconds left."""
LONG = 14
"""Columns of a bar."""
ERROR = "dmvae: "
"""How the line of an error begins, as `dmvae.cli` writes it."""
STOPPED = 130
"""Exit code of a process that a signal stopped, as `dmvae.cli` gives it."""


class Unended(CheckFailed):
    """Trainings have diverged, and the processes have run all that does not need them."""


def side_by_side(words: Sequence[str], count: int) -> None:
    """Run `dmvae WORDS` in `count` processes (see `environments`), and print what they print; what several say, once.

    A signal is passed on to all of them. When one fails, the others are told to save their state and stop.

    Raises Interrupted where they were stopped and saved their state. Where a process failed: ValueError for a mistake
    in what was asked, Unended where nothing else is left to do than trainings that diverged, else CheckFailed, with
    that process's error.
    """
    lines: SimpleQueue[tuple[int, str]] = SimpleQueue()
    output, sent = _Output(count), 0
    words = [*words, *(word for word in sys.argv if word == "--debug")]  # which `dmvae.cli` has taken from the words
    processes: list[subprocess.Popen[str]] = []
    readers: list[Thread] = []
    try:
        with signals() as asked, output.live:
            start = secrets.token_hex(8)
            for number, variables in enumerate(environments(count)):
                processes.append(_started(words, {**variables, STARTED: start}))
                readers.append(Thread(target=_read, args=(number, processes[number], lines), daemon=True))
                readers[number].start()
            while any(reader.is_alive() for reader in readers) or not lines.empty():
                with suppress(Empty):
                    output.take(*lines.get(timeout=0.2))
                if not sent and (asked or any(process.poll() not in (None, 0) for process in processes)):
                    sent = asked[0] if asked else signal.SIGTERM
                    for process in processes:
                        process.send_signal(sent)
            codes = [process.wait() for process in processes]
    finally:  # after a second signal they still run
        for process in processes:
            process.kill()
            process.wait()
    failed = [number for number, code in enumerate(codes) if code not in (0, STOPPED, -sent)]
    # -sent: a signal ends a process that has not begun to train
    for number in sorted(failed, key=lambda number: codes[number] == UNENDED):
        code = codes[number]
        ended = f"it ended with exit code {code}"
        if code < 0:
            ended = f"killed by {signal.Signals(-code).name}; the same command goes on from what all have saved"
        error = output.errors[number] or ended
        kind = {2: ValueError, UNENDED: Unended}.get(code, CheckFailed)
        raise kind(f"process {number + 1} of {count}: {error}")
    if asked or any(codes):
        raise Interrupted


def environments(count: int) -> list[Mapping[str, str]]:
    """The environment variables of each process. The visible GPUs go round; without one, each process has its share of
    the CPUs as OMP_NUM_THREADS, unless that is set already. In a terminal, bars move every second."""
    shared = os.environ | ({EVERY: "1"} if in_terminal() else {})
    if not torch.cuda.is_available():
        threads = max(1, distributed.processors() // count)
        return [{"OMP_NUM_THREADS": str(threads)} | shared] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [shared | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]


def _started(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on, once. Its input is
    a pipe that ends with this process, however that ends. It finds modules where this process does: by -m it would take
    those in the current folder first."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from dmvae.runtime.signals import stop_at_end_of_input; "
    code += "stop_at_end_of_input(); from dmvae.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _read(number: int, process: subprocess.Popen[str], lines: SimpleQueue[tuple[int, str]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put((number, line.rstrip("\n")))


class _Output:
    """What the processes print: in a terminal each one's bar stays at the bottom."""

    def __init__(self, count: int) -> None:
        self.bars: list[re.Match[str] | None] = [None] * count
        self.errors, self.said = [""] * count, set[str]()
        self.live = Live(console=console, transient=True, refresh_per_second=4)

    def take(self, number: int, line: str) -> None:
        """Print a line of that process, or keep it."""
        bar = BAR.fullmatch(line)
        if line.startswith(ERROR):
            self.errors[number] = line.removeprefix(ERROR)
        elif bar and in_terminal():
            self.bars[number] = bar
        elif line not in self.said or bar:
            self.said.add(line)
            self.bars[number] = None
            console.print(line)
        self.live.update(_drawn([bar for bar in self.bars if bar], console.width))


def _drawn(bars: Sequence[re.Match[str]], width: int) -> Table:
    """The bars, a line each, in so many columns; on a narrow terminal the losses are cut first."""
    table, rows = Table.grid(padding=(0, 1)), []
    for title, done, total, note, seconds in (bar.groups() for bar in bars):
        left = "{}:{:02d} left".format(*divmod(int(seconds), 60))
        rows.append((f"  {printable(title)}", f"{done}/{total}", left, printable(note)))
    taken = LONG + 4 + sum(max(len(row[i]) for row in rows) for i in range(3)) if rows else 0
    for bar, (title, count, left, note) in zip(bars, rows, strict=True):
        drawn = ProgressBar(total=int(bar[3]), completed=int(bar[2]), width=LONG)
        table.add_row(title, drawn, count, left, fitted(note, width - taken))
    return table
