"""`dmvae encode` and `dmvae decode`: folders of images to latents, and back."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dmvae.commands.parser import require
from dmvae.commands.shards import SUFFIXES, count_latents, read_latents, read_names, write_safetensors, write_tar
from dmvae.config import Values
from dmvae.datasets.image_file import BrokenImage, read_image, write_png
from dmvae.datasets.image_folder import ends
from dmvae.datasets.image_scan import Entry
from dmvae.datasets.loading import Loader, cuts
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.evaluation.images import images_in
from dmvae.models.base import Tokenizer
from dmvae.ranges import Resampling
from dmvae.runtime.console import Bar, console
from dmvae.runtime.files import locked, read_json, sweep, write_text
from dmvae.runtime.hashing import digest, sha256_of, weights_hash
from dmvae.runtime.precision import Precision, autocast, name_of
from dmvae.runtime.words import counted
from dmvae.tokenizers.adapted import normalisation_of, spread_of

Format = Literal["safetensors", "webdataset"]


class Files:
    """Item i is (uint8 image [c, size, size], i), or (its message, i) for a file that cannot be read."""

    def __init__(self, folder: Path, entries: list[Entry], size: int, channels: int, resampling: Resampling):
        self.folder, self.entries, self.size, self.channels = folder, entries, size, channels
        self.resampling: Resampling = resampling

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, i: int) -> str:
        return str(self.folder / self.entries[i].path)

    def __getitem__(self, i: int) -> tuple[Tensor | str, int]:
        try:
            return read_image(self.folder / self.entries[i].path, self.size, self.channels, self.resampling), i
        except BrokenImage as error:
            return str(error), i


@torch.inference_mode()
def encode_images(
    tokenizer: Tokenizer,
    images: Path,
    out: Path,
    *,
    device: torch.device,
    size: int | None = None,
    resampling: Resampling = "square",
    batch_size: int = 64,
    shard_size: int = 8192,
    workers: int = 4,
    dtype: Literal["float32", "float16"] = "float32",
    form: Format = "safetensors",
    precision: Precision = "auto",
) -> list[Path]:
    """Encode every image below `images` into shards below `out`; returns their paths.

    A safetensors shard holds "latents" [n, C, H, W], not normalised, and "labels" int64 [n] (the class folder's
    number, 0 without class folders); its metadata has "names", the relative paths as JSON. A webdataset shard is a
    tar of NAME.npy and NAME.cls. NAME is the path without its suffix (with it, if two paths differ only in that), and
    with _ for each dot. Existing shards are kept. Unreadable files are named and left out.

    size: height and width of the squares that images become, by `resampling`; None is the tokenizer's. Raises
    ValueError for a folder without readable images, numbers below 1, a size that is no multiple of the stride, latents
    that are not finite, and an `out` that another process uses or that holds the latents of other images, of images
    that were prepared otherwise, or of another tokenizer.
    """
    require(1, batch_size=batch_size, shard_size=shard_size, size=size)
    size = size or tokenizer.config.image_size
    if size % tokenizer.stride:
        raise ValueError(f"--size {size} is not a multiple of the tokenizer's stride {tokenizer.stride}")
    entries, classes = images_in(images)
    files = Files(images, entries, size, tokenizer.config.in_channels, resampling)
    plan = {"images": _contents(images, entries), **_network(tokenizer, device, precision)}
    plan |= {"spread": spread_of(tokenizer), "size": size, "resampling": resampling}
    plan |= {"shard_size": shard_size, "dtype": dtype, "format": form}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=False) as mine:
        if not mine:
            raise ValueError(f"{out}: another process is encoding into it; wait for its end, or choose another --out")
        sweep(out, ("latents-*.part", "encode.json.*.part"))
        _claim(out / "encode.json", plan | {"classes": classes}, "latents-*", "latents that were encoded")
        tokenizer.to(device, memory_format=torch.channels_last).eval()
        names = _tar_names(entries) if form == "webdataset" else [entry.path for entry in entries]
        paths, count, old, broken = [], 0, 0, 0
        with Bar("encode", len(files), "images") as bar:
            for number, start in enumerate(range(0, len(files), shard_size)):
                paths.append(path := out / f"latents-{number:05d}{SUFFIXES[form]}")
                chosen = range(start, min(start + shard_size, len(files)))
                if (there := _finished(path)) is not None:
                    count, old, broken = count + there, old + there, broken + len(chosen) - there
                    bar.step(len(chosen))
                    continue
                _mark(out / "encode.json", finished=False)
                loader = Loader(files, cuts(chosen, batch_size), workers, list)
                z, kept = _encoded(tokenizer, loader, device, precision, getattr(torch, dtype), bar)
                count, broken = count + len(kept), broken + len(chosen) - len(kept)
                if not kept:
                    paths.pop()
                    continue
                write = write_tar if form == "webdataset" else write_safetensors
                write(path, z, [names[i] for i in kept], [entries[i].label for i in kept])
        if not paths:
            raise ValueError(f"none of {counted(len(files), 'image')} in {images} can be read")
        _mark(out / "encode.json", finished=True)
    left_out = f"; {broken} could not be read and were left out" if broken else ""
    console.print(f"{counted(count, 'image')} in {counted(len(paths), 'file')} below {out}{_of_before(old)}{left_out}")
    return paths


def _contents(images: Path, entries: list[Entry]) -> str:
    """A digest of the images' names, sizes and ends."""
    with ThreadPoolExecutor(4) as pool:
        return digest([(e.path, e.bytes) for e in entries], list(pool.map(ends, (images / e.path for e in entries))))


