"""Figures by name, and how the program presents each: its title, which way is better, what it means."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dmvae.evaluation.bootstrap import interval


@dataclass
class Scores:
    """Figures by name."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals of the figures that are means over images; only the averaged images are resampled."""
    per_class: dict[str, list[float | None]] = field(default_factory=dict)
    """A number for every label; None for a class with fewer than 2 images in one of the sets."""

    def add(self, other: Scores) -> None:
        self.metrics |= other.metrics
        self.intervals |= other.intervals
        self.per_class |= other.per_class

    def add_means(self, values: dict[str, Tensor]) -> None:
        """The mean over images, and its interval, of every row of values [n]."""
        for name, x in values.items():
            self.metrics[name], self.intervals[name] = float(x.double().mean()), interval(x)


@dataclass(frozen=True)
class Figure:
    """How tables, the report and model cards show a figure. Raises ValueError for a `form` that shows no number."""

    key: str
    """Its short name in metrics.json and summary.json."""
    title: str
    unit: str
    """"%" is printed for shares, which are kept as numbers from 0 to 1."""
    better: int
    """1 where higher is better, -1 where lower is, 0 where neither is."""
    form: str
    """A format for `str.format`, such as "{:.3f}"."""
    meaning: str

    def __post_init__(self) -> None:
        try:
            told = self.form.format(0.5)
        except (ValueError, LookupError) as error:
            raise ValueError(
                f"figure {self.key!r}: its form {self.form!r} does not format a number: {error}"
            ) from error
        if told == self.form:
            raise ValueError(f"figure {self.key!r}: its form {self.form!r} has no place for a number, such as {{:.3f}}")

    @property
    def label(self) -> str:
        """Title and unit: "PSNR, dB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def heading(self) -> str:
        """Title, unit and arrow: "PSNR, dB ↑"."""
        return self.label + {1: " ↑", -1: " ↓", 0: ""}[self.better]

    def in_unit(self, value: float) -> float:
        """The value in its `unit`: 66 for the share 0.66 in "%"."""
        return 100 * value if self.unit == "%" else value

    def show(self, value: float) -> str:
        """The value as it is printed, without its unit."""
        return self.form.format(self.in_unit(value))

    def show_spread(self, value: float) -> str:
        """A standard deviation of the figure, as it is printed."""
        shown = self.in_unit(value)
        return f"{shown:.0f}" if shown >= 99.5 else f"{shown:.2g}"
