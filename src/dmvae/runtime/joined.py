"""Ranks end together: when one fails, all others print its error and end within seconds."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from dmvae.runtime import distributed

POLL = 2.0
"""Seconds between checks for errors of other ranks."""
_FAILED = "failed"


@contextmanager
def joined(minutes: float = distributed.MINUTES) -> Iterator[None]:
    """Join the process group that torchrun describes, for the block. A rank whose block raises tells the others, which
    end with its message; else they would wait for it in a collective. `minutes`: see `distributed.start`.

    Raises ConnectionError on a rank whose own error is that another has failed or died.
    """
    distributed.start(minutes)
    if distributed.world_size() == 1:
        yield
        return
    store = _store()
    ended, told = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(store, ended, told), daemon=True).start()
    try:
        yield
    except Exception as error:
        ended.set()
        if _is_of_another(error) and told.is_set():
            sys.exit(1)
        mine = f"rank {distributed.rank()} failed: {_text(error)}"
        first = _tell(store, mine)
        # The store may end with this rank: stay until the others have read the message.
        atexit.register(time.sleep, 2 * POLL)
        if _is_of_another(error):
            raise ConnectionError(mine if first == mine else f"stopped, because {first}") from error
        raise
    except KeyboardInterrupt:
        ended.set()
        distributed.stop()
        raise
    ended.set()
    distributed.stop()  # only here: after an error it could wait for ranks that have ended


def _store() -> dist.Store:
    """The store through which ranks found each other, with keys of this start: torchrun may start ranks again."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
    return dist.PrefixStore(distributed.this_start(), store)


def _tell(store: dist.Store, text: str) -> str:
    """Write the text to the store, unless another rank has written one; returns the one that is there."""
    try:
        return store.compare_set(_FAILED, "", text).decode()
    except RuntimeError:  # the store ended with the rank that kept it
        return text


def _watch(store: dist.Store, ended: threading.Event, told: threading.Event) -> None:
    """When another rank has failed, print its error and end this one."""
    while not ended.wait(POLL):
        try:
            found = store.get(_FAILED).decode() if store.check([_FAILED]) else None
        except RuntimeError:
            found = "rank 0 ended without a word"
            ended.wait(POLL)  # perhaps all ranks are ending, and rank 0 was the first
        if found and not ended.is_set():
            print(f"dmvae: stopped, because {' '.join(found.split())}", file=sys.stderr, flush=True)
            told.set()
            time.sleep(6 * POLL)  # torchrun names the rank that ends first
            os._exit(1)  # the main thread may be in a collective, and no exception would reach it


def _is_of_another(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "peer" in str(error))


def _text(error: BaseException) -> str:
    if _is_of_another(error):
        return "another rank ended without a word (killed? out of memory?); torchrun names it and its exit code"
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
