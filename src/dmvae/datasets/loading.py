"""Batches of a data set, read by worker processes: given lists of indices, or one pass in order.

A worker may raise, die or hang on an item: in each case the error names the item. No worker outlives the pass. Since
workers ignore SIGTERM, waiting for one that hangs, as multiprocessing does at exit, would never end: they are killed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from dmvae.datasets import Items
from dmvae.runtime.ahead import ahead
from dmvae.runtime.distributed import processors
from dmvae.runtime.signals import SIGNALS, signals

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds without a batch after which workers count as hung."""
AHEAD = ("cuda",)
"""Devices for which batches of data in memory are read one ahead, in a thread; on a CPU it would gain nothing."""
_START = "fork" if sys.platform == "linux" else None
"""How workers start; None is Python's default. On Linux that is another from Python 3.14 on, by which a worker is a
child of a process beside this one: it would outlive a kill of this one, and import torch anew in every pass."""
_POLL = 1.0
_LAST = 5.0
"""Seconds that a worker waits, after its connections break, for its parent to be gone; far more than needed."""
_IDLE = -1
_END = object()
_running: set[_BaseDataLoaderIter] = set()
Collate = Callable[[Any], T]
"""Makes a batch from a list of items, or from what `__getitems__` returned."""


def collate(items: tuple[Tensor, Tensor] | list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch from what `__getitems__` returned whole, or from a list of (image, label)."""
    if isinstance(items, tuple):
        return items
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.as_tensor(labels)


def loader(
    dataset: Items,
    batches: Iterable[Sequence[int]],
    workers: int,
    device: torch.device,
    stops: Callable[[], bool] = lambda: False,
) -> Loader[tuple[Tensor, Tensor]]:
    """A `Loader` of (data [n, ...], labels [n]) over lists of indices. Data sets with `__getitems__` count as held in
    memory and get no worker processes; for a GPU, a thread reads them one batch ahead, so items must not draw from
    torch's global generator. stops: called while a batch is late; True ends the pass with KeyboardInterrupt."""
    memory = hasattr(dataset, "__getitems__")
    pin, soon = device.type == "cuda", memory and device.type in AHEAD
    return Loader(dataset, batches, 0 if memory else workers, collate, pin=pin, soon=soon, stops=stops)


def passes(dataset: Items, batch_size: int, workers: int, device: torch.device) -> Loader[tuple[Tensor, Tensor]]:
    """One pass over the data in order; the last batch may be smaller."""
    return loader(dataset, cuts(range(len(dataset)), batch_size), workers, device)


def cuts(chosen: range, batch_size: int) -> list[range]:
    """A range cut into batches; the last may be smaller."""
    return [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]


class Loader(Generic[T]):
    """Batches; each iteration is one pass (only one is possible if `batches` is an iterator). soon: a thread reads one
    batch ahead. Workers and the thread end with the pass, also after an error.

    Raises ValueError for an item that cannot be read, ChildProcessError where a worker died, TimeoutError where one
    hangs, and KeyboardInterrupt where `stops` is true while a batch does not come.
    """

    def __init__(
        self,
        dataset: Items,
        batches: Iterable[Sequence[int]],
        workers: int,
        collate: Collate[T],
        *,
        pin: bool = False,
        soon: bool = False,
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        self.batches, self.workers, self.pin, self.stops = batches, usable(workers), pin, stops
        self.soon = soon
        self.reader = Reader(dataset, collate, torch.full([self.workers + 1], _IDLE).share_memory_())

    def __iter__(self) -> Generator[T]:
        return ahead(self._read()) if self.soon else self._read()

    def _read(self) -> Generator[T]:
        with ExitStack() as stack:
            # Else Ctrl-C would end a worker that does not ignore it yet, or be lost: Python drops what is raised in its
            # own hooks around a fork.
            with signals() as received:
                iterator = self._begun()
                stack.callback(_end, iterator)
            if received:
                signal.raise_signal(received[0])
            while (batch := self._next(iterator)) is not _END:
                if isinstance(batch, Problem):
                    raise ValueError(batch.text) from RuntimeError(batch.trace)
                yield cast("T", batch)

    def _begun(self) -> _BaseDataLoaderIter:
        iterator = iter(
            DataLoader(
                self.reader,  # type: ignore[arg-type]  # it has the methods that DataLoader calls
                batch_sampler=self.batches,  # type: ignore[arg-type]  # they may be ranges
                num_workers=self.workers,
                multiprocessing_context=_START if self.workers else None,
                collate_fn=_as_it_is,
                worker_init_fn=_begin,
                pin_memory=self.pin,
                prefetch_factor=4 if self.workers else None,
                timeout=_POLL if self.workers else 0,
            )
        )
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            _running.add(iterator)
            # else torch raises its own error anywhere in this process when a worker dies
            _remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        return iterator

    def _next(self, iterator: _BaseDataLoaderIter) -> object:
        begun = time.monotonic()
        while True:
            try:
                return next(iterator, _END)
            except (RuntimeError, EOFError, OSError) as error:
                if not isinstance(iterator, _MultiProcessingDataLoaderIter):
                    raise
                late = str(error).startswith("DataLoader timed out")
                # what a dying worker has sent cannot be read any more
                if dead := _dead(iterator._workers, 0 if late else 5):
                    raise ChildProcessError(self._told_of(*dead)) from error
                if not late:
                    raise
            if self.stops():
                raise KeyboardInterrupt
            if time.monotonic() - begun > PATIENCE:
                raise TimeoutError(
                    f"no batch came for {PATIENCE:.0f} s, with {self._reading(range(self.workers))}; fix what makes "
                    "that so slow, or leave the item out; the same command goes on from what was saved"
                )

    def _told_of(self, worker: int, code: int) -> str:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended itself with exit code {code}"
        memory = (
            " (if memory ran out, fewer run.workers or a smaller data.size help)" if code == -signal.SIGKILL else ""
        )
        return (
            f"a data worker {how}{memory}, with {self._reading([worker])}; fix or remove what ended it; "
            "the same command goes on from what was saved"
        )

    def _reading(self, workers: Sequence[int]) -> str:
        items = [i for i in self.reader.at[list(workers)].tolist() if i != _IDLE]
        return f"{', '.join(map(self.reader.name, items))} being read" if items else "no item being read"


@dataclass(frozen=True)
class Problem:
    """An error in a worker, sent instead of a batch."""

    text: str
    trace: str


class Reader:
    """The data set as workers read it, a batch at a time; `at` [workers + 1] holds the item that each is reading."""

    def __init__(self, dataset: Items, collate: Collate[object], at: Tensor) -> None:
        self.dataset, self.collate, self.at = dataset, collate, at

    def __getitems__(self, indices: Sequence[int]) -> object:
        info = get_worker_info()
        place = info.id if info else -1
        try:
            if hasattr(self.dataset, "__getitems__"):
                return self.collate(self.dataset.__getitems__(indices))
            items = []
            for index in indices:
                self.at[place] = index
                items.append(self.dataset[index])
            self.at[place] = _IDLE
            return self.collate(items)
        except Exception as error:  # a plugin's code may raise anything
            text = self._told(error, int(self.at[place]), indices)
            if info is None:
                raise ValueError(text) from error
            return Problem(text, traceback.format_exc())

    def name(self, index: int) -> str:
        """The name of an item, with its file if the data set gives it."""
        file = self.dataset.name(index) if hasattr(self.dataset, "name") else ""
        return f"item {index} of the data" + (f" ({file})" if file else "")

    def _told(self, error: Exception, index: int, indices: Sequence[int]) -> str:
        which = f"a batch of {len(indices)} items from {self.name(indices[0])} on"
        which = which if index == _IDLE else self.name(index)
        if isinstance(error, ValueError):
            return f"{error} (in {which})"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"{which} could not be read: {type(error).__name__}: {error} ({Path(frame.filename).name}, line "
            f"{frame.lineno}); fix the item or what reads it"
        )


def usable(workers: int) -> int:
    """The number of worker processes: `workers`, but at most one for each processor, since torch warns of more. Raises
    ValueError for a number below 0."""
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    return min(workers, processors())


def _as_it_is(batch: T) -> T:
    return batch


def _begin(worker: int) -> None:
    """Ctrl-C and torchrun's SIGTERM reach every process. A worker ignores them: the training still needs it to save its
    state. It ends with its parent, also if that is killed while the worker hangs. What it prints goes past the bar: the
    thread that draws may have held rich's locks at the fork, and here nobody would free them."""
    sys.stdout, sys.stderr = (getattr(stream, "rich_proxied_file", stream) for stream in (sys.stdout, sys.stderr))
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    parent = parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)  # the parent was killed before prctl
    sys.excepthook = _unless_alone(sys.excepthook)
    threading.excepthook = _unless_alone(threading.excepthook)


