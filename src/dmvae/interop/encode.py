"""`dmvae encode` and `dmvae decode`: the tokenizer alone, on folders of images and of latents."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from dmvae.datasets.image_file import BrokenImage, read_image
from dmvae.datasets.image_scan import Entry, scan
from dmvae.datasets.memory import digest
from dmvae.evaluation.metrics import to_uint8
from dmvae.files import whole
from dmvae.stages.latents import write_tensors
from dmvae.training.data import as_input, usable
from dmvae.training.logging import Bar, console
from dmvae.training.precision import Precision, autocast

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
    tar of NAME.npy and NAME.cls. Shards that are there are kept. Files that cannot be read are named and left out.

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
                    kept += [entries[i] for _, i in good]
                bar.step(len(batch))
            if not parts:
                raise ValueError(f"none of the {len(chosen)} images from {entries[start].path} on can be read")
            (_write_tar if form == "webdataset" else _write_safetensors)(path, torch.cat(parts).contiguous(), kept)
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
    there are. Files that are there are kept.

    latents: a folder that `encode_images` wrote, or one .safetensors (its tensor "latents"), .npy or .tar file.
    normalized: they are as flow models make them, to be denormalised first.
    Raises ValueError for files without latents, or whose latents do not fit the tokenizer.
    """
    paths = sorted(latents.glob("latents-*")) if latents.is_dir() else [latents]
    if not paths or not paths[0].exists():
        raise ValueError(f"no latents at {latents}; `dmvae encode` writes latents-NNNNN.safetensors")
    tokenizer.to(device, memory_format=torch.channels_last).eval()
    done = 0
    with Bar("decode", len(paths), "files") as bar:
        for path in paths:
            z, names = read_latents(path)
            places = [out / (Path(name).with_suffix(".png") if name else f"{done + i:06d}.png") for i, name in names]
            todo = [i for i, place in enumerate(places) if not place.exists()]
            for start in range(0, len(todo), batch_size):
                chosen = todo[start : start + batch_size]
                part = z[chosen].to(device, torch.float32)
                with autocast(device, precision):
                    x = tokenizer.decode(tokenizer.denormalize(part) if normalized else part).sample
                for i, image in zip(chosen, to_uint8(x.float()).cpu(), strict=True):
                    _write_png(places[i], image)
            done += len(z)
            bar.step()
    console.print(f"{done} images below {out}")
    return done


def read_latents(path: Path) -> tuple[Tensor, list[tuple[int, str]]]:
    """(latents [n, C, H, W], [(i, name or "")]) of one file. Raises ValueError when it holds none."""
    names: list[str] = []
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            if "latents" not in file.keys():  # noqa: SIM118  # not a mapping
                raise ValueError(f"{path} has no tensor called 'latents', but {', '.join(file.keys()) or 'nothing'}")
            z, names = file.get_tensor("latents"), json.loads((file.metadata() or {}).get("names", "[]"))
    elif path.suffix == ".npy":
        z = torch.from_numpy(np.load(path, allow_pickle=False))
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            members = [m for m in tar.getmembers() if m.name.endswith(".npy")]
            arrays = [np.load(io.BytesIO(tar.extractfile(m).read()), allow_pickle=False) for m in members]  # type: ignore[union-attr]
        z, names = torch.from_numpy(np.stack(arrays)), [m.name.removesuffix(".npy") for m in members]
    else:
        raise ValueError(f"{path}: latents are read from .safetensors, .npy and .tar files")
    if z.ndim != 4:
        raise ValueError(f"{path}: latents have the shape [n, C, H, W], not {list(z.shape)}")
    return z, list(enumerate(names or [""] * len(z)))


def _batches(files: Files, chosen: range, batch_size: int, workers: int) -> Iterator[list[tuple[Tensor | str, int]]]:
    batches = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    return iter(DataLoader(files, batch_sampler=batches, num_workers=usable(workers), collate_fn=list))  # type: ignore[arg-type]


def _claim(out: Path, plan: dict[str, Any]) -> None:
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


def _write_safetensors(path: Path, z: Tensor, entries: list[Entry]) -> None:
    labels = torch.tensor([entry.label for entry in entries])
    write_tensors(path, {"latents": z, "labels": labels}, {"names": json.dumps([entry.path for entry in entries])})


def _write_tar(path: Path, z: Tensor, entries: list[Entry]) -> None:
    with whole(path) as part, tarfile.open(part, "w") as tar:
        for latent, entry in zip(z.numpy(), entries, strict=True):
            array = io.BytesIO()
            np.save(array, latent)
            # webdataset takes what follows the first dot of the file's name for the field
            name = Path(entry.path).with_suffix("").as_posix().replace(".", "_")
            _add(tar, f"{name}.npy", array.getvalue())
            _add(tar, f"{name}.cls", str(entry.label).encode())


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
