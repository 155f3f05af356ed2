"""The Hugging Face hub: where it cannot be reached, its cache is used at once.

The hub's client tries each file six times, for half a minute, before it looks into its cache; a data set is many files.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from dmvae.runtime import distributed
from dmvae.runtime.console import console

WAITS = (0.0, 1.0, 2.0)
"""Seconds to wait before each attempt to reach the hub: a network may fail for a moment."""
PATIENCE = 5.0
"""Seconds to wait for an answer."""


@contextmanager
def hub(here: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Inside the block, the hub's client uses only its cache if the hub does not answer, as with HF_HUB_OFFLINE=1.
    here: a file or folder; if it exists, the hub is not needed. Raises ConnectionError for what that lacks."""
    from huggingface_hub import constants

    if (here is not None and os.path.exists(here)) or constants.HF_HUB_OFFLINE or _answers(int(time.monotonic() // 60)):
        yield
        return
    modules = [sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config")]
    asking = [module for module in modules if getattr(module, "HF_HUB_OFFLINE", None) is False]
    for module in asking:
        vars(module)["HF_HUB_OFFLINE"] = True
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # an error of the cache's own files
            raise
        cache = constants.HF_HUB_CACHE
        raise ConnectionError(
            f"{constants.ENDPOINT} does not answer, and its cache here, {cache}, lacks what is asked for"
        ) from None  # `datasets.huggingface` shows the innermost cause, which says less
    else:
        if distributed.is_main():
            console.print(f"{constants.ENDPOINT} does not answer: taken from its cache, {constants.HF_HUB_CACHE}")
    finally:
        for module in asking:
            vars(module)["HF_HUB_OFFLINE"] = False


@lru_cache(1)
def _answers(minute: int) -> bool:
    """Whether the hub answers; asked once a minute at most."""
    import huggingface_hub

    for wait in WAITS:
        time.sleep(wait)
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE)
        except Exception:  # each version of the client has classes of its own
            continue
        return True
    return False
