"""NaN in inputs, losses and weights; images of every odd kind; ranks that fail; recipes with odd values."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.tortures import Row, attempt, ours
from benchmarks.tortures.processes import PATIENCE, finish, run, start
from dmvae.commands.codec import decode_latents, encode_images
from dmvae.datasets.image_folder import ImageFolder
from dmvae.evaluation.images import npz_images
from dmvae.evaluation.reference_statistics import read_statistics
from dmvae.inputs import Inputs
from dmvae.interop.official import import_discriminator
from dmvae.models.discriminator import PatchGAN
from dmvae.recipe import load, resolve

CPU = torch.device("cpu")
PLUGIN = """
import os, time, torch
from dataclasses import dataclass
from dmvae.datasets import DatasetConfig, loading
from dmvae.matching import Matching
from dmvae.registry import register

loading.PATIENCE = 3.0

@register("harm_loss")
@dataclass(frozen=True, kw_only=True)
class Harm(Matching):
    needs_teacher = False
    has_student = False
    at: str = "value"

    def loss(self, z, labels, teacher=None, student=None, context=None):
        if self.at == "value":
            return z.square().mean() * float("nan"), {}
        return z.square().mean(), {"figure": torch.tensor(float("nan"))}

@register("harm_data")
@dataclass(frozen=True, kw_only=True)
class Data(DatasetConfig):
    how: str = ""

    def build(self, split):
        return Items(self.how)

class Items:
    classes, fingerprint, labels = ("a", "b", "c"), "x", torch.arange(48) % 3

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 48

    def __getitem__(self, i):
        if i % 6 == 1 and os.environ.get("RANK", "1") == "1":
            exec(self.how)
        return torch.full((3, 12, 12), 5 * i, dtype=torch.uint8), i % 3
