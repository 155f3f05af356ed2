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


def side_by_side(words: Sequence[str], count: int) -> None:
    """Run `dmvae WORDS` in `count` processes (see `environments`), and print what they print; what several say, once.

    A signal is passed on to all of them. When one fails, the others are told to save their state and stop.

    Raises Interrupted after a signal. Where a process failed: ValueError for a mistake in what was asked, else
    CheckFailed, with that process's error.
    """
    processes = [_started(words, variables) for variables in environments(count)]
    lines: SimpleQueue[tuple[int, str]] = SimpleQueue()
    readers = [Thread(target=_read, args=(number, of, lines), daemon=True) for number, of in enumerate(processes)]
    for reader in readers:
        reader.start()
    output, failed = _Output(count), None
    try:
        with signals() as asked, output.live:
            while any(reader.is_alive() for reader in readers) or not lines.empty():
                with suppress(Empty):
                    output.take(*lines.get(timeout=0.2))
                wrong = [number for number, process in enumerate(processes) if process.poll() not in (None, 0)]
                if failed is None and (asked or wrong):
                    failed = wrong[0] if wrong else -1
                    for process in processes:
                        process.send_signal(asked[0] if asked else signal.SIGTERM)
    finally:  # after a second signal they still run
        for process in processes:
            process.kill()
            process.wait()
    if asked:
        raise Interrupted
    if failed is not None:
        code = processes[failed].returncode
        error = output.errors[failed] or f"it ended with exit code {code}"
        raise (ValueError if code == 2 else CheckFailed)(f"process {failed + 1} of {count}: {error}")


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
    """In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on, once."""
    return subprocess.Popen(
        [sys.executable, "-m", "dmvae", *words],
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
        elif bar and console.is_terminal:
            self.bars[number] = line
        elif line not in self.said or bar:
            self.said.add(line)
            self.bars[number] = "" if not bar else self.bars[number]
            console.print(line)
        self.live.update(Text(printable("\n".join(filter(None, self.bars))), no_wrap=True, overflow="ellipsis"))
