"""Counts what a computation takes: peak bytes of tensors, and operations. Works with real and with fake tensors."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dmvae.runtime import precision

M = TypeVar("M", bound=nn.Module)


class Footprint(TorchDispatchMode):
    """Counts, for tensors made inside the block: `alive` (bytes now), `peak` (most bytes so far), and `flops` of matrix
    products and convolutions (a multiplication and an addition are two)."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.flops = 0
        self._known: dict[int, weakref.finalize[[int, int], torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            self._known[key] = weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.alive -= size
        del self._known[key]


class _Rules(TorchFunctionMode):
    """Run in float32 what autocast runs in float32 on a GPU, but not on a CPU."""

    FULL: tuple[Callable[..., Tensor], ...] = (F.group_norm, F.layer_norm)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func in self.FULL and torch.is_autocast_enabled("cpu"):
            args = tuple(x.float() if isinstance(x, Tensor) else x for x in args)
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Compute on the CPU as on a GPU inside the block, as far as memory is concerned: bf16 where precision is "auto",
    norms in float32, attention without a matrix of weights. So a machine without a GPU can plan for one."""
    with precision.pretend("cuda"), _Rules():
        yield


def built(build: Callable[[], M]) -> M:
    """`build()`. Where tensors are fake, the network is built on the meta device and gets fake weights afterwards:
    other projects' networks read values while they are built (timm's drop path rates), and fake tensors have none."""
    if not isinstance(torch.empty(0), FakeTensor):
        return build()
    with _disable_current_modes(), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading weights into meta tensors warns
        network = build()
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
    return network
