"""`dmvae encode` and `dmvae decode`: the tokenizer alone, on folders of images and of latents."""

from __future__ import annotations

import io
import json
import os
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from dmvae.config import Values
from dmvae.datasets.image_file import BrokenImage, read_image
from dmvae.datasets.image_scan import Entry, scan
from dmvae.datasets.loading import usable
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.runtime.console import Bar, console
from dmvae.runtime.files import whole, write_tensors
from dmvae.runtime.hashing import digest
from dmvae.runtime.precision import Precision, autocast

Format = Literal["safetensors", "webdataset"]


class Files:
    """Item i is (uint8 image [c, size, size], i), or (its message, i) for a file that cannot be read."""

    def __init__(self, folder: Path, entries: list[Entry], size: int, channels: int):
        self.folder, self.entries, self.size, self.channels = folder, entries, size, channels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[Tensor | str, int]:
        try:
            return read_image(self.folder / self.entries[i].path, self.size, self.channels), i
        except BrokenImage as error:
            return str(error), i


@torch.inference_mode()
def encode_images(
    tokenizer: Any,
    images: Path,
    out: Path,
    *,
    device: torch.device,
    size: int | None = None,
    batch_size: int = 64,
    shard_size: int = 8192,
    workers: int = 4,
    dtype: Literal["float32", "float16"] = "float32",
    form: Format = "safetensors",
    precision: Precision = "auto",
) -> list[Path]:
    """Encode every image below `images` into shards below `out`; returns their paths.

    A safetensors shard holds "latents" [n, C, H, W], not normalised, and "labels" int64 [n] (the class folder's
    number, 0 without class folders), its metadata "names": the relative paths, as JSON. A webdataset shard is a
    tar of NAME.npy and NAME.cls, NAME the path without its suffix, or with it where two differ in nothing else.
    Shards that are there are kept. Files that cannot be read are named and left out.

    Raises ValueError for a folder without images, a size that is no multiple of the stride, or an `out` that
    holds the latents of other images or of another tokenizer.
    """
    size = size or tokenizer.config.image_size
    if size % tokenizer.stride:
        raise ValueError(f"--size {size} is not a multiple of the tokenizer's stride {tokenizer.stride}")
    if not images.is_dir():
        raise ValueError(f"no such folder of images: {images}")
    entries, classes = scan(images)
    files = Files(images, entries, size, tokenizer.config.in_channels)
    plan = {
        "images": digest([(e.path, e.bytes) for e in entries]),
        "tokenizer": _digest(tokenizer),
        "size": size,
        "shard_size": shard_size,
        "dtype": dtype,
        "format": form,
    }
    _claim(out, plan | {"classes": classes})
    tokenizer.to(device, memory_format=torch.channels_last).eval()
    suffix = "tar" if form == "webdataset" else "safetensors"
    names = _tar_names(entries) if form == "webdataset" else [entry.path for entry in entries]
    paths, broken = [], 0
    with Bar("encode", len(files), "images") as bar:
        for number, start in enumerate(range(0, len(files), shard_size)):
            path = out / f"latents-{number:05d}.{suffix}"
            paths.append(path)
            chosen = range(start, min(start + shard_size, len(files)))
            if path.exists():
                bar.step(len(chosen))
                continue
            parts, kept = [], []
            for batch in _batches(files, chosen, batch_size, workers):
                good = [(image, i) for image, i in batch if isinstance(image, Tensor)]
                for message in (image for image, _ in batch if isinstance(image, str)):
                    broken += 1
                    warnings.warn(f"left out: {message}", stacklevel=2)
                if good:
                    with autocast(device, precision):
                        z = tokenizer.encode(as_input(torch.stack([image for image, _ in good]), device)).latents
                    parts.append(z.to("cpu", getattr(torch, dtype)))
                    kept += [i for _, i in good]
                bar.step(len(batch))
            if not parts:
                raise ValueError(f"none of the {len(chosen)} images from {entries[start].path} on can be read")
            write = _write_tar if form == "webdataset" else _write_safetensors
            write(path, torch.cat(parts).contiguous(), [names[i] for i in kept], [entries[i].label for i in kept])
    console.print(f"{len(files) - broken} images in {len(paths)} files below {out}" + _left_out(broken))
    return paths


@torch.inference_mode()
def decode_latents(
    tokenizer: Any,
    latents: Path,
    out: Path,
    *,
    device: torch.device,
    batch_size: int = 64,
    normalized: bool = False,
    precision: Precision = "auto",
) -> int:
    """Decode latents into PNG files below `out`, named as their images were, else by number; returns how many
    there are. Files that are there are kept. cat.jpg becomes cat.png, or cat.jpg.png where cat.webp is there too.

    latents: a folder that `encode_images` wrote, or one .safetensors (its tensor "latents"), .npy or .tar file.
    normalized: they are as flow models make them, to be denormalised first.
    Raises ValueError for files that are damaged or without latents, whose names are not one for each latent or lead
    out of a folder, or whose latents do not fit the tokenizer.
    """
    paths = sorted(latents.glob("latents-*")) if latents.is_dir() else [latents]
    if not paths or not paths[0].exists():
        raise ValueError(f"no latents at {latents}; `dmvae encode` writes latents-NNNNN.safetensors")
    names = [read_names(path) for path in paths]
    flat = [name for part in names for name in part]
    stems = iter(_distinct([os.path.splitext(name)[0] for name in flat], flat))
    tokenizer.to(device, memory_format=torch.channels_last).eval()
    done = 0
    with Bar("decode", len(paths), "files") as bar:
        for path, named in zip(paths, names, strict=True):
            z = read_latents(path)
            if named and len(named) != len(z):
                raise ValueError(f"{path}: {len(z)} latents and {len(named)} names: give each a name, or none")
            places = [out / f"{next(stems) if named else f'{done + i:06d}'}.png" for i in range(len(z))]
            todo = [i for i, place in enumerate(places) if not place.exists()]
            for start in range(0, len(todo), batch_size):
                chosen = todo[start : start + batch_size]
                part = z[chosen].to(device, torch.float32)
                with autocast(device, precision):
                    x = tokenizer.decode(tokenizer.denormalize(part) if normalized else part).sample
                for i, image in zip(chosen, to_uint8(x.float()).cpu(), strict=True):
                    _write_png(places[i], image)
            done += len(places)
            bar.step()
    console.print(f"{done} images below {out}")
    return done


