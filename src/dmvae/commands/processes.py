"""`--processes N`: one command starts N of its kind on this machine, which share a recipe's stages out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from rich.live import Live
from rich.text import Text

from dmvae.commands.parser import CheckFailed
from dmvae.runtime.console import console, printable
from dmvae.runtime.signals import Interrupted, signals

BAR = re.compile(r"  \S.* \d+/\d+  .* left$")
"""A bar's line, as `dmvae.runtime.console.Bar` writes it into a pipe."""
ERROR = "dmvae: "
"""How the line of an error begins, as `dmvae.cli` writes it."""
STOPPED = 130
"""Exit code of a process that a signal stopped, as `dmvae.cli` gives it."""


def side_by_side(words: Sequence[str], count: int) -> None:
    """Run `dmvae WORDS` in `count` processes (see `environments`), and print what they print; what several say, once.

    A signal is passed on to all of them. When one fails, the others are told to save their state and stop.

    Raises Interrupted where they were stopped and saved their state. Where a process failed: ValueError for a mistake
    in what was asked, else CheckFailed, with that process's error.
    """
    lines: SimpleQueue[tuple[int, str]] = SimpleQueue()
    output, sent = _Output(count), 0
    processes: list[subprocess.Popen[str]] = []
    readers: list[Thread] = []
    try:
        with signals() as asked, output.live:
            for number, variables in enumerate(environments(count)):
                processes.append(_started(words, variables))
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
    for number, code in enumerate(codes):
        if code not in (0, STOPPED, -sent):  # a signal ends a process that has not begun to train
            ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
            error = output.errors[number] or ended
            raise (ValueError if code == 2 else CheckFailed)(f"process {number + 1} of {count}: {error}")
    if asked or any(codes):
        raise Interrupted


def environments(count: int) -> list[Mapping[str, str]]:
    """The environment variables of each process. The visible GPUs go round; without one, each process has its share of
    the CPUs as OMP_NUM_THREADS, unless that is set already."""
    if not torch.cuda.is_available():
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        return [{"OMP_NUM_THREADS": str(threads)} | os.environ] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [os.environ | {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(count)]


def _started(words: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on, once. It finds
    modules where this process does: by -m it would take those in the current folder first."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from dmvae.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=variables,
        stdin=subprocess.DEVNULL,
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
    """What the processes print: in a terminal the last line of each one's bar stays at the bottom."""

    def __init__(self, count: int) -> None:
        self.bars, self.errors, self.said = [""] * count, [""] * count, set[str]()
        self.live = Live(console=console, transient=True, refresh_per_second=4)

    def take(self, number: int, line: str) -> None:
        """Print a line of that process, or keep it."""
        bar = BAR.fullmatch(line) is not None
        if line.startswith(ERROR):
            self.errors[number] = line.removeprefix(ERROR)
        elif bar and console.is_terminal and not console.is_dumb_terminal:
            self.bars[number] = line
        elif line not in self.said or bar:
            self.said.add(line)
            self.bars[number] = "" if not bar else self.bars[number]
            console.print(line)
        self.live.update(Text(printable("\n".join(filter(None, self.bars))), no_wrap=True, overflow="ellipsis"))
