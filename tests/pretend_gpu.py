"""A GPU that is none: its tensors compute on the CPU, and refuse to be mixed with the CPU's own, as a GPU's do. For a
process of its own, in which autograd has not run yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dmvae.runtime import distributed
from dmvae.runtime.random import Random

NAME = "pretend"
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Operations on the device that indices of the CPU may go along with."""
MADE = {torch.tensor, torch.as_tensor, torch.asarray}
"""Functions that reach no dispatcher of Python with the device that is asked for."""
MEMORY = {Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage}


class There(Tensor):
    """A tensor on the pretended device; `here` is its memory, on the CPU."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        same = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device(NAME, 0), **same)

    def __init__(self, here):
        self.here = here

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def is_there(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def run(func, args, kwargs):
    """The operation, on the CPU. Its result is where it is asked for, or else where the operands are."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Operations():  # in inference mode these come whole
            return func.decompose(*args, **kwargs)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    theirs, asked = [x for x in tensors if isinstance(x, There)], kwargs.get("device")
    if not theirs and not is_there(asked):
        return func(*args, **kwargs)
    if func is aten._has_compatible_shallow_copy_type.default:
        return len(theirs) == len(tensors)
    own = [tuple(x.shape) for x in tensors if not isinstance(x, There) and x.ndim]  # a number may go along
    goes = func is aten.copy_.default or (func in INDEXED and isinstance(args[0], There))
    if theirs and own and not goes:
        raise RuntimeError(f"{func}: tensors of two devices; the CPU's are {own}")
    filled = isinstance(args[0], There) if func is aten.copy_.default else True
    there = filled if asked is None else is_there(asked)
    known = {id(x.here): x for x in theirs}
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
    made = func(*args, **kwargs)
    return tree_map(lambda x: known.get(id(x), There(x)) if isinstance(x, Tensor) else x, made) if there else made


class Operations(TorchDispatchMode):
    """All operations, also those that make tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What never becomes an operation, or looks at memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in MADE and is_there(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if args and isinstance(args[0], There):
            if func is Tensor.tolist:
                return args[0].here.tolist()
            if func in MEMORY:
                return func(args[0].here)
        return func(*args, **kwargs)


class Module:
    """What torch asks of a kind of device."""

    def is_initialized(self):
        return True

    def is_available(self):
        return True

    def current_device(self):
        return 0

    def device_count(self):
        return 1

    def _is_in_bad_fork(self):
        return False

    def manual_seed(self, seed):
        pass  # nothing draws there

    manual_seed_all = manual_seed

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def _registered() -> torch.device:
    if not hasattr(torch, NAME):  # torch keeps the name as long as the process lives
        if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
            pytest.skip("torch is too old to be told of another device in Python")
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
        rules.fallback(torch.library.fallthrough_kernel)
    return torch.device(NAME, 0)


rules = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
"""Those of autocast: none, so networks compute in float32 there."""
_init = Random.__init__


def _draw_here(self, *key, device="cpu", part=(0, 1)):
    """In place of `Random.__init__`: it says that it is there, and draws the CPU's numbers."""
    self.where = torch.device(device)
    _init(self, *key, part=part)


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Stages that run inside the block take the device for this machine's GPU."""
    device = _registered()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with (
        patch.object(distributed, "start", lambda *_: device),
        patch.object(Random, "__new__", lambda cls, *_, **__: torch.Generator.__new__(cls)),
        patch.object(Random, "__init__", _draw_here),
        patch.object(Random, "device", property(lambda self: self.where)),
        Operations(),
        Functions(),
    ):
        torch.__future__.set_swap_module_params_on_conversion(True)  # weights stay the same objects, as on a GPU
        try:
            yield device
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)
