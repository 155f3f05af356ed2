"""Weight files of other projects: read without running code in them, split into state dicts, checked, written.

A checkpoint is a dict of tensors, or a dict of such dicts, or a flat dict whose names have the inner dicts' names as
prefixes.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmvae.runtime.files import atomic_write
from dmvae.runtime.words import counted, few

T = TypeVar("T")
Shapes = Mapping[str, Sequence[int]]
CONTAINERS = ("vae_wo_ddp", "vae_ema", "model", "ema")
"""Names under which the paper's authors keep state dicts: `vae_*` in vae.pt, the others in a generator's file."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def read_tensors(path: Path) -> dict[str, object]:
    """The content of a file that safetensors or torch.save wrote, on the CPU, as saved (flat or nested).

    The format is recognised by the content, not the suffix. Pickles are read by torch's restricted reader, which
    accepts tensors and plain values, and here argparse.Namespace too, which only holds values. Files in torch's zip
    format are mapped into memory: tensors are read when they are used. Raises ValueError, one line with the path and
    the fix, for another kind of file, one that is cut short, and a pickle that asks for other classes.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name the weights file in it" if path.is_dir() else "no such file; check the path"
        raise ValueError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            head = file.read(10)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise ValueError(f"{path}: the file is empty; download or copy it again")
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and head[8:] == b'{"':  # a safetensors header: eight bytes of length, then JSON
        saved: object = guarded(path, lambda: load_file(path))
    elif zipped or head.startswith(b"\x80"):  # what torch.save writes: a zip archive, before torch 1.6 a pickle
        saved = guarded(path, lambda: _unpickle(path, mmap=zipped))
    else:
        raise ValueError(
            f"{path}: neither a safetensors file nor one that torch.save wrote (it starts with {head!r}); "
            "download it again: a git-lfs pointer or an error page in its place looks like this"
        )
    if not isinstance(saved, Mapping):
        raise ValueError(f"{path}: holds a {type(saved).__name__}, not a dict of tensors; save a model's state_dict()")
    for part in (saved, *(inner for inner in saved.values() if isinstance(inner, Mapping))):
        for name, value in part.items():
            if isinstance(value, Tensor) and (value.layout is not torch.strided or value.is_meta):
                kind = "no values (a meta tensor)" if value.is_meta else f"the layout {value.layout}"
                raise ValueError(f"{path}: {name} has {kind}; save a model's state_dict() of dense tensors")
    return dict(saved)


def read_statistics(file: Path, channels: int) -> dict[str, Tensor]:
    """{"mean", "std"} of latents of so many channels, float32 [C] each, and "whitening", float32 [C, C], where the file
    has one. In the file they may have any shape with as many numbers, such as [1, C, 1, 1]. Raises ValueError, with the
    place, for a file without them."""
    held, shapes = read_tensors(file), {"mean": (channels,), "std": (channels,), "whitening": (channels, channels)}
    try:
        found = {name: torch.as_tensor(held[name]).float() for name in shapes if name in held}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: its statistics are no tensors ({error}); write them as such") from error
    wrong = [f"no {name}" for name in ("mean", "std") if name not in found]
    wrong += [f"{x.numel()} numbers of {name}" for name, x in found.items() if x.numel() != math.prod(shapes[name])]
    if wrong:
        raise ValueError(f"{file}: holds {' and '.join(wrong)}; give a mean and a std for {channels} channels")
    if not (all(x.isfinite().all() for x in found.values()) and (found["std"] > 0).all()):
        raise ValueError(f"{file}: its numbers have to be finite, and those of std above 0")
    found = {name: x.reshape(shapes[name]) for name, x in found.items()}
    if "whitening" in found and torch.linalg.inv_ex(found["whitening"].double()).info:
        raise ValueError(f"{file}: its whitening has no inverse, which decoders need; leave it out")
    return found


def pick(tensors: Mapping[str, object], wanted: Sequence[str], path: Path) -> dict[str, Tensor]:
    """The first state dict of `wanted` that a checkpoint holds, nested or as a prefix of flat names.

    A checkpoint without any of `CONTAINERS` is a state dict itself. Prefixes of `WRAPPERS` are removed.
    Raises ValueError, listing the state dicts that there are.
    """
    groups = state_dicts(tensors, CONTAINERS)
    bare = groups.pop("", None)
    for name in wanted:
        if name in groups:
            return groups[name]
    if bare and not any(name in groups for name in CONTAINERS):
        return bare
    there = ", ".join(f"{name} ({counted(len(group), 'tensor')})" for name, group in groups.items())
    if not there:
        raise ValueError(f"{path}: holds no tensors (its keys: {few(list(tensors), 8) or 'none'})")
    raise ValueError(f"{path}: holds no weights {' or '.join(wanted)}; it holds {there}: ask for one of these")


def state_dicts(tensors: Mapping[str, object], containers: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a checkpoint by name: nested ones, and those of `containers` as prefixes of flat names; "" is
    the tensors outside of all dicts. Wrappers' prefixes are taken off."""
    flat = {name: _tensors(tensors, f"{name}.") for name in containers}
    nested = {str(name): _tensors(value) for name, value in tensors.items() if isinstance(value, Mapping)}
    found = {"": _tensors(tensors)} | flat | nested
    return {name: _unwrapped(group) for name, group in found.items() if group}


