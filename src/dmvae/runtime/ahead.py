"""The next item of a pass, made in a thread while the last one is in use."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar, cast

T = TypeVar("T")
_END = object()


def ahead(items: Generator[T]) -> Generator[T]:
    """The items, in their order, each made in a thread while the one before is in use. An error in making an item is
    raised in its place. The thread ends with the pass, also after an error; an item that nobody takes is dropped."""
    with closing(items), ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield cast("T", item)
