"""Damaged files that carry no checksum of ours: other programs' and copies. They are read, or refused in a line."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.tortures import Row, attempt
from benchmarks.tortures.damage import ODD, damaged, mutated, small_networks
from dmvae.commands import shards
from dmvae.datasets import Dataset, DatasetConfig
from dmvae.datasets.huggingface import HuggingFace
from dmvae.datasets.webdataset import WebDataset
from dmvae.evaluation.images import npz_images
from dmvae.evaluation.reference_statistics import read_statistics
from dmvae.generators import load_generator
from dmvae.interop.official import import_discriminator
from dmvae.models.artifact import save_network
from dmvae.models.discriminator import PatchGAN
from dmvae.tokenizers.adapted import load_tokenizer


def foreign(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """So many tries of each kind of file. One that asks for a network without end gets it: that is not promised."""
    _write(folder)
    kinds: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: load_tokenizer(folder / "tokenizer"),
        "generator": lambda: load_generator(folder / "generator"),
        "released.pt": lambda: import_discriminator(folder / "released.pt"),
        "statistics.npz": lambda: read_statistics(folder / "statistics.npz"),
        "statistics.pt": lambda: read_statistics(folder / "statistics.pt"),
        "images.npz": lambda: npz_images(folder / "images.npz"),
        "latents.npy": lambda: shards.read_latents(folder / "latents.npy"),
        "parquet": lambda: _all(HuggingFace(root=str(folder / "parquet"), size=8, cache_gib=0.0)),
        "webdataset": lambda: _all(WebDataset(root=str(folder / "webdataset"), size=8, cache_gib=0.0)),
    }
    odd = [value for value in ODD if value != 2**63]
    for kind, read in kinds.items():
        read()
        row = Row(f"files of others: {kind}", tries)
        paths = [p for p in (folder / kind, *sorted((folder / kind).rglob("*"))) if p.is_file()]
        for i in range(tries):
            path = paths[i % len(paths)]
            good = path.read_bytes()
            if path.suffix == ".json" and rng.random() < 0.6:
                values = mutated(json.loads(good), rng, odd)
                note, bad = f"{values}"[:300], json.dumps(values).encode()
            else:
                note, bad = damaged(good, rng)
            path.write_bytes(bad)
            attempt(row, read, f"{path.name}, {note}")
            path.write_bytes(good)
        yield row


def _all(data: DatasetConfig) -> list[Any]:
    items: Dataset = data.build("train")
    return [items[i] for i in range(len(items))]


def _write(folder: Path) -> None:
    tokenizer, generator = small_networks()
    save_network(tokenizer, folder / "tokenizer")
    save_network(generator, folder / "generator")
    torch.save(PatchGAN(in_channels=3, width=8, layers=1).state_dict(), folder / "released.pt")
    np.savez(folder / "statistics.npz", mu=np.zeros(8), sigma=np.eye(8))
    torch.save({"mu": torch.zeros(8), "sigma": torch.eye(8)}, folder / "statistics.pt")
    np.savez_compressed(folder / "images.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    np.save(folder / "latents.npy", np.zeros((2, 4, 4, 4), np.float32))
    out = io.BytesIO()
    Image.new("RGB", (12, 10), (9, 9, 9)).save(out, "PNG")
    png = out.getvalue()
    for split in ("train", "test"):
        cells = pa.array([{"bytes": png, "path": None}] * 6, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        place = folder / "parquet" / f"{split}-00000-of-00001.parquet"
        place.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": cells, "label": pa.array([0, 1, 2] * 2)}), place)
        place = folder / "webdataset" / f"x-{split}-000.tar"
        place.parent.mkdir(exist_ok=True)
        with tarfile.open(place, "w") as tar:
            for i in range(6):
                for name, content in ((f"{i}.png", png), (f"{i}.cls", b"%d" % (i % 3))):
                    about = tarfile.TarInfo(name)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