def check(given: Mapping[str, Tensor], expected: Shapes, where: object, what: str) -> None:
    """Raise ValueError where `given` does not fit `expected`, listing the names that are unknown, missing, of another
    shape, or not floating point."""
    differ = [
        f"{name} {list(tensor.shape)} {tensor.dtype}, expected {list(expected[name])} floats"
        for name, tensor in given.items()
        # integers without dimensions are batch norm's counters
        if name in expected
        and (tensor.shape != torch.Size(expected[name]) or (tensor.ndim and not tensor.is_floating_point()))
    ]
    kinds = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "misshapen": differ,
    }
    found = [f"{len(names)} {kind}: {few(names, 8)}" for kind, names in kinds.items() if names]
    if found:
        raise ValueError(f"{where}: these are not the weights of {what}; {'; '.join(found)}")


def require_shapes(shapes: Shapes, telling: Mapping[str, int], where: object) -> list[Sequence[int]]:
    """The shapes of the tensors named in `telling` (name -> number of dimensions), in its order. Raises ValueError,
    which lists those that are missing, are empty, or have another number of dimensions."""
    found = {name: shapes.get(name, ()) for name in telling}
    wrong = [f"{name} ({dims}-d)" for name, dims in telling.items() if len(found[name]) != dims or 0 in found[name]]
    if wrong:
        raise ValueError(f"{where}: the tensors that tell the sizes are missing or misshapen: {few(wrong, 8)}")
    return [shapes[name] for name in telling]


def count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts are called `prefix.0.`, `prefix.1.`, ..."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for name in shapes if (found := pattern.match(name))})


def mlp_ratio(width: int, hidden: int, share: float = 1.0) -> float:
    """A ratio for which int(share * int(width * ratio)) is the hidden width; 4 if that fits."""
    near = (round(hidden / share) + step for step in range(-2, 3))
    ratios = [4.0, *((n + part) / width for n in near for part in (0.0, 0.5))]
    return next(r for r in ratios if int(share * int(width * r)) == hidden)


def square(tokens: int, name: str, where: object) -> int:
    """The side of a square of this many tokens; ValueError where there is none."""
    side = math.isqrt(max(tokens, 0))
    if side**2 != tokens or side == 0:
        raise ValueError(f"{where}: {name} covers {tokens} tokens, which are no square; only square images are read")
    return side


def write_state_dict(path: Path, name: str, state: Mapping[str, Tensor]) -> None:
    """Write `{name: state}` as torch.save does, or flat (`name.key`) where the suffix is .safetensors."""
    with atomic_write(path) as part:
        if path.suffix == ".safetensors":
            save_file({f"{name}.{key}": value for key, value in state.items()}, part)
        else:
            torch.save({name: dict(state)}, part)


def _unpickle(path: Path, mmap: bool) -> object:
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of formats that raise an error right after
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def guarded(
    path: Path,
    read: Callable[[], T],
    fix: str = "re-save its state dict alone with safetensors or torch.save",
) -> T:
    """What `read` returns. Whatever it raises for a damaged or hostile file becomes a ValueError, one line with path
    and fix; torch's own advice, to set weights_only=False, is left out."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file breaks its reader anywhere: KeyError, EOFError, RuntimeError ...
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path}: refused, because it asks for {asked[1]}, which is no tensor: loading it would run code that "
                f"the file names. Where you trust its source, {fix}"
            ) from error
        # torch advises weights_only=False, which is bad advice for a downloaded file
        lines = (line for line in str(error).splitlines() if line and "weights_only" not in line)
        raise ValueError(
            f"{path}: damaged, cut short or not made of plain tensors ({type(error).__name__}: {next(lines, '')}); "
            f"download or copy it again, or {fix}"
        ) from error


def _tensors(values: Mapping[str, object], prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if isinstance(name, str) and isinstance(value, Tensor) and name.startswith(prefix)
    }


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in WRAPPERS if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
