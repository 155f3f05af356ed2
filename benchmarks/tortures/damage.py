"""Damaged files and recipes: what is read is what was written, or is refused, or mended with a word."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.tortures import LIMIT, Row, attempt, ours
from dmvae.commands import shards
from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.features import POOL
from dmvae.interop.pipeline import DMVAEPipeline, build_pipeline
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.runtime.done import read_done, write_done, write_source
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.training import checkpoint

RECIPES = Path(__file__).parents[2] / "recipes"


def damaged(good: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One bit flipped, or cut short."""
    place = rng.randrange(len(good))
    if rng.random() < 0.7:
        return f"flip at {place}", good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :]
    return f"cut at {place}", good[:place]


def same(a: Any, b: Any) -> bool:
    """Equality of what holds tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def files(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Every kind of file and folder that carries checksums: what is read is what was written, or is refused."""
    z = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    names = [f"a/{i}.png" for i in range(6)]
    shards.write_safetensors(folder / "shard.safetensors", z, names, [0, 1, 2] * 2)
    shards.write_tar(folder / "shard.tar", z, names, [0, 1, 2] * 2)
    FeatureSet({"features": {"name": "x"}, "images": {"count": 6}}, {POOL: z.flatten(1)}).save(
        folder / "features.safetensors"
    )
    _networks(folder)
    kinds: dict[str, Callable[[], Any]] = {
        "shard.safetensors": lambda: [
            f(folder / "shard.safetensors") for f in (shards.read_names, shards.read_latents)
        ],
        "shard.tar": lambda: [f(folder / "shard.tar") for f in (shards.read_names, shards.read_latents)],
        "features.safetensors": lambda: (lambda f: [f.manifest, f.rows])(
            FeatureSet.load(folder / "features.safetensors")
        ),
        "stage": lambda: [_facts(folder / "stage"), _state(load_tokenizer(folder / "stage/autoencoder"))],
        "pipeline": lambda: [
            (dict(part.config), _state(part))
            for part in DMVAEPipeline.from_pretrained(folder / "pipeline").components.values()
            if part is not None  # it has no guide
        ],
    }
    for kind, read in kinds.items():
        row, wanted = Row(f"flips and cuts: {kind}", tries), read()
        paths = [p for p in (folder / kind, *sorted((folder / kind).rglob("*"))) if p.is_file()]
        for i in range(tries):
            path = paths[i % len(paths)]
            good = path.read_bytes()
            note, bad = damaged(good, rng)
            path.write_bytes(bad)
            said, value = attempt(row, read, f"{path.name}, {note}")
            if not said and not same(wanted, value):
                row.count("silent uses", f"{path.name}, {note}")
            path.write_bytes(good)
        yield row


def small_networks() -> tuple[Autoencoder, LightningDiT]:
    """A tokenizer and a generator on its latents."""
    tokenizer = Autoencoder(
        encoder={"type": "conv", "width": 8, "multipliers": [1], "stride": 4, "out_channels": 8},
        image_size=16,
        latent_channels=4,
        bottleneck_width=8,
        decoder={"type": "conv", "width": 8, "multipliers": [1], "blocks": 1},
    )
    return tokenizer, LightningDiT(in_channels=4, input_size=4, width=8, depth=1, heads=2, num_classes=3)


def _networks(folder: Path) -> None:
    """A finished stage with a tokenizer, and a pipeline, as runs leave them."""
    tokenizer, generator = small_networks()
    save_network(tokenizer, folder / "stage/autoencoder")
    write_done(folder / "stage", {"seconds": 1.0, "config": {"steps": 3}})
    build_pipeline(generator, tokenizer, dict(enumerate("abc"))).save_pretrained(folder / "pipeline")
    write_source(folder / "pipeline", {"generator": "x"})


def _facts(stage: Path) -> Any:
    facts = read_done(stage)
    if facts is None:  # it has warned, but a process warns once
        raise ValueError("the stage is not finished")
    return [facts.get(name) for name in ("seconds", "config", "files")]


def _state(part: Any) -> Any:
    return part.state_dict() if hasattr(part, "state_dict") else None


