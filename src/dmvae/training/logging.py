"""Logged figures: one JSONL row per interval, and TensorBoard or Weights & Biases."""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dmvae.config import Values, plain
from dmvae.runtime import distributed
from dmvae.runtime.files import write_text
from dmvae.runtime.transfer import Loggable, made
from dmvae.runtime.yaml_text import as_yaml
from dmvae.sections import Sections, Tracker


class Figures:
    """Collects figures and writes their means at every interval. A figure is a scalar, or [sum, count] for a figure
    that some steps lack; an interval with count 0 has no value for it.

    Tensors stay on the device until `write`, the only method that waits for it; it calls figures that are functions.
    """

    def __init__(self, folder: Path, tracker: Tracker, start: int, name: str, recipe: Values | None = None) -> None:
        """recipe: the values that the tracker shows beside the figures."""
        self.path = folder / "log.jsonl"
        self.pending: dict[str, list[Loggable]] = {}
        self.writer: Any = None
        if not distributed.is_main():
            return
        _forget_from(self.path, start)
        if tracker == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
            if recipe:  # as Markdown
                text = as_yaml(recipe)
                self.writer.add_text("recipe", f"```\n{text}```", start)
        elif tracker == "wandb":
            try:
                import wandb
            except ImportError as error:
                raise ValueError('run.tracker: wandb is not installed: pip install "dmvae[wandb]"') from error
            self.writer = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "dmvae",
                name=name,
                id=_run_id(folder),
                resume="allow",
                dir=str(folder),
                config=recipe,
            )
            # an axis of our own: W&B's step only grows, but a training that went back or was killed repeats steps
            self.writer.define_metric("*", step_metric="step")

    def add(self, figures: dict[str, Loggable]) -> None:
        for name, value in figures.items():
            self.pending.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def write(self, step: int, **more: float) -> dict[str, float]:
        """Write the means since the last call as the row of `step`; returns them. All ranks must call.

        Raises FloatingPointError naming a figure that is not finite.
        """
        names, values = list(self.pending), [[_made(v) for v in vs] for vs in self.pending.values()]
        if names:
            device = next((v.device for vs in values for v in vs if isinstance(v, Tensor)), None)
            sums = [torch.stack([_sum_and_count(v, device) for v in vs]).sum(0) for vs in values]
            found = distributed.average(torch.stack(sums)).tolist()
        else:
            found = []
        row = {name: total / count for name, (total, count) in zip(names, found, strict=True) if count}
        self.pending.clear()
        for name, value in row.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} became {value} by step {step}")
        if distributed.is_main():
            self.write_row(step, row | more)
        return row

    def write_row(self, step: int, row: dict[str, float]) -> None:
        """Write these figures as a row of `step`, beside the means that wait for theirs. The main rank calls it."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
        if hasattr(self.writer, "add_scalar"):
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)
        elif self.writer is not None:
            self.writer.log({"step": step} | row)

    def show(self, step: int, picture: Tensor) -> None:
        """Give the tracker a picture, uint8 [3, h, w]. The main rank calls it."""
        if hasattr(self.writer, "add_image"):
            self.writer.add_image("picture", picture, step)
        elif self.writer is not None:
            import wandb

            self.writer.log({"step": step, "picture": wandb.Image(to_pil_image(picture))})

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close() if hasattr(self.writer, "close") else self.writer.finish()


def values_of(recipe: Sections, stage: str) -> Values:
    """The recipe's values of a stage: those of its section, and of the sections that every stage may read."""
    kept = {stage, *(field.name for field in fields(Sections))}
    return {name: value for name, value in plain(recipe).items() if name in kept}


def _run_id(folder: Path) -> str:
    """W&B's id for this stage's folder, kept in it; a folder of the same name elsewhere gets another."""
    file = folder / "wandb" / "run_id.txt"
    if not file.is_file():
        write_text(file, f"{folder.name}-{secrets.token_hex(4)}")
    return file.read_text()


def _made(figure: Loggable) -> Tensor | float:
    try:
        return made(figure)
    except torch.linalg.LinAlgError:  # the matrix is not finite
        return math.nan


def _sum_and_count(value: Tensor | float, device: torch.device | None) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32, device=device)
    return value if value.ndim else torch.stack([value, torch.ones_like(value)])


def read_figures(path: Path) -> list[dict[str, float]]:
    """The rows of a log.jsonl, [] without the file. A last line cut short by a kill is left out; so are damaged lines,
    with a warning."""
    text = path.read_text(errors="replace") if path.exists() else ""
    *lines, last = text.split("\n")
    rows = []
    for number, line in enumerate([*lines, last] if last else lines, 1):
        try:
            row = json.loads(line)
            if not (isinstance(row, dict) and "step" in row and all(isinstance(x, int | float) for x in row.values())):
                raise ValueError("no figures of a step")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if number <= len(lines):
                warnings.warn(f"{path}, line {number} is damaged ({error}), and left out", stacklevel=2)
    return rows


def _forget_from(path: Path, start: int) -> None:
    """Drop the rows of steps that will run again, so that the log reads like that of an uninterrupted run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_figures(path) if row["step"] <= start]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def losses(row: dict[str, float] | None) -> str | None:
    """The losses of a row of figures, for the bar; None keeps what the bar shows."""
    if row is None:
        return None
    return "loss " + ", ".join(
        f"{name.removesuffix('/loss')} {value:.3f}" for name, value in row.items() if name.endswith("/loss")
    )
