"""A run folder as the stages leave it, made up: the report is judged by it, and tested with it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file

from dmvae.datasets import DatasetConfig, open_dataset
from dmvae.datasets.shapes import Shapes
from dmvae.runtime.done import read_done

TRAINED = {
    "tokenizer": "tokenizer",
    "reference": "teacher",
    "matching": "student",
    "decoder": "decoder",
    "generator": "generator",
}
ORDER = ("tokenizer", "reference", "matching", "decoder", "latents", "generator", "sample", "evaluate")


@dataclass(frozen=True)
class Section:
    steps: int = 2000
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class Sampling:
    count: int = 160
    guidance: tuple[float, ...] = (1.0, 1.5)


@dataclass(frozen=True)
class FakeRecipe:
    name: str = "coloured shapes"
    seed: int = 0
    data: DatasetConfig = field(default_factory=lambda: Shapes(size=32, test_count=400, count=8))
    tokenizer: Section = field(default_factory=Section)
    matching: Section | None = field(default_factory=Section)
    generator: Section = field(default_factory=Section)
    sample: Sampling = field(default_factory=Sampling)


def facts_of(folder: Path):
    return lambda: read_done(folder) or {}


def build(
    run_dir: Path, variants: tuple[str, ...] = ("matched", "kl"), stages: tuple[str, ...] = ORDER, **recipe
) -> list:
    """Jobs (fakes) of a run under `run_dir`; the first variant and every odd one are matched to a reference."""
    rng = np.random.default_rng(0)
    jobs, methods = [], {}
    for v, variant in enumerate(variants):
        matched = v % 2 == 0
        its = FakeRecipe(**({} if matched else {"matching": None}) | recipe)
        for stage in stages:
            if stage in ("reference", "matching") and not matched:
                continue
            shared = stage in ("tokenizer", "reference") and matched
            folder = run_dir / "stages" / f"{stage}-{0 if shared else v:012d}"
            folder.mkdir(parents=True, exist_ok=True)
            module = SimpleNamespace(name=stage)
            jobs.append(
                SimpleNamespace(
                    variant=variant, stage=module, recipe=its, folder=folder, reads={}, facts=facts_of(folder)
                )
            )
            seconds = {"tokenizer": 310, "generator": 540, "matching": 610}.get(stage, 25.4) * (1 + 0.1 * v)
            (folder / "done.json").write_text(json.dumps({"stage": stage, "seconds": seconds, "steps": 2000}))
            if stage in TRAINED:
                _log(folder / "log.jsonl", stage, v, rng)
        if "sample" in stages:
            _samples(run_dir / "stages" / f"sample-{v:012d}", its, v)
        if "evaluate" in stages:
            _pictures(run_dir / "stages" / f"evaluate-{v:012d}", its, v, rng)
            methods[variant] = _metrics(v)
        if "reference" in stages and matched:
            z, labels = latents(0, 1200, rng)
            save_file(
                {"latents": z.view(-1, 4, 4, 4), "labels": labels},
                run_dir / "stages/reference-000000000000/map.safetensors",
            )
    if methods:
        summary = {"name": "coloured shapes", "methods": methods, "features": "effnet-lite0@64"}
        summary["environment"] = {
            "python": "3.12.3",
            "dmvae": "0.1.0",
            "torch": "2.9",
            "processor": "Example 9000",
            "cores": "2",
        }
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return jobs


def latents(kind: int, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Even kinds: classes apart, with a little more noise for larger ones; odd kinds: classes hardly apart."""
    centres = np.random.default_rng(5).normal(size=(8, 64))
    labels = rng.integers(0, 8, n)
    tight = 0.9 if kind % 2 == 0 else 0.15
    z = centres[labels] * tight + rng.normal(size=(n, 64)) * (0.5 + 0.06 * kind)
    return torch.from_numpy((z / z.std()).astype(np.float32)), torch.from_numpy(labels)


def _metrics(v: int) -> dict[str, float]:
    row = {
        "psnr": 26.41 + 1.1 * v,
        "ssim": 0.871 + 0.012 * v,
        "rfd": 8.1 - 0.4 * v,
        "gfd": 21.37 + 9.2 * v,
        "gfd@1.5": 17.2 + 8 * v,
    }
    row |= {"precision": 0.71 - 0.04 * v, "recall": 0.55, "density": 0.83 - 0.1 * v, "coverage": 0.66 - 0.07 * v}
    return row | {
        "generator_loss": 0.812 + 0.09 * v,
        "knn": 0.912 - 0.2 * (v % 2),
        "images_seen": 512000,
        "effective_rank": 9.3,
    }


