"""Precision: bf16 autocast where the hardware has fast bf16 matrix products, float32 elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]


_pretended: list[str] = []
_rounded: list[torch.device] = []
"""Within `with_tf32`."""
_places = attrgetter("mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul", "cuda.matmul", "cudnn.conv", "cudnn.rnn")
"""Of torch.backends: what has a precision of float32 of its own."""


@contextmanager
def pretend(kind: str) -> Iterator[None]:
    """Inside the block, decisions that depend on the kind of device are made as on a device of this kind."""
    _pretended.append(kind)
    try:
        yield
    finally:
        _pretended.pop()


def kind(device: torch.device) -> str:
    """ "cuda", "cpu", ...: the device's kind, or the one that `pretend` gives."""
    return _pretended[-1] if _pretended else device.type


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context under which networks run forward."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on x's device, and without what `with_tf32` allows; no context for the meta device,
    which has no autocast."""
    if x.is_meta:
        return nullcontext()
    off = torch.autocast(x.device.type, enabled=False)
    # what is compiled keeps what is set around it
    return off if torch.compiler.is_compiling() or not _rounded else _both(off, exact())


@contextmanager
def _both(first: AbstractContextManager[object], second: AbstractContextManager[object]) -> Iterator[None]:
    with first, second:
        yield


def name_of(device: torch.device, precision: Precision) -> str:
    """The dtype in which networks compute on the device, for manifests and plans."""
    return "bfloat16" if uses_bf16(device, precision) else "float32"


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether networks run in bf16 on this device."""
    return has_bf16(device) if precision == "auto" else precision == "bfloat16"


@contextmanager
def tuned() -> Iterator[None]:
    """For training, where batches have one size: cuDNN tries its kernels on the first batch and keeps the fastest."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Products and convolutions in all of float32's 24 bits: by default cuDNN rounds to TF32's 11 on a GPU."""
    if device.type != "cuda" or torch.compiler.is_compiling():  # a compiled decode keeps what is set around it
        yield
        return
    with exact():
        yield


@contextmanager
def with_tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """For training: on a GPU products of float32 numbers are rounded to TF32's 11 bits too, where that is allowed, but
    for what runs in `full_precision`. Otherwise it is as torch has it: convolutions alone are."""
    if not allowed or device.type != "cuda":
        yield
        return
    with _put_back() as older:
        if older:
            torch.backends.cuda.matmul.allow_tf32 = True
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        _rounded.append(device)
        try:
            yield
        finally:
            _rounded.pop()


@contextmanager
def exact() -> Iterator[None]:
    """Products and convolutions in all of float32's 24 bits, on every kind of device."""
    with _put_back() as older:
        if older:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        places = _places(torch.backends)
        for place in places[:2] if older else places:  # the older settings do not cover the first two
            place.fp32_precision = "ieee"
        yield


@contextmanager
def _put_back() -> Iterator[bool]:
    """torch's settings of float32's precision are afterwards as before. Yields whether its older settings can be
    used."""
    kept = [place.fp32_precision for place in _places(torch.backends)]
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the caller has set the newer `fp32_precision`; torch forbids using both ways
        before = None
    try:
        yield before is not None
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
        for place, precision in zip(_places(torch.backends), kept, strict=True):
            place.fp32_precision = precision


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in float32: a GPU since Ampere, a CPU with AVX512-BF16 or AMX."""
    if _pretended:
        return kind(device) == "cuda"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
