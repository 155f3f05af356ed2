"""A try, and what counts as its failure."""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmvae.runtime.console import printable

LIMIT = 120
"""Seconds after which there is no answer: a busy machine takes its time, and a hang does not end."""
COUNTS = ("losses", "tracebacks", "hangs", "silent uses")


SAID_EVERY = 30.0
"""Seconds between two lines that say how far a kind of tries is."""


@dataclass
class Row:
    """What came of one kind of tries; `notes` say which failed. `of`: how many tries there will be."""

    name: str
    of: int
    tries: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    notes: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def tried(self) -> None:
        """Count a try, and say now and then how far it is."""
        self.tries += 1
        now = time.monotonic()
        if now - self.said > SAID_EVERY:
            self.said, left = now, (now - self.begun) / self.tries * max(0, self.of - self.tries)
            print(f"  {self.name}: {self.tries} of {self.of}, about {left / 60:.0f} min left", flush=True)

    def count(self, what: str, note: object) -> None:
        """Count a failure, and say it at once: a run that is cut short has told what it found."""
        self.counts[what] += 1
        self.notes.append(f"{self.name}: {what}: {note}")
        print(f"  {printable(self.notes[-1])}", flush=True)


def ours(name: str) -> Any:
    """A module of tests/: the recipe that runs in seconds, the odd values of fields."""
    tests = str(Path(__file__).parents[2] / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module(name)


class Hang(BaseException):
    """No answer in time."""


def attempt(row: Row, act: Callable[[], Any], note: str) -> tuple[str, Any]:
    """(what was said, what was returned): an error of one line and warnings are said."""

    def ring(number: int, frame: object) -> None:
        raise Hang

    row.tried()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(said):
            with contextlib.redirect_stderr(said):
                warnings.simplefilter("always")
                value = act()
        return "; ".join(str(w.message) for w in warned), value
    except (ValueError, OSError, FloatingPointError) as error:
        if not str(error):
            row.count("tracebacks", f"{note}: {error!r} says nothing")
        return repr(error), None
    except SystemExit as stop:
        return said.getvalue() if stop.code else "", None
    except Hang:
        row.count("hangs", note)
        return "a hang", None
    except Exception as error:
        row.count("tracebacks", f"{note}: {type(error).__name__}: {error}"[:200])
        return repr(error), None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
