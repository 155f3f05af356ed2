"""Health of a training: figures whose means over 50 steps must stay within bounds.

A stage gives the bounds (`TrainingStage.bounds`). The loop collects the figures and judges them when it writes a row of
the log, since that waits for the device anyway. If a figure has left its bounds, the loop goes back to a checkpoint
from before the trouble, with smaller learning rates; the second time it raises an error. A training whose figures stay
within bounds is not changed by anything here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmvae.runtime import distributed
from dmvae.runtime.transfer import Loggable, made

WINDOW = 50
"""Steps whose mean is judged."""
IN_A_ROW = 2
"""Means in a row that have to be out of bounds: a single one may be chance."""
LOOKBACK = 200
"""Trouble is noticed within so many steps, so a checkpoint that is older than that is from before it."""
SLOWER = 0.25
"""Factor of the learning rates after going back."""
_NEVER = 2**62
ROLLED_BACK = "rolled_back.txt"
"""File in a stage's folder that says that the stage went back, and why."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The allowed range of a logged figure's mean over 50 steps: from below * min(first, usual) to
    above * max(first, usual), where `first` is its mean over the first 50 steps."""

    figure: str
    """Its name among the scalars that an update logs."""
    usual: float
    """A typical mean, for when the first 50 steps are not typical."""
    above: float = math.inf
    below: float = 0.0
    means: str
    """What it means that the figure is out of bounds, in plain words."""
    advice: str
    """What the user can change."""
    slows: tuple[str, ...] = ()
    """The updates whose learning rate is lowered; () is all."""
    warns: float = 0.0
    """For means below warns * min(first, usual), `warning` is printed once; training goes on."""
    warning: str = ""

    def holds(self, value: float, first: float) -> bool:
        """Whether the mean `value` is in bounds. One that is not finite never is."""
        low, high = self.below * min(first, self.usual), self.above * max(first, self.usual)
        return math.isfinite(value) and low <= value <= high


class Unwell(FloatingPointError):
    """A figure has left its bounds, or is not finite, noticed at `step`."""

    def __init__(self, bound: Bound, value: float, first: float, step: int) -> None:
        told = f"{bound.means}: {bound.figure} is {value:.3g}, and was {first:.3g} at the start"
        # all bounds of the figure are broken then, so what this one means says nothing
        super().__init__(told if math.isfinite(value) else f"{bound.figure} became {value} by step {step}")
        self.bound, self.step = bound, step


class Diverged(FloatingPointError):
    """A training has stopped for good; all ranks raise it."""


class Health:
    """The means so far. `state`, float32 [bounds, 4], is what checkpoints hold: sum and count of the current window,
    the first window's mean (NaN until it ends), and how many windows in a row were out of bounds. All ended windows are
    judged before a checkpoint is written."""

    def __init__(self, bounds: Sequence[Bound], device: torch.device) -> None:
        self.bounds = tuple(bounds)
        self.state = torch.tensor([0.0, 0.0, math.nan, 0.0], device=device).repeat(len(self.bounds), 1)
        self._ill = torch.full((), _NEVER, device=device)
        self._first: dict[str, Tensor] = {}
        """Update -> the norm of its first gradient, in this process."""
        self.ended: list[tuple[int, Tensor]] = []
        """(last step, sums and counts [bounds, 2]) of the windows that are not judged yet."""
        self.low: dict[Bound, int] = {}
        """Bound -> windows in a row that call for a warning."""
        self.warned: set[Bound] = set()
        """Bounds that were warned of. Not in checkpoints: a resumed training warns again."""

    def add(self, figures: Mapping[str, Loggable]) -> None:
        """Add the figures of one update; does not wait for the device."""
        for row, bound in zip(self.state, self.bounds, strict=True):
            if bound.figure in figures:
                value = made(figures[bound.figure])
                row[0] += value.detach().to(row) if isinstance(value, Tensor) else value
                row[1] += 1

    def see(self, value: Tensor, step: int, first: str = "") -> None:
        """Remember the first step at which `value`, a gradient's norm that all ranks have alike, is not finite: going
        back must go to before that step, however late a row of the log shows it. Does not wait for the device.
        Checkpoints do not hold it: the norm is logged, and the row before a checkpoint raises for it.

        first: the update's name, where this is its first gradient. One after another's trouble is not the cause.
        """
        value = value.detach()
        if value.device != self._ill.device:
            return  # torch's norm of no gradient at all, 0 on the CPU; to send it would wait
        if first:
            self._first[first] = torch.where(self._ill == _NEVER, value, 0.0)
        self._ill = torch.where(value.isfinite(), self._ill, self._ill.clamp(max=step))

    def ill_since(self) -> int | None:
        """The step that `see` remembered, or None; waits for the device."""
        step = int(self._ill)
        return None if step == _NEVER else step

    def spoilt(self) -> list[str]:
        """The updates whose first gradient was not finite, before they had changed anything; waits for the device."""
        return [name for name, norm in self._first.items() if not norm.isfinite()]

    def join(self) -> None:
        """Give all ranks the mean of their sums, so that rank 0's checkpoint holds for all. All ranks must call."""
        if self.bounds:
            self.state[:, :2] = distributed.average(self.state[:, :2])

    def end_window(self, step: int) -> None:
        """End the window with this step; does not wait for the device. All ranks must call."""
        self.join()
        self.ended.append((step, self.state[:, :2].clone()))
        self.state[:, :2] = 0

    def judge(self) -> list[str]:
        """Judge the windows that have ended; returns new warnings. Raises Unwell for a bound that is broken in IN_A_ROW
        windows in a row, and for a mean that is not finite."""
        warnings: list[str] = []
        ended, self.ended = self.ended, []
        for step, window in ended:
            rows = torch.cat([window, self.state[:, 2:]], 1).tolist()
            for row, bound, (total, count, first, broken) in zip(self.state, self.bounds, rows, strict=True):
                if not count:
                    continue
                value = total / count
                first = value if math.isnan(first) else first
                broken = 0 if bound.holds(value, first) else broken + 1
                row[2], row[3] = first, broken
                if broken >= IN_A_ROW or not math.isfinite(value):
                    raise Unwell(bound, value, first, step)
                low = value < bound.warns * min(first, bound.usual)
                self.low[bound] = self.low.get(bound, 0) + 1 if low else 0
                if self.low[bound] == IN_A_ROW and bound not in self.warned:
                    self.warned.add(bound)
                    warnings.append(f"warning: {bound.warning}: {bound.figure} is {value:.3g} by step {step}")
        return warnings