def _unless_alone(tell: Callable[..., object]) -> Callable[..., None]:
    """A hook that reports an error, unless the parent is gone: then its connections break first, in threads of
    multiprocessing, which is no error worth reporting."""
    parent = parent_process()

    def hook(*error: object) -> None:
        until = time.monotonic() + _LAST
        while parent and time.monotonic() < until:
            if os.getppid() != parent.pid:
                os._exit(1)
            time.sleep(0.05)
        tell(*error)

    return hook


def _dead(workers: Sequence[BaseProcess], seconds: float) -> tuple[int, int] | None:
    """(number, exit code) of the first worker that has died or dies within `seconds`, or None."""
    ended = wait([worker.sentinel for worker in workers], seconds)
    for i, worker in enumerate(workers):
        if worker.sentinel in ended:
            worker.join(5)  # the sentinel is ready a moment before the exit code
            return i, worker.exitcode or 0
    return None


def _end(iterator: _BaseDataLoaderIter) -> None:
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        pins = getattr(iterator, "_pin_memory_thread", None)  # with pinned memory, it reads what workers send
        if pins is not None:
            iterator._pin_memory_thread_done_event.set()
            iterator._worker_result_queue.put((None, None))
            pins.join(6)  # it looks for the event every 5 s
        for worker in iterator._workers:
            worker.kill()
        for worker in iterator._workers:
            worker.join(5)
        # One that was killed while it looked at its own keeps that locked: to set it would take for ever.
        iterator._workers_done_event = get_context(_START).Event()
        iterator._shutdown_workers()
    _running.discard(iterator)


os.register_at_fork(after_in_child=_running.clear)


@atexit.register  # before multiprocessing's own, which waits for workers: the last to be registered runs first
def _end_all() -> None:
    for iterator in [*_running]:
        _end(iterator)
