"""The table of a run: summary.json, and its print on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from dmvae.evaluation.measure import distances
from dmvae.recipe import method_of
from dmvae.runtime.console import console
from dmvae.runtime.files import whole

if TYPE_CHECKING:
    from dmvae.pipeline import Job

COLUMNS = {
    "psnr": ("PSNR, dB ↑", "{:.2f}"),
    "ssim": ("SSIM ↑", "{:.3f}"),
    "lpips": ("LPIPS ↓", "{:.3f}"),
    "rfd": ("rFD ↓", "{:.4g}"),
    "gfd": ("gFD ↓", "{:.4g}"),
    "grfd": ("gFD to reconstructions ↓", "{:.4g}"),
    "coverage": ("coverage ↑", "{:.3f}"),
    "agreement": ("class agreement ↑", "{:.3f}"),
    "generator_loss": ("generator loss ↓", "{:.3f}"),
    "knn": ("kNN ↑", "{:.3f}"),
    "linear_probe": ("linear probe ↑", "{:.3f}"),
    "effective_rank": ("effective rank", "{:.1f}"),
    "seconds": ("time, s", "{:.0f}"),
}
TOKENIZER_UPDATES = ("tokenizer", "decoder", "encoder")


def write_summary(jobs: list[Job], run_dir: Path) -> dict[str, Any]:
    """Gather the finished stages of `jobs` into run_dir/summary.json; returns what it holds."""
    methods: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    stages, seen = [], set()
    features = ""
    for job in jobs:
        if not job.done.exists():
            continue
        facts = job.facts()
        row = methods.setdefault(job.variant, {})
        images = facts.get("images_seen", {})
        row["seconds"] = round(row.get("seconds", 0.0) + facts["seconds"], 2)
        row["images_seen"] = row.get("images_seen", 0) + sum(images.get(name, 0) for name in TOKENIZER_UPDATES)
        if job.folder not in seen:
            seen.add(job.folder)
            seconds[job.stage.NAME] = round(seconds.get(job.stage.NAME, 0.0) + facts["seconds"], 2)
        stages.append(
            {"variant": job.variant, "stage": job.stage.NAME, "seconds": facts["seconds"], "folder": str(job.folder)}
        )
        if job.stage.NAME == "evaluate":
            metrics = json.loads((job.folder / "metrics.json").read_text())
            features = metrics["features"]
            latents = metrics.pop("latents", {})
            row |= {k: v for k, v in metrics.items() if isinstance(v, float)} | {
                k: v for k, v in latents.items() if isinstance(v, float)
            }
    summary = {
        "name": jobs[0].recipe.name,
        "methods": methods,
        "seeds": over_seeds(methods),
        "seconds": seconds,
        "features": features,
        "stages": stages,
        "environment": environment(),
    }
    with whole(run_dir / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1))
    return summary


def over_seeds(methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method -> {"count": seeds, "mean": {figure: mean}, "spread": {figure: standard deviation}}, from rows that are
    called METHOD@SEED; methods of one seed are left out."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, row in methods.items():
        groups.setdefault(method_of(name), []).append(row)
    return {
        method: {
            "count": len(rows),
            "mean": {key: statistics.fmean(row[key] for row in rows) for key in _common(rows)},
            "spread": {key: statistics.stdev(row[key] for row in rows) for key in _common(rows)},
        }
        for method, rows in groups.items()
        if len(rows) > 1
    }


def _common(rows: list[dict[str, Any]]) -> list[str]:
    return [key for key in rows[0] if all(key in row for row in rows)]


def columns_of(methods: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Figure -> (title, form) of those that a row has; gFD at another guidance scale, gfd@W, follows its own."""
    present = {key for row in methods.values() for key in row if "@" not in key or key.startswith("gfd@")}
    columns = {}
    for key, (title, form) in COLUMNS.items():
        for name in sorted(name for name in present if name.partition("@")[0] == key):
            scale = name.partition("@")[2]
            columns[name] = (f"{title} w={scale}" if scale else title, form)
    return columns


def print_summary(summary: dict[str, Any]) -> None:
    """The table; the long side of methods and figures runs down."""
    columns = columns_of(summary["methods"])
    rows = {
        method: [form.format(row[key]) if key in row else "" for key, (_, form) in columns.items()]
        for method, row in summary["methods"].items()
    }
    for method, group in summary.get("seeds", {}).items():
        rows[f"{method}, {group['count']} seeds"] = [
            f"{form.format(group['mean'][key])} ± {group['spread'][key]:.2g}" if key in group["mean"] else ""
            for key, (_, form) in columns.items()
        ]
    titles, cells = [title for title, _ in columns.values()], list(rows.values())
    table = Table(title=f"{summary['name']}: {distances(summary['features'])}", box=box.SIMPLE_HEAD)
    down = len(rows) >= len(columns)
    table.add_column("method" if down else "")
    for name in titles if down else rows:
        table.add_column(name, justify="right", overflow="fold")
    for i, name in enumerate(rows if down else titles):
        table.add_row(name, *(cells[i] if down else [row[i] for row in cells]))
    console.print(table)


def environment() -> dict[str, str]:
    """What the run ran on, as text."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {name: importlib.metadata.version(name) for name in ("dmvae", "torch", "timm", "diffusers")}
    return {
        "python": platform.python_version(),
        **versions,
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        "system": platform.platform(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