def checkpoints(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """A damaged checkpoint gives way to the one before, with a word."""
    row = Row("flips and cuts: checkpoints", tries)
    for step in (1, 2):
        checkpoint.save(folder, step, {"w": torch.full((64,), float(step)), "step": step})
    newest = sorted((folder / "step-00000002").iterdir())
    for i in range(tries):
        path = newest[i % len(newest)]
        good = path.read_bytes()
        note, bad = damaged(good, rng)
        path.write_bytes(bad)
        state: dict[str, Any] = {"w": torch.zeros(64), "step": 0}
        said, step = attempt(row, partial(checkpoint.load, folder, state), f"{path.name}, {note}")
        if step is None or not torch.equal(state["w"], torch.full((64,), float(step))) or state["step"] != step:
            row.count("losses", f"{path.name}, {note}: no state is left")
        elif step != 2 and not said:
            row.count("silent uses", f"{path.name}, {note}")
        path.write_bytes(good)
    yield row


ODD = (
    None,
    -1,
    0,
    3.7,
    1e308,
    -1e-9,
    float("nan"),
    float("inf"),
    2**63,
    "",
    "x",
    "1e400",
    [],
    [None],
    {},
    {"a": 1},
    True,
)


def mutated(value: Any, rng: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """The values with one of their parts, at any depth, replaced, renamed, or taken away."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key, values = rng.choice(sorted(value)), dict(value)
        what = rng.random()
        if what < 0.8:
            values[key] = mutated(values[key], rng, odd)
        elif what < 0.9:
            values[key + "s"] = values.pop(key)
        else:
            del values[key]
        return values
    if isinstance(value, list) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(value[place], rng, odd), *value[place + 1 :]]
    return rng.choice(odd)


def recipes(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Mutated recipes are read, or refused in a line."""
    row = Row("mutated recipes, as they are read", tries)
    bases = [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml"))]
    path = folder / "recipe.yaml"
    for _ in range(tries):
        values = mutated({k: v for k, v in rng.choice(bases).items() if k != "extends"}, rng)
        path.write_text(yaml.safe_dump(values))
        attempt(row, lambda: load(path), json.dumps(values)[:150])
    yield row


def run_folder(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """A finished run with a damaged file: the same command repairs or names it, and ends in the same weights."""
    processes, tiny = ours("processes"), ours("tiny")
    row = Row("flips and cuts: a run's folder", tries)
    path = tiny.write(folder, encoder=None, variants={"kl": {"tokenizer.train_encoder": True}}, matching=None)
    first = processes.command("run", str(path), "--reference", "null", "--decoder", "null")
    assert first.returncode == 0, first.stderr
    shutil.copytree(folder / "run", folder / "good", symlinks=True)
    there = sorted(p for p in (folder / "good/stages").rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    kept = [path for path in there if not path.name.startswith("features-")]  # a cache, of which nothing is read here
    wanted = _weights(folder / "good")
    for i in range(tries):
        shutil.rmtree(folder / "run")
        shutil.copytree(folder / "good", folder / "run", symlinks=True)
        name = kept[i % len(kept)].relative_to(folder / "good")
        note, bad = damaged(kept[i % len(kept)].read_bytes() or b"\0", rng)
        (folder / "run" / name).write_bytes(bad)
        row.tried()
        try:
            again = processes.command("run", str(path), "--reference", "null", "--decoder", "null", timeout=10 * LIMIT)
        except subprocess.TimeoutExpired:
            row.count("hangs", f"{name}, {note}")
            continue
        if "Traceback" in again.stderr:
            row.count("tracebacks", f"{name}, {note}: {again.stderr[-150:]}")
        elif (
            again.returncode == 0
            and name.name not in again.stderr + again.stdout
            and _weights(folder / "run") != wanted
        ):
            row.count("silent uses", f"{name}, {note}")
    yield row


def _weights(run: Path) -> dict[str, Any]:
    """Bytes of every tensor below a run's stages; what cannot be read counts as text."""
    found: dict[str, Any] = {}
    for file in sorted((run / "stages").rglob("*.safetensors")):
        try:
            found[str(file.relative_to(run))] = {k: v.numpy().tobytes() for k, v in load_file(file).items()}
        except Exception as error:
            found[str(file.relative_to(run))] = repr(error)
    return found