def _log(path: Path, stage: str, v: int, rng: np.random.Generator) -> None:
    rows = []
    noise = lambda: float(np.exp(rng.normal() * 0.05))
    for step in range(20, 2001, 20):
        p = step / 2000
        row = {
            "step": step,
            f"{TRAINED[stage]}/loss": (0.6 + 0.08 * v + 1.2 * np.exp(-9 * p)) * noise(),
            "seconds": step / 10,
        }
        row[f"{TRAINED[stage]}/learning_rate"] = 1e-4 * (1 - p if stage == "generator" else 1)
        row[f"{TRAINED[stage]}/gradient_norm"] = 0.4 * noise() + 2 * np.exp(-20 * p)
        if stage in ("tokenizer", "matching", "decoder"):
            row |= {
                "reconstruction/pixel": 0.05 * noise() + 0.2 * np.exp(-6 * p),
                "reconstruction/perceptual": 0.3 * noise(),
            }
        if stage == "decoder" and step > 1000:
            row["adversarial/discriminator"] = noise()
        if stage == "matching":
            row |= {f"gap/t{t:.2f}": (0.02 + t * 0.2 * np.exp(-4 * p)) * noise() for t in (0.12, 0.38, 0.62, 0.88)}
            row |= {
                "health/gradient_reconstruction": 0.01 * noise(),
                "health/gradient_matching": 0.2 * np.exp(-2 * p) * noise(),
            }
            if step % 100 == 0:
                row |= {
                    "health/effective_rank": 9 + 2 * p + v,
                    "health/std": 1 - 0.1 * p,
                    "health/error": 0.1 + 0.1 * p,
                    "health/mean": 0.02 * noise(),
                }
                near = {"whole": 1 + 8 * np.exp(-3 * p), "token": 1 + 5 * np.exp(-4 * p), "energy": 1 + 9 * np.exp(-p)}
                told = {"told": 10 * np.exp(-3 * p), "told_whole": 10.0, "told_class": 10 - p}
                told |= {f"told/{name}": (3 + i) * np.exp(-i * p) for i, name in enumerate(("circle", "bar <b>"))}
                row |= {f"distance/{name}": value for name, value in (near | told | {"ratio": 1 + p}).items()}
        rows.append(json.dumps(row))
        if stage in ("tokenizer", "generator") and step % 500 == 0:
            figure = "test/psnr" if stage == "tokenizer" else "test/loss"
            rows.append(json.dumps({"step": step, figure: 20 + 5 * p}))
    path.write_text("\n".join(rows) + '\n{"step": 2020, "tok')


def _blur(images: torch.Tensor, by: float, rng: torch.Generator) -> torch.Tensor:
    x = images.float()
    soft = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = (1 - by) * x + by * soft + 255 * 0.03 * by * torch.randn(x.shape, generator=rng)
    return x.round().clamp(0, 255).to(torch.uint8)


def _samples(folder: Path, recipe: FakeRecipe, v: int) -> None:
    data = open_dataset(recipe.data, "test")
    for scale in recipe.sample.guidance:
        order = torch.argsort(data.labels, stable=True)
        k = len(data.classes)
        by_class = [order[data.labels[order] == label] for label in range(k)]
        pick = torch.stack([ids[i % len(ids)] for i in range(20) for ids in by_class])
        images = torch.stack([torch.as_tensor(data[int(i)][0]) for i in pick])
        images = _blur(images, 0.35 + 0.4 * v, torch.Generator().manual_seed(v))
        (folder / f"guidance-{scale:g}").mkdir(parents=True, exist_ok=True)
        for part in (0, 1):
            half = slice(part * 80, part * 80 + 80)
            path = folder / f"guidance-{scale:g}/samples-{part:05d}.safetensors"
            save_file({"images": images[half].contiguous(), "labels": data.labels[pick][half].contiguous()}, path)


def _pictures(folder: Path, recipe: FakeRecipe, v: int, rng: np.random.Generator) -> None:
    data = open_dataset(recipe.data, "test")
    originals = torch.stack([torch.as_tensor(data[i][0]) for i in range(24)])
    z, labels = latents(v, 1500, rng)
    copies = _blur(originals, 0.3 + 0.15 * v, torch.Generator().manual_seed(v))
    save_file(
        {"originals": originals, "reconstructions": copies, "map_latents": z, "map_labels": labels},
        folder / "pictures.safetensors",
    )
