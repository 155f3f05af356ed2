"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """average <- decay * average + (1 - decay) * weights, with decay = min(ema, (1 + n) / (10 + n)).

    n is the number of earlier updates. A small decay at first keeps random start weights from dominating the average of
    a short run.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.updates = 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.tensors = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        return {str(i): tensor for i, tensor in enumerate(self.tensors)} | {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        for i, tensor in enumerate(self.tensors):
            tensor.copy_(state[str(i)])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module carries the averaged weights inside the block."""
        own = [p.detach().clone() for p in self.parameters]
        _assign(self.parameters, self.tensors)
        try:
            yield
        finally:
            _assign(self.parameters, own)


@torch.no_grad()
def _assign(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
