"""The table of a run: summary.json, and the table on the terminal."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import fill

import torch
from rich import box
from rich.table import Table

import dmvae
from dmvae.config import Values
from dmvae.evaluation.metrics.frechet import distances
from dmvae.jobs import Job
from dmvae.recipe import method_of
from dmvae.report.figures import shown
from dmvae.runtime.console import console
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json, write_text
from dmvae.runtime.words import counted, few
from dmvae.stages.arrival import LEAST

SUMMARY = "summary.json"
TOKENIZER_UPDATES = ("tokenizer", "decoder", "encoder")
"""Updates whose images count as seen by the tokenizer."""


def write_summary(jobs: list[Job], run_dir: Path, earlier: Mapping[str, str] | None = None) -> Values:
    """Write `summary_of` the jobs to run_dir/summary.json, and return it. earlier: {method: what has changed since it
    was run}; None takes it from the existing summary."""
    summary = summary_of(jobs, earlier_of(run_dir, jobs) if earlier is None else earlier)
    write_text(run_dir / SUMMARY, json.dumps(summary, indent=1))
    return summary


def earlier_of(run_dir: Path, jobs: list[Job]) -> dict[str, str]:
    """Method -> how its settings differed, for rows that a run's summary marks as of earlier settings; {} without a
    readable summary."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # no summary, or a damaged one
        return _still(read_json(run_dir / SUMMARY, dict), jobs)
    return {}


def as_it_stands(summary: Values, jobs: list[Job]) -> Values:
    """A run's summary, made anew if stages were finished after it was written, by single commands, and none is left to
    do. While methods train, it is that of the run's last end."""
    told, now = _folders(summary), {(job.variant, job.stage.name, job.folder.name) for job in jobs}
    anew = told and told != now and all(job.finished for job in jobs)
    return summary_of(jobs, _still(summary, jobs)) if anew else summary


def _folders(summary: Values) -> set[tuple[str, str, str]]:
    """(variant, stage, name of its folder) of the stages that a summary counts as finished."""
    return {(of["variant"], of["stage"], Path(of["folder"]).name) for of in summary.get("stages", ())}


def _still(summary: Values, jobs: list[Job]) -> dict[str, str]:
    """The summary's "earlier", without methods whose stages have been run again since."""
    gone = _folders(summary) - {(job.variant, job.stage.name, job.folder.name) for job in jobs}
    return {name: how for name, how in summary.get("earlier", {}).items() if name not in {of for of, _, _ in gone}}


def summary_of(jobs: list[Job], earlier: Mapping[str, str]) -> Values:
    """The results of the finished stages of `jobs`. "not_ended": methods with an unfinished stage, "not_ended_at": that
    stage; their rows in "methods" have what there is. "unlike": methods that were measured in other features than most,
    on other images or with another number of samples, or run with `earlier` settings: their figures do not compare."""
    methods: dict[str, Values] = {}
    seconds: dict[str, float] = {}
    stages, seen = [], set()
    measured, samples, verdicts = dict[str, tuple[str, str]](), dict[str, int](), dict[str, str]()
    stand: dict[str, str] = {}
    for job in jobs:
        row = methods.setdefault(job.variant, {})
        if not job.finished:
            begun = {"new": "not begun", "interrupted": "begun"}
            stand.setdefault(job.variant, f"{job.stage.name} ({begun.get(job.state, job.state)})")
            continue
        facts = job.facts()
        images = facts.get("images_seen", {})
        row["seconds"] = round(row.get("seconds", 0.0) + facts["seconds"], 2)
        row["images_seen"] = row.get("images_seen", 0) + sum(images.get(name, 0) for name in TOKENIZER_UPDATES)
        if job.folder not in seen:
            seen.add(job.folder)
            seconds[job.stage.name] = round(seconds.get(job.stage.name, 0.0) + facts["seconds"], 2)
        stages.append(
            {"variant": job.variant, "stage": job.stage.name, "seconds": facts["seconds"], "folder": str(job.folder)}
        )
        if job.stage.name == "evaluate":
            metrics = read_json(require_intact(job.folder / "metrics.json"), dict)
            measured[job.variant] = metrics["features"], _how(metrics)
            if count := metrics.get("manifest", {}).get("measured", {}).get("count"):
                samples[job.variant] = count
            if (verdict := _verdict(metrics)) is not None:
                verdicts[job.variant] = verdict
            for part in (metrics, metrics.get("latents", {})):
                row |= {key: value for key, value in part.items() if isinstance(value, float)}
    usual = statistics.mode(measured.values()) if measured else ("", "")
    usually = statistics.mode(samples.values()) if samples else 0
    unlike = {
        name: f"{how[0]}, {how[1]}" + (f", {counted(samples[name], 'sample')}" if name in samples else "")
        for name, how in measured.items()
        if how != usual or samples.get(name, usually) != usually
    }
    for name in earlier:
        unlike[name] = f"{unlike[name]}, earlier settings" if name in unlike else "earlier settings"
    seeded = {job.variant for job in jobs if method_of(job.variant, job.recipe) != job.variant}
    ended = seeded - stand.keys() - unlike.keys()
    return {
        "name": " and ".join(dict.fromkeys(job.recipe.name for job in jobs)),
        "methods": methods,
        "not_ended": list(stand),
        "not_ended_at": stand,
        "seeds": over_seeds({name: row for name, row in methods.items() if name in ended}),
        "arrival": verdicts,
        "seconds": seconds,
        "features": usual[0],
        "unlike": unlike,
        "earlier": dict(earlier),
        "stages": stages,
        "environment": environment(),
    }