def read_latents(path: Path) -> Tensor:
    """The latents [n, C, H, W] of one file. Raises ValueError when it holds none."""
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if "latents" not in file.keys():  # noqa: SIM118  # not a mapping
                    raise ValueError(f"it has no tensor called 'latents', but {', '.join(file.keys()) or 'nothing'}")
                z = file.get_tensor("latents")
        elif path.suffix == ".npy":
            z = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                arrays = [np.load(io.BytesIO(tar.extractfile(m).read()), allow_pickle=False) for m in _arrays(tar)]  # type: ignore[union-attr]
            z = torch.from_numpy(np.stack(arrays))
        else:
            raise ValueError("they are read from .safetensors, .npy and .tar files")
        if z.ndim != 4:
            raise ValueError(f"they have the shape [n, C, H, W], not {list(z.shape)}")
    return z


def read_names(path: Path) -> list[str]:
    """The names of the latents' images, relative paths; none where the file has no names. Raises ValueError for a file
    that cannot be read, and for a name that leads out of the folder it is relative to."""
    found: Any = []
    with _reading(path):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {}).get("names", "[]"))
        elif path.suffix == ".tar":
            with tarfile.open(path, "r:") as tar:
                found = [m.name.removesuffix(".npy") for m in _arrays(tar)]
        names = [PurePosixPath(name) for name in found]
    for name in names:
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise ValueError(f"{path} names an image {str(name)!r}, which is no file below --out: name it otherwise")
    return [name.as_posix() for name in names]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong, a ValueError that names the file: of damaged bytes these readers raise almost any type."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: no latents that can be read: {error}") from error


def _arrays(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members = [m for m in tar.getmembers() if m.isfile() and m.name.endswith(".npy")]
    if not members:
        raise ValueError("it holds no .npy")
    return members


def _distinct(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Of every item its short name, or its long one where the short one is another item's too: no name twice."""
    count = Counter([*short, *long])
    chosen: dict[str, None] = {}  # a set in order
    for name, full in zip(short, long, strict=True):
        name = name if count[name] == 1 else full
        while name in chosen:
            name += "_"
        chosen[name] = None
    return list(chosen)


def _batches(files: Files, chosen: range, batch_size: int, workers: int) -> Iterator[list[tuple[Tensor | str, int]]]:
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    return iter(DataLoader(files, batch_sampler=batches, num_workers=usable(workers), collate_fn=list))  # type: ignore[arg-type]


def _claim(out: Path, plan: Values) -> None:
    """Write out/encode.json, or compare with the one that is there."""
    out.mkdir(parents=True, exist_ok=True)
    file, text = out / "encode.json", json.dumps(plan, indent=1)
    if not file.exists():
        file.write_text(text)
        return
    there, now = json.loads(file.read_text()), json.loads(text)
    differ = [key for key in now if there.get(key) != now[key]]
    if differ:
        raise ValueError(
            f"{out} holds latents that were encoded with another {' and '.join(differ)}; choose another --out, "
            "or delete it"
        )


def _digest(tokenizer: Any) -> str:
    """Changes with the weights: of each tensor, the sum and the sum of squares."""
    sums = [(k, float(v.double().sum()), float(v.double().square().sum())) for k, v in tokenizer.state_dict().items()]
    return digest(sums)


def _tar_names(entries: list[Entry]) -> list[str]:
    # webdataset takes what follows the first dot of the file's name for the field
    whole = [entry.path.replace(".", "_") for entry in entries]
    return _distinct([os.path.splitext(entry.path)[0].replace(".", "_") for entry in entries], whole)


def _write_safetensors(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    write_tensors(path, {"latents": z, "labels": torch.tensor(labels)}, {"names": json.dumps(names)})


def _write_tar(path: Path, z: Tensor, names: list[str], labels: list[int]) -> None:
    with whole(path) as part, tarfile.open(part, "w") as tar:
        for latent, name, label in zip(z.numpy(), names, labels, strict=True):
            array = io.BytesIO()
            np.save(array, latent)
            _add(tar, f"{name}.npy", array.getvalue())
            _add(tar, f"{name}.cls", str(label).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _write_png(path: Path, image: Tensor) -> None:
    array = image.permute(1, 2, 0).numpy()
    with whole(path) as part:
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(part, format="PNG")


def _left_out(broken: int) -> str:
    return f"; {broken} could not be read and were left out" if broken else ""