def went_back(folder: Path) -> str:
    """The last line of ROLLED_BACK, "" without one; a kill while the stage went back may have left two lines."""
    file = folder / ROLLED_BACK
    return ["", *file.read_text().splitlines()][-1] if file.exists() else ""


def going_back(name: str, trouble: Exception, step: int, to: int) -> str:
    """The message of a stage that goes back from `step` to the step `to`."""
    slowed = trouble.bound.slows if isinstance(trouble, Unwell) else ()
    what = f"the learning rate of {', '.join(slowed)}" if slowed else "all learning rates"
    text = f"step {step}: {told(trouble)}; it goes back to step {to}, with {what} times {SLOWER:g}. "
    return text + f"To avoid this: {advice(name, trouble)}"


def told(error: Exception) -> object:
    """A training's error in words: torch's own errors about matrices do not give the cause."""
    return error if isinstance(error, FloatingPointError) else "a matrix became NaN or infinite (no eigenvalues)"


def advice(name: str, error: Exception) -> str:
    """What the user can change to avoid the error."""
    if isinstance(error, Unwell):
        return error.bound.advice
    return f"give a lower --{name}.learning_rate or a longer --{name}.warmup, with which the stage begins again"


def hopeless(name: str, folder: Path, error: Exception, slowed: bool, spoilt: Sequence[str] = ()) -> str:
    """The error of a stage that stops for good. Its settings must change: the same ones would end the same way. Where
    the updates `spoilt` had no finite gradient to begin with, smaller learning rates would not help."""
    if spoilt:
        text = f"{name}: {told(error)}. The first gradient of {', '.join(spoilt)} already was not finite, which no "
        return text + "learning rate mends: look at the data, at the weights that it starts from, and at parts of yours"
    again = f", although it went back before with smaller learning rates ({went_back(folder)})" if slowed else ""
    return f"{name}: {told(error)}{again}; from the same settings it always will: {advice(name, error)}"
