"""What a training stage and the loop say to each other.

A stage module has a config dataclass (a `TrainingConfig`) and two functions:

    build(config, inputs) -> Networks
    updates(networks, batch, rng) -> Iterator[Update]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from dmvae import config as configs


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Fields that every training stage has."""

    steps: int
    """Training steps."""
    batch_size: int = 256
    """Images a step, over all ranks."""
    learning_rate: float = 1e-4
    """AdamW's step size after warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momentum and second-moment decay."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after warm-up; "cosine" falls to zero at the last step."""
    clip: float = 1.0
    """Largest gradient norm of one update; 0 turns clipping off."""
    ema: float = 0.9999
    """Decay of the averaged weights that are saved; early on min(ema, (1 + n) / (10 + n)) is used."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "steps", "batch_size")
        for name in ("learning_rate", "weight_decay", "warmup", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")


@dataclass
class Networks:
    """Everything a training stage holds: named modules, and which of their parameters train."""

    modules: dict[str, nn.Module]
    """All networks. Those that train are saved under their name when the stage ends."""
    trains: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    """Update name -> the parameters it moves. Each gets an AdamW of its own."""
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Update name -> learning rate where it differs from the stage's."""
    averaged: tuple[str, ...] = ()
    """Modules whose exponential moving average is kept; the average is what is saved."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Objects without trainable state that `updates` needs: a reference, a loss."""

    def __getattr__(self, name: str) -> Any:
        for table in ("modules", "extra"):
            if name in self.__dict__.get(table, {}):
                return self.__dict__[table][name]
        raise AttributeError(f"no network or extra is called {name!r}")

    def saved(self) -> dict[str, nn.Module]:
        """The modules that hold a trained parameter."""
        moving = {id(p) for parameters in self.trains.values() for p in parameters}
        return {name: m for name, m in self.modules.items() if any(id(p) in moving for p in m.parameters())}


@dataclass
class Batch:
    """One step's data on the device."""

    data: Tensor
    """Images [n, c, h, w] in [-1, 1], or latents [n, C, H, W] normalised per channel."""
    labels: Tensor
    """int64 [n]."""
    step: int
    """0 at the first step."""
    steps: int
    """Steps of the whole stage."""


@dataclass
class Update:
    """One turn: the loop runs backward, clip, step and average for the parameters named `trains`.

    Gradients are taken with respect to those parameters alone; everything else is frozen meanwhile.
    """

    trains: str
    loss: Tensor
    log: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Scalars to log; tensors stay on the device until the loop writes them. It may be filled during
    the backward pass."""
