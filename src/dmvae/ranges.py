"""The values that a field of a config may hold, most of them numbers: `width: Width = 64`, with
Width = Annotated[int, Range(1, 65536)].

`dmvae.config.read` checks ranges as it reads a recipe, and `--help` shows them. They are part of a field's type, and so
of no fingerprint. A number without a range has to be finite, and a whole one to fit into 64 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; a round bracket in `ends` leaves that end out: "(]" is above low, up to high."""

    low: float
    high: float
    ends: Literal["[]", "(]", "[)", "()"] = "[]"

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.ends[0] == "[" else self.low < value
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    def __str__(self) -> str:
        low = f"above {_digits(self.low)}," if self.ends[0] == "(" else _digits(self.low)
        return f"{low} {'to' if self.ends[1] == ']' else 'to below'} {_digits(self.high)}"


UNSAID = {int: Range(-(2**63), 2**63 - 1), float: Range(-math.inf, math.inf, "()")}
"""The range of a number whose type has none."""

Width = Annotated[int, Range(1, 65536)]
"""Channels or units of a layer."""
Depth = Annotated[int, Range(1, 1024)]
"""Layers or blocks."""
BatchSize = Annotated[int, Range(1, 2**20)]
"""Items at a time."""
Count = Annotated[int, Range(1, 10**9)]
"""Items, steps, or turns."""
Wait = Annotated[int, Range(0, 10**9)]
"""Steps or turns; 0 has a meaning that the field's docstring gives, such as "never"."""
MOST_PIXELS = 16384
Pixels = Annotated[int, Range(1, MOST_PIXELS)]
"""Height and width of an image."""
Channels = Annotated[int, Range(1, 3)]
"""Channels of images."""
Seed = Annotated[int, Range(-(2**62), 2**62)]
Share = Annotated[float, Range(0, 1)]
"""A part of something, a probability, or a time from noise to data."""
Decay = Annotated[float, Range(0, 1, "[)")]
"""Decay of a running mean."""
Weight = Annotated[float, Range(0, 1e6)]
"""Factor of a term, where 0 is off."""
Rate = Annotated[float, Range(0, 1000)]
"""A learning rate, or a weight decay."""
Scale = Annotated[float, Range(0, 1e6, "(]")]
"""A width, a standard deviation, a temperature."""
Guidance = Annotated[float, Range(-1000, 1000)]
"""A guidance scale."""
SamplerSteps = Annotated[int, Range(1, 10**6)]
"""Steps of a sampler from noise to data."""
TimeShift = Annotated[float, Range(0.001, 1000)]
"""Shift of the time grid towards noise; 1 is none."""
TimeMean = Annotated[float, Range(-5, 5)]
"""Mean of the normal number whose logistic function is a time."""
TimeSpread = Annotated[float, Range(0, 4, "(]")]
"""Its standard deviation."""
Resampling = Literal["square", "adm"]
"""How an image becomes a square of another size; `dmvae.datasets.image_file.RESAMPLINGS` has the functions."""


def range_of(hint: object) -> Range | None:
    """The range in a type, also in one of a union or a tuple; None without one."""
    return next(
        (found for part in get_args(hint) if (found := part if isinstance(part, Range) else range_of(part))), None
    )


def _digits(value: float) -> str:
    """Large powers of ten and of two as such: 10^9."""
    for base in (10, 2):
        exponent = round(math.log(abs(value), base)) if abs(value) >= 1e6 else 0
        if exponent and abs(value) == base**exponent:
            return f"{'-' if value < 0 else ''}{base}^{exponent}"
    return f"{value:.15g}"