"""
"""An objective that gives NaN, and data whose items do harm on the second rank; not those that are looked at first."""
HARMS = {
    "raises": "raise ValueError('harm')",
    "dies": "import signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": "time.sleep(10**6)",
}

NAMED = re.compile(r"\bnan\b|finite", re.IGNORECASE)
"""What is said of NaN."""


def nans(folder: Path) -> Iterator[Row]:
    """What holds NaN or infinity is refused with a word, wherever it comes in."""
    row, tiny, nan = Row("NaN in inputs, losses, weights", 10), ours("tiny"), float("nan")
    (folder / "plugin.py").write_text(PLUGIN)
    write = partial(tiny.write, folder, variants=None, plugins=[str(folder / "plugin.py")], run__workers=0)
    inputs = Inputs(load(write())["main"], "main", folder, {}, CPU)
    _images(folder / "images")
    spoilt, good = (inputs.new_autoencoder(pretrained=False) for _ in range(2))
    spoilt.bottleneck[-1].bias.data[0] = nan
    blind = inputs.new_autoencoder(pretrained=False)
    blind.decoder.last_layer.data[:] = nan
    judge = PatchGAN(in_channels=3, width=8, layers=1).state_dict()
    torch.save({k: torch.full_like(v, nan) if v.is_floating_point() else v for k, v in judge.items()}, folder / "d.pt")
    save_file({"latents": torch.full((2, 4, 3, 3), nan)}, folder / "z.safetensors")
    save_file({"latents": torch.zeros(2, 4, 3, 3)}, folder / "zero.safetensors")
    np.savez(folder / "s.npz", mu=np.full(8, nan), sigma=np.eye(8))
    np.savez(folder / "images.npz", arr_0=np.full((2, 8, 8, 3), nan, np.float32))
    tries: dict[str, Callable[[], Any]] = {
        "encode, weights": lambda: encode_images(spoilt, folder / "images", folder / "a", device=CPU, workers=0),
        "decode, latents": lambda: decode_latents(good, folder / "z.safetensors", folder / "b", device=CPU),
        "decode, weights": lambda: decode_latents(blind, folder / "zero.safetensors", folder / "c", device=CPU),
        "import, weights": lambda: import_discriminator(folder / "d.pt"),
        "statistics": lambda: read_statistics(folder / "s.npz"),
        "images in an array": lambda: npz_images(folder / "images.npz"),
    }
    for name, act in tries.items():
        said, _ = attempt(row, act, name)
        if not NAMED.search(said):
            row.count("silent uses", f"{name}: not said: {said[-200:]}")
    for name, over in {
        "loss": {"matching__objective": {"type": "harm_loss"}},
        "figure": {"matching__objective": {"type": "harm_loss", "at": "figure"}},
        "weights in training": {"tokenizer__learning_rate": 1000, "tokenizer__clip": 0, "tokenizer__steps": 60},
        "reference": {"reference__distribution": {"type": "array", "path": str(folder / "z.safetensors")}},
    }.items():
        row.tried()
        shutil.rmtree(folder / "run", ignore_errors=True)
        log = folder / "run.log"
        path = write(encoder=None, tokenizer__train_encoder=True, **over)
        code, said = finish(start(["run", str(path)], log), log, row, name)
        if code == 0:
            row.count("silent uses", f"a run with NaN in {name}")
        elif not NAMED.search(said):
            row.count("silent uses", f"{name}: not said: {said[-200:]}")
    yield row


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"good{i}.png")


def odd_images(folder: Path) -> Iterator[Row]:
    """One odd file among good images: it is read as an image, or left out with a word."""
    odd = _odd()
    row = Row("odd images", len(odd))
    for name, content in odd.items():
        place = folder / "images"
        shutil.rmtree(place, ignore_errors=True)
        _images(place)
        path = place / name
        content(path) if callable(content) else path.write_bytes(content)

        def read(place: Path = place) -> int:
            data = ImageFolder(root=str(place), size=8, cache="none", valid_fraction=1e-9).build("train")
            return sum(tuple(data[i][0].shape) == (3, 8, 8) for i in range(len(data)))

        said, read_well = attempt(row, read, name)
        if not said and read_well != 4:  # of five, one is the test split
            row.count("silent uses", f"{name}: {read_well} images of 4")
    yield row


def _odd() -> dict[str, bytes | Callable[[Path], Any]]:
    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    noise = Image.fromarray(np.random.default_rng(9).integers(256, size=(24, 24, 3), dtype=np.uint8))
    png, jpeg = encoded(noise, "PNG"), encoded(noise, "JPEG")
    frames = [noise, noise.rotate(90)]
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    huge = png[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + png[24:]
    cases: dict[str, bytes | Callable[[Path], Any]] = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "head.jpg": jpeg[:20],
        "flipped.png": png[:200] + bytes([png[200] ^ 8]) + png[201:],
        "huge.png": huge,
        "no-pixels.png": png[:16] + bytes(8) + png[24:],
        "jpeg-in.png": jpeg,
        "trailing.png": png + b"x" * 1000,
        "one.png": encoded(noise.resize((1, 1)), "PNG"),
        "thin.png": encoded(noise.resize((1000, 1)), "PNG"),
        "grey16.png": encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
        "bits.png": encoded(noise.convert("1"), "PNG"),
        "palette.png": encoded(noise.convert("P"), "PNG", transparency=0),
        "clear.png": encoded(noise.convert("RGBA"), "PNG"),
        "cmyk.jpg": encoded(noise.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(noise, "JPEG", exif=exif),
        "moving.gif": encoded(noise, "GIF", save_all=True, append_images=frames),
        "moving.webp": encoded(noise, "WEBP", save_all=True, append_images=frames),
        "floats.tif": encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"),
        "fifo.png": os.mkfifo,
        "device.png": lambda path: path.symlink_to("/dev/zero"),
        "loop.png": lambda path: path.symlink_to(path.name),
        "nowhere.png": lambda path: path.symlink_to("nowhere"),
        "a\x1b[31m\nname.png": png,
        "\udcff.png": png,
    }
    return cases


def ranks(folder: Path, harms: int) -> Iterator[Row]:
    """Under torchrun, an item that does harm on the second of two ranks ends both, with a word; `harms`: how many."""
    row, tiny = Row("ranks and their workers that raise, die, hang", harms), ours("tiny")
    (folder / "plugin.py").write_text(PLUGIN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for how, where in [("dies", 0), ("hangs", 2), ("raises", 0), ("raises", 2), ("dies", 2), ("hangs", 0)][:harms]:
        data = {"type": "harm_data", "size": 12, "how": HARMS[how]}
        over = {"plugins": [str(folder / "plugin.py")], "variants": None, "encoder": None, "run__workers": where}
        over["run__timeout"] = 1 if (how, where) == ("hangs", 0) else 20
        path = tiny.write(folder, data=data, tokenizer__batch_size=16, tokenizer__train_encoder=True, **over)
        shutil.rmtree(folder / "run", ignore_errors=True)
        note = f"{how}, {'in a worker' if where else 'itself'}"
        said = run([*torchrun, "-m", "dmvae", "tokenizer", str(path)], row, note, PATIENCE)
        if not re.search(r"item \d+ of the data|Signal 9|SIGKILL|exitcode +: -9|another rank has not come", said):
            row.count("silent uses", f"{note}: not said: {said[-300:]}")
    yield row


def odd_fields(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Every field of a recipe with odd values: refused in a line before the first stage, or built by every stage."""
    ranges = ours("test_ranges")
    every = [(place, odd) for place in ranges.places(ranges.BASE) for odd in ranges.ODD]
    row = Row("mutated recipes, to the networks of every stage", min(tries, len(every)))
    for place, odd in rng.sample(every, row.of):

        def build(place: Any = place, odd: Any = odd) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ranges.built(resolve(ranges.changed(ranges.BASE, place, odd), path=folder / "recipe")["main"])

        attempt(row, build, f"{'.'.join(place)}: {str(odd)[:30]}")
    yield row
