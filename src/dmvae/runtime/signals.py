"""Ctrl-C, SIGTERM, SIGHUP (a terminal closes) and SIGUSR1 (a queue's warning), taken as a wish to save and stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

ALWAYS = (signal.SIGINT, signal.SIGTERM)
"""Those that are taken whatever was done with them before."""
SIGNALS = (*ALWAYS, signal.SIGHUP, signal.SIGUSR1)
AGAIN = 3.0
"""Seconds after which another signal is another wish: who stops all processes of a job reaches torchrun too, which
sends the signal on."""
_late: list[int] = []


class Interrupted(KeyboardInterrupt):
    """One of the signals arrived; the state was saved."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """Yields a list that is filled by the first of `SIGNALS`; the loop then ends its step and saves. One that comes
    `AGAIN` seconds later stops the process at once. SIGHUP and SIGUSR1 stay as they are where somebody has set them, as
    nohup or a program's own handler."""
    received: list[int] = []
    first = 0.0

    def handler(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
        elif time.monotonic() - first > AGAIN:
            raise KeyboardInterrupt

    ours = [s for s in SIGNALS if s in ALWAYS or signal.getsignal(s) is signal.SIG_DFL]
    try:
        before = {s: signal.signal(s, handler) for s in ours}
    except ValueError:  # only the main thread may set signal handlers
        before = {}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def stop_later(asked: bool) -> None:
    """Remember whether a signal came when nothing was left to interrupt, until `stop_if_asked`."""
    _late[:] = [1] if asked else []


def stop_if_asked() -> None:
    """Raises Interrupted for a signal that came so late."""
    if _late:
        _late.clear()
        raise Interrupted
