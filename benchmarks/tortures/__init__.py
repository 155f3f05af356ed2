"""A try, and what counts as its failure."""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dmvae

SOURCE = str(Path(dmvae.__file__).parents[1])
"""For processes that are started: the package that is tried, and no installed one."""
LIMIT = 120
"""Seconds after which there is no answer: a busy machine takes its time, and a hang does not end."""
COUNTS = ("losses", "tracebacks", "hangs", "silent uses")


@dataclass
class Row:
    """What came of one kind of tries; `notes` say which failed."""

    name: str
    tries: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    notes: list[str] = field(default_factory=list)

    def count(self, what: str, note: object) -> None:
        self.counts[what] += 1
        self.notes.append(f"{self.name}: {what}: {note}")


def ours(name: str) -> Any:
    """A module of tests/: the recipe that runs in seconds, the odd values of fields."""
    tests = str(Path(__file__).parents[2] / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    return importlib.import_module(name)


class Hang(BaseException):
    """No answer in time."""


def attempt(row: Row, act: Callable[[], Any], note: str) -> tuple[bool, Any]:
    """(whether a word was said, what was returned): an error of one line and a warning are words."""

    def ring(number: int, frame: object) -> None:
        raise Hang

    row.tries += 1
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(said):
            with contextlib.redirect_stderr(said):
                warnings.simplefilter("always")
                value = act()
        return bool(warned), value
    except (ValueError, OSError, FloatingPointError) as error:
        if not str(error):
            row.count("tracebacks", f"{note}: {error!r} says nothing")
        return True, None
    except SystemExit as stop:
        return stop.code != 0, None
    except Hang:
        row.count("hangs", note)
        return True, None
    except Exception as error:
        row.count("tracebacks", f"{note}: {type(error).__name__}: {error}"[:200])
        return True, None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
