"""Ctrl-C, SIGTERM, SIGHUP (a terminal closes) and SIGUSR1 (a queue's warning) mean: save and stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

ALWAYS = (signal.SIGINT, signal.SIGTERM)
"""Signals that are handled even where another handler was set before."""
SIGNALS = (*ALWAYS, signal.SIGHUP, signal.SIGUSR1)
AGAIN = 3.0
"""Seconds in which further signals count as the same wish to stop: whoever signals all processes of a job reaches
torchrun too, which sends the signal again."""
_late: list[int] = []


class Interrupted(KeyboardInterrupt):
    """One of the signals arrived; the state was saved."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """Yields a list that the first of `SIGNALS` fills; the loop then ends its step and saves. Another one more than
    `AGAIN` seconds later stops the process at once. SIGHUP and SIGUSR1 keep a handler that is set already, such as
    nohup's or a program's own; every signal keeps one that is not Python's, as that could not be given back."""
    received: list[int] = []
    first = 0.0

    def handler(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
        elif time.monotonic() - first > AGAIN:
            raise KeyboardInterrupt

    there = {s: signal.getsignal(s) for s in SIGNALS}
    ours = [s for s, old in there.items() if old is signal.SIG_DFL or (s in ALWAYS and old is not None)]
    try:
        before = {s: signal.signal(s, handler) for s in ours}
    except ValueError:  # only the main thread may set signal handlers
        before = {}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def stop_at_end_of_input() -> None:
    """Send this process SIGTERM when its standard input, a pipe, ends, as the process at the other end is gone."""
    Thread(target=_stop_at_end_of_input, daemon=True).start()


def _stop_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def stop_later(asked: bool) -> None:
    """Remember, for `stop_if_asked`, whether a signal came too late to interrupt the training."""
    _late[:] = [1] if asked else []


def stop_if_asked() -> None:
    """Raise Interrupted if `stop_later` remembered a signal."""
    if _late:
        _late.clear()
        raise Interrupted
