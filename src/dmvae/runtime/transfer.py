"""What keeps this process from waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Loggable = Tensor | float | Callable[[], Tensor]
"""A value to log: a scalar, or a function called when the row is written, if computing it waits for the device."""
_listed: list[str] = []


@contextmanager
def waits(why: str) -> Iterator[None]:
    """Around what waits for the device between two rows of the log: docs/performance.md lists it under `why`. Where all
    else that waits raises, by torch.cuda.set_sync_debug_mode("error"), this does not."""
    cuda = torch.cuda.is_initialized()
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    if cuda:
        torch.cuda.set_sync_debug_mode(0)
    _listed.append(why)
    try:
        yield
    finally:
        _listed.pop()
        if cuda:
            torch.cuda.set_sync_debug_mode(before)


def listed() -> str | None:
    """Why the device may be waited for here; None where it may not."""
    return _listed[-1] if _listed else None


def made(figure: Loggable) -> Tensor | float:
    """The figure's value."""
    return figure() if callable(figure) else figure


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A GPU fetches it from pinned memory while this process goes on; from other memory it cannot."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def covariance(x: Tensor) -> Tensor:
    """The covariance [d, d] of vectors x [n, d], divided by n - 1: torch.cov(x.T), bit for bit, but for its look at a
    value, for which it waits."""
    y = x.T
    y = y - (y.sum(1) / len(x))[:, None]
    return (y @ y.T) / (len(x) - 1)
