"""Transfers and figures that do not make this process wait for the device."""

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
    """Around code that waits for the device between two rows of the log: docs/performance.md lists it under `why`. It
    is exempt from torch.cuda.set_sync_debug_mode("error"), under which all other waiting raises."""
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
    """The reason for which waiting for the device is allowed here; None where it is not."""
    return _listed[-1] if _listed else None


def made(figure: Loggable) -> Tensor | float:
    """The figure's value."""
    return figure() if callable(figure) else figure


def send(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. For a GPU it goes through pinned memory: only from there is the copy asynchronous."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def covariance(x: Tensor) -> Tensor:
    """The covariance [d, d] of vectors x [n, d], divided by n - 1. Equal to torch.cov(x.T) bit for bit; that reads a
    value, and so waits for the device."""
    y = x.T
    y = y - (y.sum(1) / len(x))[:, None]
    return (y @ y.T) / (len(x) - 1)
