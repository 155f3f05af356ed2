"""Means of gradients over the ranks, sent while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmvae.runtime import distributed, sharding

BUCKET = 25 << 20
"""Bytes that are sent at a time, as in DDP."""


@contextmanager
def averaged(parameters: Sequence[nn.Parameter], last: bool = True) -> Iterator[None]:
    """Around a backward pass: replace each gradient by its mean over the ranks. Where several passes add up gradients,
    only the `last` one sends.

    A bucket of parameters is sent as soon as all its gradients are there, in the same order on all ranks. A parameter
    that the pass does not reach is sent as zeros when the pass ends; its gradient stays None if no rank has one.
    Sharded parameters are left out: FSDP2 averages those.

    Not DDP: its reducer expects exactly one backward pass per forward pass of the wrapped module. An update may run a
    network several times or not at all, and the adaptive adversarial weight differentiates the same graph twice.
    """
    mine = [p for p in parameters if not sharding.is_sharded(p)]
    if distributed.world_size() == 1 or not mine or not last:
        yield
        return
    buckets = _divide(mine)
    home: dict[Tensor, _Bucket] = {p: bucket for bucket in buckets for p in bucket.parameters}
    ahead = list(reversed(buckets))

    def arrived(p: Tensor) -> None:
        home[p].missing.discard(p)
        while ahead and not ahead[-1].missing:
            ahead.pop().send()

    with ExitStack() as hooks:  # removed at the end: hooks would keep the parameters alive
        for p in mine:
            hooks.callback(p.register_post_accumulate_grad_hook(arrived).remove)
        yield
    while ahead:
        ahead.pop().send()
    used = torch.tensor([p.grad is not None for p in mine], dtype=torch.int32)
    # on the CPU, so that the GPU does not wait
    distributed.finish(dist.all_reduce(used, dist.ReduceOp.MAX, async_op=True))
    here = dict(zip(mine, used.tolist(), strict=True))
    for bucket in buckets:
        bucket.receive(here)


@dataclass
class _Bucket:
    parameters: list[nn.Parameter]
    missing: set[Tensor]
    """The parameters whose gradient is not there yet."""

    def send(self) -> None:
        first = self.parameters[0]
        self.flat = first.new_empty(sum(p.numel() for p in self.parameters))
        # in the parameter's own memory format, which a fused optimizer expects
        parts = self.flat.split([p.numel() for p in self.parameters])
        self.views = [x.as_strided(p.shape, p.stride()) for x, p in zip(parts, self.parameters, strict=True)]
        share = 1 / distributed.world_size()
        for p, view in zip(self.parameters, self.views, strict=True):
            if p.grad is None:
                view.zero_()
            else:
                torch.mul(p.grad, share, out=view)
                p.grad = view  # frees the memory of the old gradient
        self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self, used: dict[nn.Parameter, int]) -> None:
        self.work.wait()
        for p, view in zip(self.parameters, self.views, strict=True):
            p.grad = view if used[p] else None


def _divide(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """The parameters from last to first, about as a backward pass reaches them, in buckets of one dtype and device."""
    buckets: list[_Bucket] = []
    size = BUCKET
    for p in reversed(parameters):
        kind, before = (p.dtype, p.device), buckets[-1].parameters[0] if buckets else p
        if size >= BUCKET or kind != (before.dtype, before.device):
            buckets.append(_Bucket([], set()))
            size = 0
        buckets[-1].parameters.append(p)
        buckets[-1].missing.add(p)
        size += p.numel() * p.element_size()
    return buckets
