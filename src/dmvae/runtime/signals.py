"""Ctrl-C and SIGTERM, taken as a wish to save and stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the state was saved."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """Yields a list that is filled by the first Ctrl-C or SIGTERM; the loop then ends its step and saves. A second
    signal stops the process at once."""
    received: list[int] = []

    def handler(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set signal handlers
        before = {}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
