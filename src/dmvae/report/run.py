"""What a run left on disk, read for the report. Missing files read as empty."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets import DatasetConfig, Split, open_dataset
from dmvae.jobs import Job
from dmvae.recipe import method_of
from dmvae.references.report import REPORT
from dmvae.report.summary import as_it_stands
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json
from dmvae.training.logging import read_figures

COLOURS = (
    "#2f6fd6", "#e58a1f", "#2f9e7a", "#b03a8c", "#776d1e", "#a58ff0",
    "#e2544c", "#4aafd9", "#8f6f52", "#6a9f3c", "#b57cc9", "#7f8791",
)  # fmt: skip
"""One for each method, in order. Of medium lightness, so that they are visible on white and on black; the first
eight also differ for those who are red- or green-blind."""

Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Trained:
    """One training of a stage, and the methods that use it."""

    variants: tuple[str, ...]
    folder: Path
    rows: Rows

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the rows that have the figure."""
        pairs = [(row["step"], row[key]) for row in self.rows if key in row]
        return [step for step, _ in pairs], [value for _, value in pairs]

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row if key not in ("step", "seconds")))


class Run:
    """`jobs` with what their folders and the run's summary.json hold."""

    def __init__(self, run_dir: Path, jobs: list[Job]) -> None:
        self.dir, self.jobs = run_dir, jobs
        self.summary: Values = as_it_stands(_json(run_dir / "summary.json"), jobs)
        self.recipes: Values = {job.variant: job.recipe for job in jobs}
        self.variants = list(self.recipes)

    @cached_property
    def methods(self) -> dict[str, dict[str, float]]:
        """Variant -> its figures: the summary's, else those of its evaluate stage."""
        rows = self.summary.get("methods") or self._metrics
        numbers = {
            name: {key: float(value) for key, value in row.items() if _is_number(value)} for name, row in rows.items()
        }
        order = [name for name in self.variants if name in numbers] + [n for n in numbers if n not in self.variants]
        return {name: numbers[name] for name in order if numbers[name] or name in self.summary.get("not_ended", ())}

    @cached_property
    def measured(self) -> dict[str, Values]:
        """Variant -> the manifest of its figures, such as the number of images."""
        told = {variant: metrics.get("manifest") for variant, metrics in self._metrics.items()}
        return {variant: manifest for variant, manifest in told.items() if isinstance(manifest, dict)}

    @cached_property
    def _metrics(self) -> dict[str, Values]:
        """Variant -> what its evaluate stage has measured."""
        return self.values("evaluate", "metrics.json")

    @property
    def name(self) -> str:
        return str(self.summary.get("name") or next((recipe.name for recipe in self.recipes.values()), self.dir.name))

    @property
    def features(self) -> str:
        named = [metrics.get("features") for metrics in self._metrics.values()]
        return str(self.summary.get("features") or next(filter(None, named), ""))

    @cached_property
    def classes_of(self) -> dict[str, tuple[str, ...]]:
        """Variant -> names of its classes; () if the data set cannot be opened."""
        data = {repr(recipe.data): recipe.data for recipe in self.recipes.values()}
        asked = {key: _classes(of) for key, of in data.items()}
        return {variant: asked[repr(recipe.data)] for variant, recipe in self.recipes.items()}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of all methods; () if they differ, as in runs with several data sets."""
        named = set(self.classes_of.values())
        return named.pop() if len(named) == 1 else ()

    def class_name(self, label: int) -> str:
        return class_name(self.classes, label)

    def colour(self, variant: str) -> str:
        """Where there are more variants than colours, seeds of one method have the same."""
        if variant not in self.variants:
            return "currentColor"
        name_of = method_of if len(self.variants) > len(COLOURS) else str
        names = list(dict.fromkeys(map(name_of, self.variants)))
        return COLOURS[names.index(name_of(variant)) % len(COLOURS)]

    def stages(self) -> list[str]:
        """Names of the stages that some method has, in the order in which they run."""
        return _topological([[job.stage.name for job in self.jobs if job.variant == v] for v in self.variants])

    def folders(self, stage: str) -> dict[str, Path]:
        """Variant -> the stage's folder, where there is one."""
        return {job.variant: job.folder for job in self.jobs if stage == job.stage.name and job.folder.is_dir()}

    def trained(self, stage: str) -> list[Trained]:
        """The stage's trainings that left a log; a training that methods share comes once."""
        by_folder: dict[Path, list[str]] = {}
        for variant, folder in self.folders(stage).items():
            by_folder.setdefault(folder, []).append(variant)
        found = [Trained(tuple(names), f, read_figures(f / "log.jsonl")) for f, names in by_folder.items()]
        if stage == "matching":
            known = self.values("reference", REPORT)
            found = [
                dataclasses.replace(t, rows=_before(known.get(t.variants[0], {})) + t.rows) for t in found if t.rows
            ]
        return [training for training in found if training.rows]

    def values(self, stage: str, file: str) -> dict[str, Values]:
        """Variant -> what a JSON file in the stage's folder says, where it exists."""
        paths = {variant: folder / file for variant, folder in self.folders(stage).items()}
        return {variant: _json(path) for variant, path in paths.items() if path.exists()}

    def tensors(self, stage: str, file: str) -> dict[str, dict[str, Tensor]]:
        """Variant -> the tensors of a file in the stage's folder, where it exists."""
        paths = {variant: folder / file for variant, folder in self.folders(stage).items()}
        return {variant: load_file(require_intact(path)) for variant, path in paths.items() if path.exists()}

    def scales(self) -> list[float]:
        """Guidance scales that were sampled, the one that the table ranks by first."""
        asked = [float(s) for r in self.recipes.values() for s in getattr(getattr(r, "sample", None), "guidance", ())]
        there = {
            float(path.name.removeprefix("guidance-"))
            for folder in self.folders("sample").values()
            for path in folder.glob("guidance-*")
            if re.fullmatch(r"guidance-[\d.e+-]+", path.name) and any(path.glob("samples-*.safetensors"))
        }
        return [scale for scale in dict.fromkeys([*asked, *sorted(there)]) if scale in there]

    def sampled(self, variant: str, scale: float) -> set[int]:
        """The labels of the drawn samples."""
        found: set[int] = set()
        for path in self._shards(variant, scale):
            with safe_open(require_intact(path), "pt") as file:
                found.update(file.get_tensor("labels").tolist())
        return found

    def samples(self, variant: str, scale: float, labels: list[int], count: int) -> dict[int, list[Tensor]]:
        """Label -> its first `count` samples, uint8 [c, h, w] each, for the given labels."""
        found: dict[int, list[Tensor]] = {label: [] for label in labels}
        for path in self._shards(variant, scale):
            with safe_open(require_intact(path), "pt") as file:
                # one image at a time: a shard of large ones may be gigabytes
                images = file.get_slice("images")
                for i, label in enumerate(file.get_tensor("labels").tolist()):
                    if label in found and len(found[label]) < count:
                        found[label].append(images[i : i + 1][0])
            if all(len(images) == count for images in found.values()):
                break
        return found

    def _shards(self, variant: str, scale: float) -> list[Path]:
        folder = self.folders("sample").get(variant, self.dir / "none") / f"guidance-{scale:g}"
        return sorted(folder.glob("samples-*.safetensors"))

    def seconds(self) -> list[tuple[str, tuple[str, ...], float]]:
        """(stage, the methods that share it, seconds) of every finished stage folder, in stage order."""
        times: dict[tuple[str, Path], tuple[list[str], float]] = {}
        for job in self.jobs:
            done = job.facts()
            if _is_number(done.get("seconds")):
                times.setdefault((job.stage.name, job.folder), ([], done["seconds"]))[0].append(job.variant)
        order = self.stages()
        rows = [(stage, tuple(names), float(seconds)) for (stage, _), (names, seconds) in times.items()]
        return sorted(rows, key=lambda row: order.index(row[0]))


def _before(report: Values) -> Rows:
    """Distances of a method's latents before matching, as a row of step 0; [] for runs of versions without them."""
    before = {f"distance/{name}": x for name, x in report.get("before", {}).items()}
    return [{"step": 0.0} | before] if before else []


def class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


def _classes(data: DatasetConfig) -> tuple[str, ...]:
    splits: tuple[Split, ...] = ("test", "train")  # a run that measures nothing needs no test images
    for split in splits:
        with suppress(ValueError, OSError, ImportError):  # a report can be written without the data
            return tuple(open_dataset(data, split).classes)
    return ()


def _topological(orders: list[list[str]]) -> list[str]:
    """One order of all names that agrees with every given order."""
    merged: list[str] = []
    for order in orders:
        place = 0
        for name in order:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged


def _json(path: Path) -> Values:
    return read_json(require_intact(path), dict) if path.exists() else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
