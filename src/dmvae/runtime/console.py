"""The console, and progress bars with rate and time left."""

from __future__ import annotations

import io
import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


def printable(text: str) -> str:
    """The text with control characters (except line breaks and tabs) written as escapes, such as \\x1b: names of files
    and recipes may come from anybody, and a terminal obeys control characters."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _CONTROL else c.encode("unicode_escape").decode()
        for c in text
    )


_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")  # these include marks that reverse the writing direction, and invalid bytes


class _Out:
    """Standard output whose errors (a full disk, a closed pipe) do not end a training: `require_printed` raises them at
    the command's end."""

    def write(self, text: str) -> int:
        with self._going_on():
            self._there().write(text)
        return len(text)

    def flush(self) -> None:
        with self._going_on():
            self._there().flush()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            with suppress(AttributeError):  # sys.stdout is None in some programs
                yield
        except OSError as error:
            _lost[:] = [error]

    def _there(self) -> TextIO:
        """The real stream: while a bar is shown, sys.stdout is rich's own object, which writes here."""
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)

    def __getattr__(self, name: str) -> object:
        if name == "rich_proxied_file":  # rich would write to that attribute, not through this class
            raise AttributeError(name)
        return getattr(sys.stdout, name)


_OUT = cast("TextIO", _Out())
_lost: list[OSError] = []


def require_printed() -> None:
    """Raise OSError, once, if something that was printed could not be written. What waits to be written is dropped
    then: Python would try again as it exits, tell the error in two lines of its own, and end with exit code 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        if _lost:
            raise _lost.pop()
    except OSError as error:
        with suppress(AttributeError, io.UnsupportedOperation):  # where sys.stdout is None, or an object without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error


def forget_lost() -> None:
    """Forget failed writes: called before a command, and after a training, whose results are in files."""
    _lost.clear()


class _Console(Console):
    """rich's console; every text that it prints, in tables too, is made `printable` first."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = _Console(file=_OUT, highlight=False, soft_wrap=True, markup=False)


def paragraph(text: Text | str, indent: int = 0) -> None:
    """Print a text; what does not fit a terminal's width goes on below, between words, `indent` columns from the left.
    In a pipe it stays one line, for grep."""
    text = console.render_str(text) if isinstance(text, str) else text
    if not console.is_terminal:
        return console.print(text)
    for number, line in enumerate(text.wrap(console, max(20, console.width - indent))):
        console.print(Text(" " * indent if number else "").append_text(line))


def in_terminal() -> bool:
    """Whether what is printed can be drawn again, as bars are."""
    return console.is_terminal and not console.is_dumb_terminal


def _is_main() -> bool:
    from dmvae.runtime import distributed  # imported here: printing a message must not load torch

    return distributed.is_main()


def fitted(note: str, room: int) -> str:
    """A bar's note, "RATE  loss A, B", cut to `room` columns: whole figures are dropped, the last ones first."""
    while len(note) > room:
        cut = max(note.rfind(", "), note.rfind("  "))
        if cut < 0:
            return ""
        note = note[:cut]
    return note


class _Note(ProgressColumn):
    """The rate and the losses, in the width that the other columns leave: on a narrow terminal they are cut first."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    def render(self, task: Task) -> Text:
        return Text(fitted(task.fields["note"], console.width - self.others))


WIDE = 120
"""Columns from which a bar is long and tells the time spent too."""


def _columns(total: int) -> list[ProgressColumn]:
    wide = console.width >= WIDE
    title_width, bar_width = (28, 24) if wide else (min(28, console.width // 4), 14)
    spent: list[ProgressColumn] = [TimeElapsedColumn()] if wide else []
    # the gaps between columns, and the widths of the step and of the two times
    others = 2 + title_width + 1 + bar_width + 1 + 2 * len(str(total)) + 1 + 1 + 1 + 4 + 1 + 8 + 8 * len(spent)
    return [
        TextColumn("  {task.description}", table_column=Column(width=title_width + 2, no_wrap=True)),
        BarColumn(bar_width=bar_width),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _Note(others),
        *spent,
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]


EVERY = "DMVAE_BAR_SECONDS"
"""The environment variable that says how often a bar prints a line where there is no terminal (10)."""


class Bar:
    """A progress bar with rate, loss and time left; without a terminal, a plain line every ten seconds (see `EVERY`)
    and one at the end. Nothing where there is nothing to do."""

    def __init__(self, title: str, total: int, unit: str = "it", start: int = 0) -> None:
        self.title, self.total, self.unit, self.start = printable(title), total, unit, start
        self.done, self.begun, self.said = start, time.monotonic(), time.monotonic()
        self.note = self.text = ""
        self.line: tuple[int, str] | None = None
        self.every = float(os.environ.get(EVERY, 10))
        self.progress: Progress | None = None
        if _is_main() and total and in_terminal():
            self.progress = Progress(*_columns(total), console=console)
            self.task = self.progress.add_task(self.title, total=total, completed=start, note="")

    def __enter__(self) -> Bar:
        if self.progress:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress:
            self.progress.stop()
        elif _is_main() and error[0] is None and self.total and self.line != (self.done, self.text):
            self._line()

    def step(self, n: int = 1, per_step: float = 1, note: str | None = None) -> None:
        """Advance by `n`. `per_step` scales the rate (images a step); `note` is text that stays until the next note."""
        self.done = min(self.done + n, self.total)  # a last batch may hold more than was asked for
        rate = (self.done - self.start) * per_step / max(1e-9, time.monotonic() - self.begun)
        text = f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2f} {self.unit}/s"
        self.note = self.note if note is None else note
        self.text = text = f"{text}  {self.note}".rstrip()
        if self.progress:
            self.progress.update(self.task, completed=self.done, note=text)
        elif self.total and _is_main() and time.monotonic() - self.said > self.every:
            self._line()

    def _line(self) -> None:
        self.said, self.line = (now := time.monotonic()), (self.done, self.text)
        spent = now - self.begun
        left = spent * (self.total - self.done) / max(1, self.done - self.start)
        print(
            f"  {self.title:<28} {self.done}/{self.total}  {self.text}  {spent:.0f}s, {left:.0f}s left",
            file=_OUT,
            flush=True,
        )
