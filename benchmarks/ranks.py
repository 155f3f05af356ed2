"""How long ranks take to average gradients: a training step as the loop takes it, beside torch's DDP and beside one
that averages nothing, on the same network:

    python -m benchmarks.ranks [--ranks 2] [--batch 8] [--width 256] [--depth 6] [--rounds 12]

Ranks are processes on this machine, one thread each, that talk through gloo. The three ways take turns, and the best
turn of each counts, for other programs only slow what is timed. Start it on a quiet machine with a core for every rank.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmvae.models.dit import LightningDiT
from dmvae.runtime import distributed
from dmvae.runtime.gradients import averaged

STEPS = 5
"""Of a turn."""
WAYS = ("ours", "DDP", "no averaging")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images on each rank (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="of the LightningDiT (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=6, help="its blocks (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help=f"turns of {STEPS} steps (default: %(default)s)")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(args.ranks)}
    torch.multiprocessing.spawn(time_ways, (args,), nprocs=args.ranks)


def time_ways(rank: int, args: argparse.Namespace) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    distributed.start()
    steps = {way: step_of(way, args) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(args.rounds + 1):
        for way, step in steps.items():
            distributed.barrier()
            begun = time.perf_counter()
            for _ in range(STEPS):
                step()
            distributed.barrier()
            if turn:  # the first is a warm-up
                times[way].append((time.perf_counter() - begun) / STEPS)
    if distributed.is_main():
        best = {way: min(found) for way, found in times.items()}
        count = sum(p.numel() for p in network(args).parameters())
        print(f"{args.ranks} ranks, {args.batch} images each, {count / 1e6:.1f} M parameters")
        for way, seconds in best.items():
            print(f"{way:<13} {seconds * 1e3:7.1f} ms  {seconds / best['DDP']:.2f} of DDP's time")
    distributed.stop()


def network(args: argparse.Namespace) -> LightningDiT:
    torch.manual_seed(0)
    size = {"width": args.width, "depth": args.depth, "heads": 4}
    model = LightningDiT(in_channels=16, input_size=4, num_classes=10, **size)
    for parameter in model.parameters():  # zeros would let no gradient through
        nn.init.normal_(parameter, std=0.02)
    return model


def step_of(way: str, args: argparse.Namespace) -> Callable[[], object]:
    """A step of this way; each has a network of its own."""
    model = network(args)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    forward: Callable[..., Tensor] = DistributedDataParallel(model) if way == "DDP" else model
    z, t = torch.randn(args.batch, 16, 4, 4), torch.rand(args.batch)
    labels = torch.zeros(args.batch, dtype=torch.int64)

    def step() -> None:
        loss = forward(z, t, labels).square().mean()
        with averaged(parameters, last=way == "ours"):
            loss.backward(inputs=None if way == "DDP" else parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