def _verdict(metrics: Values) -> str | None:
    """Whether latents reached their reference, in words; None without a reference."""
    if "arrival" in metrics:
        return str(metrics["arrival"]["verdict"])
    count = metrics.get("count", LEAST)
    if "distance_to_reference" in metrics and count < LEAST:
        images = counted(count, "test image is", "test images are")
        return f"not measured, {images} too few ({LEAST} needed)"
    return None


def _how(metrics: Values) -> str:
    """On what images a method was measured, as far as its figures say."""
    reference = metrics.get("manifest", {}).get("reference", {})
    return f"{metrics.get('count', '?')} images" + (f" of {reference['fingerprint'][:8]}" if reference else "")


def over_seeds(methods: dict[str, Values]) -> dict[str, Values]:
    """Method -> {"count": seeds, "mean": {figure: mean}, "spread": {figure: standard deviation}}, from rows that are
    called METHOD@SEED; methods of one seed are left out."""
    groups: dict[str, list[Values]] = {}
    for name, row in methods.items():
        groups.setdefault(method_of(name), []).append(row)
    return {
        method: {
            "count": len(rows),
            "mean": {key: mean([row[key] for row in rows]) for key in _common(rows)},
            "spread": {key: spread([row[key] for row in rows]) for key in _common(rows)},
        }
        for method, rows in groups.items()
        if len(rows) > 1
    }


def mean(values: list[float]) -> float:
    """The mean; NaN if a value is not finite."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def spread(values: list[float]) -> float:
    """The standard deviation, 0 where values differ by rounding alone; NaN if a value is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    found = statistics.stdev(values)
    return found if found > 1e-12 * max(map(abs, values)) else 0.0


def _common(rows: list[Values]) -> list[str]:
    return [key for key in rows[0] if all(key in row for row in rows)]


def named(method: str, summary: Values) -> str:
    """A method's name in tables, with how it differs from the others."""
    if method in summary.get("not_ended", ()):
        return f"{method}, not ended"
    return f"{method} (by {how})" if (how := summary.get("unlike", {}).get(method)) else method


def standing(summary: Values) -> list[str]:
    """Which methods have not ended, a line for each stage that they are at."""
    found = alike(summary.get("not_ended_at", {}))
    return [f"not ended, at stage {stage}: {', '.join(methods)}" for stage, methods in found.items()]


def outdated(summary: Values) -> list[str]:
    """Which rows are of earlier settings, a line for each change since then."""
    found = alike(summary.get("earlier", {}))
    return [f"of earlier settings, as {how}: {few(methods)}" for how, methods in found.items()]


def alike(told: Mapping[str, str]) -> dict[str, list[str]]:
    """Text -> the methods that have it."""
    names: dict[str, list[str]] = {}
    for method, text in told.items():
        names.setdefault(text, []).append(method)
    return names


def print_summary(summary: Values) -> None:
    """Print the table; the longer of methods and figures are its rows. Below it come verdicts and unfinished methods,
    which is all for a run without a finished stage."""
    columns = shown({key for row in summary["methods"].values() for key in row})
    rows = {
        named(method, summary): [figure.show(row[key]) if key in row else "" for key, figure in columns.items()]
        for method, row in summary["methods"].items()
    }
    for method, group in summary.get("seeds", {}).items():
        means, spreads = group["mean"], group["spread"]
        rows[f"{method}, {counted(group['count'], 'seed')}"] = [
            f"{figure.show(means[key])} ± {figure.show_spread(spreads[key])}" if key in means else ""
            for key, figure in columns.items()
        ]
    titles, cells = [figure.heading for figure in columns.values()], list(rows.values())
    of = f": {distances(summary['features'])}" if summary["features"] else ""  # none without `evaluate`
    down = len(rows) >= len(columns)
    beside: dict[str, Sequence[str]] = {**rows}
    if down:
        beside = dict(zip(titles, zip(*cells, strict=True), strict=True))
    title = f"{summary['name']}{of}"
    while beside:
        table, count = widest(list(rows) if down else titles, beside, title)
        console.print(table)
        beside, title = dict(list(beside.items())[count:]), ""
    for method, verdict in summary.get("arrival", {}).items():
        console.print(f"reference of {method}: {verdict}")
    for line in (*standing(summary), *outdated(summary)):
        console.print(line)


def widest(names: Sequence[str], columns: Mapping[str, Sequence[str]], title: str) -> tuple[Table, int]:
    """(a table of as many columns as fit on the terminal without cutting numbers, at least one; their number)."""
    for count in range(len(columns), 0, -1):
        table = Table(title=title, box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        chosen = list(columns)[:count]
        for heading in chosen:
            table.add_column(fill(heading, 14, break_long_words=False), justify="right", no_wrap=True, overflow="fold")
        for name, *cells in zip(names, *(columns[heading] for heading in chosen), strict=True):
            table.add_row(name, *cells)
        if console.measure(table, options=console.options.update(width=1_000_000)).maximum <= console.width:
            break
    return table, count


def environment() -> dict[str, str]:
    """Software versions and hardware of this machine, as text."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "dmvae": dmvae.__version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "diffusers")},
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        "system": platform.platform(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