def _encoded(
    tokenizer: Tokenizer,
    batches: Loader[list[tuple[Tensor | str, int]]],
    device: torch.device,
    precision: Precision,
    dtype: torch.dtype,
    bar: Bar,
) -> tuple[Tensor, list[int]]:
    """(latents of the readable images, their numbers); the others are named in warnings."""
    parts, kept = [], []
    for batch in batches:
        good = [(image, i) for image, i in batch if isinstance(image, Tensor)]
        for message in (image for image, _ in batch if isinstance(image, str)):
            warnings.warn(f"left out: {message}", stacklevel=3)
        if good:
            with autocast(device, precision):
                z = tokenizer.encode(as_input(torch.stack([x for x, _ in good]), device)).latents.cpu().to(dtype)
            if not z.isfinite().all():
                raise ValueError(
                    f"the tokenizer's latents are not finite in {str(dtype).removeprefix('torch.')}: its weights are "
                    "damaged, or --dtype or --precision is too narrow for them"
                )
            parts.append(z)
            kept += [i for _, i in good]
        bar.step(len(batch))
    return torch.cat(parts) if parts else torch.empty(0), kept


def _finished(path: Path) -> int | None:
    """How many latents an existing shard holds; None for one that is missing, or, with a warning, damaged."""
    if not path.exists():
        return None
    try:
        if (count := len(read_names(path))) == len(read_latents(path)):
            return count
        problem = "names and latents differ in number"
    except ValueError as error:
        problem = str(error)
    warnings.warn(f"{problem}: {path.name} is encoded anew", stacklevel=3)
    return None


@torch.inference_mode()
def decode_latents(
    tokenizer: Tokenizer,
    latents: Path,
    out: Path,
    *,
    device: torch.device,
    batch_size: int = 64,
    normalized: bool = False,
    precision: Precision = "auto",
) -> int:
    """Decode latents into PNG files below `out`, named after their images, else by number; returns how many there are.
    Existing files are kept. cat.jpg becomes cat.png, or cat.jpg.png if there is a cat.webp too.

    latents: a folder that `encode_images` wrote, or one .safetensors (its tensor "latents"), .npy or .tar file, all
    [n, C, H, W]. normalized: they are as flow models make them, and are denormalised first, by the tokenizer's
    statistics or its config's (scaling_factor). Raises ValueError where it has none; for files that are damaged or hold
    no latents; for names that are fewer or more than the latents, or that lead out of the folder; for latents that are
    not finite or do not fit the tokenizer; for an `out` that holds images of other latents or by another tokenizer; and
    where another process decodes into it.
    """
    require(1, batch_size=batch_size)
    paths = _files_of(latents)
    network = _network(tokenizer, device, precision)
    if normalized:
        _fill_statistics(tokenizer)
    if latents.is_dir():
        _warn_of_plan(latents, network["weights"])
    names, total = [read_names(path) for path in paths], sum(map(count_latents, paths))
    flat = [name for part in names for name in part]
    stems = iter(_distinct([os.path.splitext(name)[0] for name in flat], flat))
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.to(device, memory_format=torch.channels_last).eval()
    done = old = 0
    with locked(out, wait=False) as mine, Bar("decode", total, "images") as bar:
        if not mine:
            raise ValueError(f"{out}: another process is decoding into it; wait for its end, or choose another --out")
        sweep(out, ("**/*.png.*.part", "decode.json.*.part"))
        plan = {"latents": digest([sha256_of(path) for path in paths]), **network, "normalized": normalized}
        unknown = _claim(out / "decode.json", plan, "**/*.png", "images that were decoded")
        for path, named in zip(paths, names, strict=True):
            z = read_latents(path)
            if named and len(named) != len(z):
                raise ValueError(
                    f"{path}: {counted(len(z), 'latent')} and {counted(len(named), 'name')}: give each a name, or none"
                )
            if not z.isfinite().all():
                raise ValueError(f"{path}: latents hold NaN or infinity: a damaged tokenizer made them; encode anew")
            places = [out / f"{next(stems) if named else f'{done + i:06d}'}.png" for i in range(len(z))]
            todo = [i for i, place in enumerate(places) if not place.exists()]
            if unknown and len(todo) < len(places):
                (out / "decode.json").unlink()
                raise ValueError(
                    f"{out} holds images of these names without a decode.json that says which latents they are of; "
                    "choose another --out, or delete it"
                )
            for start in range(0, len(todo), batch_size):
                chosen = todo[start : start + batch_size]
                part = z[chosen].to(device, torch.float32)
                with autocast(device, precision):
                    x = tokenizer.decode(tokenizer.denormalize(part) if normalized else part).sample
                for i, image in zip(chosen, to_uint8(x.float()).cpu(), strict=True):
                    write_png(places[i], image)
                bar.step(len(chosen))
            done, old = done + len(places), old + len(places) - len(todo)
            bar.step(len(places) - len(todo))
    console.print(f"{counted(done, 'image')} below {out}{_of_before(old)}")
    return done


