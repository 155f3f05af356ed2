"""The Hugging Face hub: a file of it by its name. Where it cannot be reached, its cache is used at once.

The hub's client tries each file six times, for half a minute, before it looks into its cache; a data set is many files.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from dmvae.runtime import distributed
from dmvae.runtime.console import console

WAITS = (0.0, 1.0, 2.0)
"""Seconds to wait before each attempt to reach the hub: a network may fail for a moment."""
PATIENCE = 5.0
"""Seconds to wait for an answer."""


WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
"""Endings of files of weights, which tell such a name from a folder's that is not there."""
_NAME, _ENDING = r"\w[\w.-]*", "|".join(map(re.escape, WEIGHTS))
FILE = re.compile(rf"({_NAME}/{_NAME})/({_NAME}|(?:{_NAME}/)+{_NAME}(?:{_ENDING}))")
"""ORG/REPO/FILE. FILE may lie in folders of the repository if it ends as weights do."""


def hub_file(name: str | Path) -> Path:
    """The file of this name here, else, where the name is ORG/REPO/FILE, that of the hub, which its client keeps.
    Another name is returned as it is. Raises ValueError for a file that the hub does not give."""
    found = None if Path(name).exists() else FILE.fullmatch(str(name))
    if found is None:
        return Path(name)
    from huggingface_hub import hf_hub_download

    try:
        with hub():
            return Path(hf_hub_download(found[1], found[2]))
    except Exception as error:  # each version of the hub's client has classes of its own
        raise ValueError(f"{name} is no file, and on the hub: {error}") from error


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
