"""How fast images are read: every kind of data set on the same images, decoded at each read and from the cache:

    python -m benchmarks.decoding [--count 2000] [--size 64] [--stored 375] [--parquet DIR]

`open` is the first time, which indexes and decodes what is then kept (of parquet files, in the row without a cache,
also the table that `datasets` makes); `again` is what every later stage and run pays; `first batch` is from an opened
data set. Images/s are of batches of 128 in random order, in this process and with two workers (what is in memory needs
none). Beside each stands how many times those of the fastest training step it is: the encoder's of
recipes/image_folder.yaml at this size, in one thread of this machine. Without a cache every read decodes; from a cache,
images are copied that were decoded once, at `open`. The images are drawn shapes with some noise, or those of a folder
of parquet files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.models import seconds_of, timed
from benchmarks.steps import Steps, prepare
from benchmarks.tables import header, line
from dmvae.commands.parser import parse_overrides
from dmvae.datasets import DatasetConfig
from dmvae.datasets.huggingface import HuggingFace
from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.loading import loader
from dmvae.datasets.shapes import Shapes
from dmvae.datasets.webdataset import WebDataset
from dmvae.recipe import load

SECONDS = 2.0
BATCH = 128
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="images of each kind (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width as read, pixels (default: %(default)s)")
    parser.add_argument(
        "--stored", type=int, help="height as stored, pixels, 3 / 4 of the width; as they are read unless given"
    )
    parser.add_argument("--parquet", help="take the images of this folder or hub id instead of drawing them")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(home / "cache")
        os.environ["HF_DATASETS_CACHE"] = str(home / "arrow")
        with contextlib.suppress(ImportError):
            import datasets  # noqa: F401 -- so that no row's `open` pays for the import
        pictures = drawn(known.count, known.size, known.parquet)
        if known.stored:
            wide = (known.stored * 4 // 3, known.stored)
            pictures = [(picture.resize(wide, Image.Resampling.BICUBIC), label) for picture, label in pictures]
        files = {form: write(home, pictures, form) for form in ("PNG", "JPEG")}
        print(f"{len(pictures)} images of {'x'.join(map(str, pictures[0][0].size))}, read at {known.size}")
        step = step_rate(known.size)
        print(f"the fastest training step takes {step:.0f} images/s\n")
        times = "times the fastest step"
        head = ["data", "cache", "KB an image", "open, s", "again, s", "first batch, ms"]
        head += ["in process, images/s", times, "2 workers, images/s", times]
        print(header(head))
        for form, folder in files.items():
            each = sum(f.stat().st_size for f in (folder / "folder").rglob("*.*")) / len(pictures) / 1000
            for name, cache, build in readers(folder, known.size):
                row(f"{name}, {form}", cache, each, build, step)


def step_rate(size: int) -> float:
    """Images/s of the step of stage `encoder`: of the stages that read images the fastest, for it has no decoder."""
    (recipe,) = load("image_folder", parse_overrides(["--data.root", ".", "--data.size", str(size)])).values()
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(prepare(recipe, Path(folder), "encoder")["encoder"], torch.device("cpu"))
        steps()
        return steps.batch_size / min(seconds_of(steps) for _ in range(5))  # for other programs only slow it


def drawn(count: int, size: int, parquet: str | None) -> list[tuple[Image.Image, int]]:
    if parquet is not None:
        data: Any = HuggingFace(root=parquet, size=size, limit=count).build("train")
    else:
        data = Shapes(count=count, size=size).build("train")
    noise = torch.Generator().manual_seed(0)
    pictures = []
    for image, label in (data[i] for i in range(len(data))):
        if parquet is None:
            grain = 6 * torch.randn(image.shape, generator=noise)
            image = (image + grain).clamp(0, 255).to(torch.uint8)
        pictures.append((Image.fromarray(image.permute(1, 2, 0).numpy()), label))
    return pictures


def write(home: Path, pictures: list[tuple[Image.Image, int]], form: str) -> Path:
    """The same encoded images as files in class folders, a parquet file and a shard."""
    top = home / form
    for kind in ("folder", "parquet", "shards"):
        (top / kind).mkdir(parents=True)
    cells, suffix = [], {"PNG": "png", "JPEG": "jpg"}[form]
    with tarfile.open(top / "shards" / "train-000.tar", "w") as tar:
        for number, (picture, label) in enumerate(pictures):
            file = io.BytesIO()
            picture.save(file, form, quality=90)
            (top / "folder" / "train" / str(label)).mkdir(parents=True, exist_ok=True)
            (top / "folder" / "train" / str(label) / f"{number:06}.{suffix}").write_bytes(file.getvalue())
            cells.append({"bytes": file.getvalue(), "path": None})
            for extension, data in ((suffix, file.getvalue()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    labels = pa.array([label for _, label in pictures])
    pq.write_table(pa.table({"image": pa.array(cells, CELL), "label": labels}), top / "parquet" / "train.parquet")
    return top


def readers(top: Path, size: int) -> list[tuple[str, str, DatasetConfig]]:
    """(kind, what is cached, how it is configured)."""
    folder, parquet, shards = (str(top / kind) for kind in ("folder", "parquet", "shards"))
    return [
        ("image_folder", "none", ImageFolder(root=folder, size=size, valid_fraction=1e-9, cache="none")),
        ("image_folder", "memory map", ImageFolder(root=folder, size=size, valid_fraction=1e-9)),
        ("huggingface", "none", HuggingFace(root=parquet, size=size, cache_gib=0)),
        ("huggingface", "memory map", HuggingFace(root=parquet, size=size)),
        ("webdataset", "none", WebDataset(root=shards, size=size, cache_gib=0)),
        ("webdataset", "memory map", WebDataset(root=shards, size=size)),
    ]


def row(name: str, cache: str, each: float, config: DatasetConfig, step: float) -> None:
    try:
        first, data = timed(lambda: config.build("train"))
    except ValueError as error:  # a package is not there
        print(line([name, cache, error, *[""] * 7]))
        return
    again, data = timed(lambda: config.build("train"))
    few = [range(min(BATCH, len(data)))]
    batch, _ = timed(lambda: next(iter(loader(data, few, 0, torch.device("cpu")))))
    cells = [name, cache, f"{each:.1f}", f"{first:.2f}", f"{again:.2f}", f"{1000 * batch:.1f}"]
    for workers in (0, 2):
        if workers and hasattr(data, "__getitems__"):
            cells += ["-", "-"]
            continue
        images = rate(data, workers)
        cells += [f"{images:.0f}", f"{images / step:.0f}"]
    print(line(cells), flush=True)


def rate(data: Any, workers: int) -> float:
    """Images a second over some seconds, after the first batch: workers take a while to start."""
    order = torch.Generator().manual_seed(0)
    n = len(data)
    batches = [torch.randint(n, (BATCH,), generator=order).tolist() for _ in range(500)] * 200
    stream = iter(loader(data, batches, workers, torch.device("cpu")))
    next(stream)
    begun, seen = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < SECONDS:
        seen += len(next(stream)[1])
    return seen / spent


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