def _files_of(latents: Path) -> list[Path]:
    paths = [latents]
    if latents.is_dir():  # a killed encoding leaves other files there too
        paths = sorted(path for path in latents.glob("latents-*") if path.suffix in SUFFIXES.values())
    if not paths or not paths[0].exists():
        raise ValueError(f"no latents at {latents}; `dmvae encode` writes latents-NNNNN.safetensors")
    return paths


def _fill_statistics(tokenizer: Tokenizer) -> None:
    """Another's are in its own config, where `denormalize` does not look."""
    known = normalisation_of(tokenizer)
    if known is None:
        raise ValueError("--normalized: the tokenizer's files have no mean and deviation of latents; give raw latents")
    tokenizer.set_statistics(*known)


def _distinct(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """A name for every item, no name twice: the short one, or the long one where items share the short one."""
    count = Counter([*short, *long])
    chosen: dict[str, None] = {}  # a set in order
    for name, full in zip(short, long, strict=True):
        name = name if count[name] == 1 else full
        while name in chosen:
            name += "_"
        chosen[name] = None
    return list(chosen)


def _network(tokenizer: Tokenizer, device: torch.device, precision: Precision) -> Values:
    """Weights and precision, on which latents and images depend, for a plan."""
    return {
        "weights": weights_hash(tokenizer),
        "precision": name_of(device, precision),
    }


def _claim(file: Path, plan: Values, made: str, what: str) -> bool:
    """Write the plan to a file and return True; if the file exists, and beside it what an earlier call has `made`, a
    pattern of files, compare it with the plan and return False. `what` the folder holds, for messages. Raises
    ValueError where the plans differ, or the file cannot be read."""
    out, text = file.parent, json.dumps(plan, indent=1)
    if not file.exists() or next(out.glob(made), None) is None:
        write_text(file, text)
        return True
    try:
        now = json.loads(text)
        # older versions did not write these
        there = {"spread": "", "precision": now["precision"], "resampling": "square"} | dict(
            json.loads(file.read_text())
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}), so what {out} holds is not known: delete that folder, or choose another "
            "--out"
        ) from error
    # files of older versions, with "tokenizer", do not say the weights
    differ = [key for key in now if there.get(key) != now[key] and (key in there or "tokenizer" not in there)]
    if differ:
        other = {key: f"other {key}" for key in ("images", "classes", "latents")} | {"weights": "another tokenizer"}
        other["spread"] = "another spread about their means"
        other["normalized"] = f"--normalized {'off' if now.get('normalized') else 'on'}"
        told = " and ".join(other.get(key, f"another {key.replace('_', ' ')}") for key in differ)
        raise ValueError(f"{out} holds {what} with {told}; choose another --out, or delete it")
    return False


def _mark(file: Path, *, finished: bool) -> None:
    """Say in a folder's plan whether all latents are there, for what reads them (`LatentFiles`); older versions did not
    say it."""
    there = json.loads(file.read_text())
    if there.get("finished", True) != finished:
        write_text(file, json.dumps(there | {"finished": finished}, indent=1))


def _warn_of_plan(latents: Path, weights: str) -> None:
    """Warn, and no more, where an encoding has not ended, and of latents by other weights: the tokenizer may differ
    only in its decoder."""
    try:
        there = read_json(latents / "encode.json", dict)
    except (OSError, ValueError):
        return  # not written by `encode`, or damaged; the latents may be fine
    if there.get("finished") is False:
        warnings.warn(f"{latents}: its `dmvae encode` has not ended, so latents are missing", stacklevel=3)
    if (made := there.get("weights")) is not None and made != weights:
        warnings.warn(
            f"{latents} was encoded with other weights than this tokenizer's: the images are right only if both "
            "encode to the same latents",
            stacklevel=3,
        )


def _tar_names(entries: list[Entry]) -> list[str]:
    # webdataset takes all after a file name's first dot as the extension
    whole = [entry.path.replace(".", "_") for entry in entries]
    return _distinct([os.path.splitext(entry.path)[0].replace(".", "_") for entry in entries], whole)


def _of_before(old: int) -> str:
    return f" ({old} of them from before)" if old else ""
