"""Flow networks sharded over the ranks with FSDP2; everything else stays whole on each rank."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dmvae.runtime import distributed


def shard(
    module: nn.Module, *, bf16: bool = False, in_node: bool = False, reshard: bool = True
) -> dict[Tensor, nn.Parameter]:
    """Shard a module over the ranks with FSDP2 (or each of its parts that its method `sharded_parts` names). Returns
    old parameter -> new parameter; empty where nothing was sharded.

    Each rank keeps its part of the weights, gradients, optimizer state and averages; a block's weights are gathered
    while it runs. Only modules that name their blocks in `_no_split_modules`, as diffusers' do, are sharded: the flow
    networks, which are the large ones. All others stay replicated; so does everything in a single process.

    bf16: gather weights in bf16, but for modules with `gathers_bf16 = False`; what is kept, gradients and their sums
    stay float32. in_node: shard over the ranks of a node, and keep a copy on every node (HSDP). reshard: drop gathered
    weights between forward and backward pass.
    """
    if distributed.world_size() == 1:
        return {}
    found = (_sharded(part, bf16, in_node, reshard) for part in shardable(module))
    return {old: new for part in found for old, new in part.items()}


def shardable(module: nn.Module) -> list[nn.Module]:
    """The module, or the parts of it, that `shard` would shard, each separately."""
    parts: Callable[[], list[nn.Module]] | None = getattr(module, "sharded_parts", None)
    return [part for part in (parts() if parts else [module]) if getattr(part, "_no_split_modules", None)]


def _sharded(module: nn.Module, bf16: bool, in_node: bool, reshard: bool) -> dict[Tensor, nn.Parameter]:
    names = getattr(module, "_no_split_modules", ())
    bf16 = bf16 and getattr(module, "gathers_bf16", True)
    before = list(module.parameters())
    for p in before:  # FSDP2 takes no other layout, and convolutions may have one
        p.data = p.data.contiguous()
    mesh = _mesh(before[0].device.type, in_node, dist.group.WORLD)
    # Inputs keep their precision: a time in bf16 has three digits. So do the sums of gradients.
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    for part in [*(m for m in module.modules() if type(m).__name__ in names), module]:
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    # FSDP2 warns against changing outputs in place; nothing here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    return dict(zip(before, module.parameters(), strict=True))


@cache
def _mesh(device: str, in_node: bool, group: dist.ProcessGroup | None) -> DeviceMesh:
    """One mesh of all ranks for all modules: every mesh has process groups of its own and, on GPUs, their buffers."""
    ranks = distributed.world_size()
    if not in_node:
        return init_device_mesh(device, (ranks,))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    # two axes; the first holds copies, the second shards
    return init_device_mesh(device, (ranks // local, local), mesh_dim_names=("nodes", "ranks"))


def defer_gradient_sync(module: nn.Module, defer: bool) -> None:
    """With `defer`, backward passes of a sharded module add up whole gradients on this rank (for all but the last part
    of an accumulated batch); else they reduce-scatter at once. Does nothing to a module that is not sharded."""
    for part in shardable(module):
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(not defer)


def is_sharded(x: Tensor) -> bool:
    return isinstance(x, DTensor)


def whole_tensor(x: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded; all ranks must call."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_module(module: nn.Module) -> nn.Module:
    """The module itself if it is not sharded; else an unsharded copy on the CPU (for a module with `sharded_parts`, a
    plain module that holds its tensors). All ranks must call."""
    sharded = any(isinstance(part, FSDPModule) for part in shardable(module))
    if not sharded:
        return module
    whole = {name: whole_tensor(value).cpu() for name, value in module.state_dict().items()}
    if not isinstance(module, FSDPModule):
        return _holding(whole)
    # fully_shard derives a class from the module's own, which is its second base.
    own: Any = type(module).__bases__[1]
    copy = own.from_config(module.config)
    copy.load_state_dict(whole)
    return copy


def _holding(state: dict[str, Tensor]) -> nn.Module:
    """A module that holds these tensors under these names, so that they can be saved."""
    holder = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        at = holder
        for step in path:
            if step not in at._modules:
                at.add_module(step, nn.Module())
            at = at.get_submodule(step)
        at.register_buffer(last, value)
    return holder
