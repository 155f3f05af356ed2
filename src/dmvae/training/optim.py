"""AdamW as every stage uses it, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from dmvae.training.stage import TrainingConfig


def adamw(parameters: list[nn.Parameter], config: TrainingConfig, learning_rate: float) -> torch.optim.AdamW:
    """A fused AdamW whose state exists from the start, so that a checkpoint has the same entries at every step."""
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    optimizer.param_groups[0]["lr"] = 0.0  # this first step changes no weight; it only allocates the state
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        state["step"].zero_()
    optimizer.param_groups[0]["base_lr"] = learning_rate
    return optimizer


def rates_of(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
    """Figures of the learning rates of the last updates; 0 before the first."""
    return {f"{name}/learning_rate": float(o.param_groups[0]["lr"]) for name, o in optimizers.items()}


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the base learning rate at `step`: linear warm-up, then constant; or, from `decay_from` on, along a line
    or half a cosine down to final_learning_rate / learning_rate, reached at step `steps`."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return warm
    start = max(config.warmup, config.decay_from * config.steps)
    done = min(1.0, max(0, step - start) / max(1, config.steps - start))
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    floor = config.final_learning_rate / config.learning_rate if config.final_learning_rate else 0.0
    return warm * (floor + (1 - floor) * left)
