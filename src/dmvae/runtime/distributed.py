"""Ranks: the only place that knows how many processes there are. A single process takes the same path."""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


MINUTES = 20.0
"""Minutes after which a rank that waits for others within a step gives up."""
_patience = MINUTES
_DAY = timedelta(days=1)
_background: list[dist.ProcessGroup] = []
_names: list[str] = []


def start(minutes: float = MINUTES) -> torch.device:
    """Join the process group that torchrun describes, if it does; returns this rank's device. `minutes`: how long ranks
    wait for each other within a training step, and GPUs everywhere; elsewhere ranks wait for a day, on the CPU. Raises
    ValueError for more ranks on this node than GPUs."""
    global _patience
    # Weights and moments that decay to zero pass through denormal numbers, with which a CPU computes very slowly.
    torch.set_flush_denormal(True)
    device = torch.device("cuda", _own_gpu()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launched() > 1 and not dist.is_initialized():
        # Tensors on the CPU go through gloo, and so do barriers. A rank may wait there for hours while another scans
        # files or evaluates. GPUs meet within a step.
        _patience = minutes
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=minutes)
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
        _names.append(_agreed(store, rank, world_size, minutes))
        store = dist.PrefixStore(this_start(), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        world = dist.group.WORLD
        assert world is not None
        world._get_backend(torch.device("cpu"))._set_default_timeout(_DAY)
    if dist.is_initialized() and not _background:
        group = dist.new_group(backend="gloo", timeout=_DAY)
        assert isinstance(group, dist.ProcessGroup)  # for a rank outside the group it would be a number
        _background.append(group)
    return device


def launched() -> int:
    """How many processes torchrun has started, which need not have joined yet; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _own_gpu() -> int:
    rank, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if count == 1:  # a scheduler may show each rank its own alone
        return 0
    if rank >= count:
        raise ValueError(f"LOCAL_RANK is {rank}, but this node has {count} GPUs: start {count} processes on it at most")
    return rank


def this_start() -> str:
    """A name of this start of the ranks, the same on all of them, that no other start has; "" for a single process."""
    return _names[-1] if _names else ""


def _agreed(store: dist.Store, rank: int, world_size: int, minutes: float) -> str:
    """The name that all ranks agree on. Raises TimeoutError if some have not joined after so many minutes.

    `torchrun --max-restarts` starts ranks again with the store of those that ended, which still holds their addresses,
    and its count of restarts differs between nodes (pytorch issue 135712). So each rank writes a new name of its own
    there; rank 0 writes its answer under that name, until the rank confirms it.
    """
    own, until = secrets.token_hex(8), time.monotonic() + 60 * minutes
    if rank > 0:
        store.set(f"dmvae/{rank}", own)
        found = store.get(f"dmvae/{own}").decode()
        store.set(f"dmvae/{found}/{rank}", "")
        return found
    missing = [*range(1, world_size)]
    while missing := [other for other in missing if not store.check([f"dmvae/{own}/{other}"])]:
        if time.monotonic() > until:
            raise TimeoutError(
                f"ranks {', '.join(map(str, missing))} did not join within {minutes:g} min (run.timeout); check that "
                "their processes started and can reach MASTER_ADDR"
            )
        for other in missing:
            if store.check([f"dmvae/{other}"]):  # its name, or one of an earlier start, where nobody reads the answer
                store.set(f"dmvae/{store.get(f'dmvae/{other}').decode()}", own)
        time.sleep(0.01)
    return own


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        _background.clear()
        dist.destroy_process_group()


def background() -> dist.ProcessGroup | None:
    """A group of all ranks for what a thread does beside the training, on the CPU; None for a single process."""
    return _background[0] if _background else None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def processors() -> int:
    """How many processors this process may use; all of the machine's where the system does not tell (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def one_voice() -> Iterator[None]:
    """Only the first rank gives warnings inside: for what every rank computes alike."""
    with warnings.catch_warnings():
        if not is_main():
            warnings.simplefilter("ignore")
        yield


def barrier(group: dist.ProcessGroup | None = None) -> None:
    if dist.is_initialized():
        dist.barrier(group)


def broadcast(value: T) -> T:
    """Rank 0's value of a picklable object, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def collect(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value of a picklable object, on rank 0; [] on the others. All ranks must call."""
    if not dist.is_initialized():
        return [value]
    found = [value] * world_size() if is_main() else None
    dist.gather_object(value, found, dst=0, group=group)
    return found or []


def finish(work: dist.Work) -> None:
    """Wait for a collective of a training step, on the CPU. Raises TimeoutError if a rank does not join in time."""
    try:
        work.wait(timedelta(minutes=_patience))
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        raise TimeoutError(
            f"another rank has not come to the end of its step for {_patience:g} min: it hangs, or needs a larger "
            "run.timeout; the same command goes on from the last checkpoint"
        ) from error


class SharedFlag:
    """Whether any rank set its flag in the last call that all ranks have made.

    A signal reaches ranks in different steps, and all must stop in the same one. The flags are exchanged on the
    CPU while the next step runs, so that nobody waits for the answer.
    """

    def __init__(self) -> None:
        self.ahead: tuple[Tensor, dist.Work] | None = None

    def __call__(self, flag: bool, now: bool = False) -> bool:
        """The answer to the previous call; with `now`, also to this one."""
        if world_size() == 1:
            return flag
        before = self._answer()
        x = torch.tensor(float(flag))
        self.ahead = x, dist.all_reduce(x, dist.ReduceOp.MAX, async_op=True)
        return (self._answer() or before) if now else before

    def _answer(self) -> bool:
        if self.ahead is None:
            return False
        (x, work), self.ahead = self.ahead, None
        work.wait()
        return bool(x)


def total(x: Tensor) -> Tensor:
    """Sum of a tensor over the ranks; all ranks must call."""
    if world_size() > 1:
        dist.all_reduce(x := x.clone())
    return x


def average(x: Tensor) -> Tensor:
    """Mean of a tensor over the ranks; all ranks must call."""
    return total(x) / world_size() if world_size() > 1 else x


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of each channel of x [n, C, H, W], over the images and places of all ranks."""
    mean, square = average(torch.stack([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))])).unbind()
    return mean, (square - mean.square()).clamp_min(0)


def gather(x: Tensor) -> Tensor:
    """Concatenate [n, ...] over the ranks to [world * n, ...]; gradients flow to this rank's part.

    x has the same shape on all ranks, and all must call. Every rank computes the same loss on the gathered batch, and
    gradients are then averaged over the ranks. So the gradient is multiplied by their number here, to equal that of one
    process with the whole batch.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gathered.apply(x)
    return gathered


class _Gathered(torch.autograd.Function):
    """The rows of all ranks, to the last digit, whose gradient is `gather`'s."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0].chunk(world_size())[rank()] * world_size()


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the images of all ranks, so that the number of ranks does not change results.
    nn.SyncBatchNorm does the same, but only on GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1 or x.is_meta:  # meta tensors cannot be summed over ranks
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        wide = x.float()
        moments = _Sum.apply(torch.stack([wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))])) / world_size()
        mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        scale = scale * self.weight if self.affine else scale
        shift = self.bias - mean * scale if self.affine else -mean * scale
        return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        dist.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        dist.all_reduce(gradient := gradients[0].clone())
        return gradient


def replicate(module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            sent = tensor.detach().contiguous()  # NCCL refuses others, such as an orthogonal matrix of torch.linalg.qr
            dist.broadcast(sent, src=0)
            tensor.data.copy_(sent)
