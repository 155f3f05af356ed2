"""Time the networks on this machine: `python -m benchmarks.models [--threads 2] [--precision auto] [--device cuda]`.

Prints, for forward plus backward: the median time, ms, and the share of this machine's measured peak of
matrix multiplication that it amounts to (FLOPs as torch counts them: products and convolutions). Then how many
times as fast our S/1 is as the same network written as its paper reads (`peers/lightningdit.py`), timed in turn;
and what the adaptive weight's two gradients at a decoder's last layer take, in backward passes of the decoder.
`compile` is what `run.compile` does, to either network by the block. On a GPU also the most memory that was taken,
and the paper's LightningDiT-XL/1 and decoder; on a CPU these take minutes a step, and run where `--only XL/1` names
no other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.lightningdit import PlainLightningDiT
from dmvae.decoders.conv import ConvolutionalDecoder
from dmvae.generators.flow import FlowModelConfig
from dmvae.models.dit import LightningDiT
from dmvae.runtime.precision import uses_bf16
from dmvae.training.preparing import compile_networks

Value = TypeVar("Value")
GIB = 2**30
CYCLE, TURNS = 15, 5
"""Steps that are timed in one go, some of every kind of a stage's among them; turns that each loop is timed in."""


def median_seconds(run: Callable[[], object], repeat: int) -> float:
    """Median time of `run`, after one call that is not counted (it may compile)."""
    run()
    return statistics.median(seconds_of(run) for _ in range(repeat))


def seconds_of(run: Callable[[], object]) -> float:
    return timed(run)[0]


def timed(run: Callable[[], Value]) -> tuple[float, Value]:
    """(seconds, what it returned)."""
    wait()
    start = time.perf_counter()
    value = run()
    wait()
    return time.perf_counter() - start, value


def fastest(loops: Sequence[Callable[[int], object]], seconds: float) -> list[float]:
    """Seconds that a step of each takes. A loop is called with the step's number, `CYCLE` times before it is timed.
    They take turns, each of so many seconds in all, and the best turn of each counts, for other programs only slow
    what is timed."""
    for loop in loops:
        for step in range(CYCLE):
            loop(step)
    best = [float("inf")] * len(loops)
    for _ in range(TURNS):
        for i, loop in enumerate(loops):
            wait()
            done, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < seconds / TURNS:
                for step in range(done, done + CYCLE):
                    loop(step)
                wait()
                done += CYCLE
            best[i] = min(best[i], (time.perf_counter() - begun) / done)
    return best


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory(device: torch.device, reset: bool = False) -> str:
    """The most memory that a GPU had to give since the last reset, for a line of figures; nothing for a CPU."""
    if device.type != "cuda":
        return ""
    text = f" {torch.cuda.max_memory_allocated(device) / GIB:7.2f} GiB"
    if reset:
        torch.cuda.reset_peak_memory_stats(device)
    return text


def peak_flops(dtype: torch.dtype, repeat: int, device: torch.device, sizes: Sequence[int] = ()) -> float:
    """Floating-point operations per second of a matrix product: the best of several sizes, of which none is the fastest
    everywhere, and of several tries, for other programs only slow it."""
    sizes = sizes or ((1024, 2048) if device.type == "cpu" else (4096, 8192, 16384))

    def speed(n: int) -> float:
        a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
        return 2 * n**3 / min(median_seconds(lambda: a @ b, 1) for _ in range(2 * repeat))

    return max(map(speed, sizes))


def training_step(model: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
            out = model(*inputs)
        out.float().square().mean().backward()

    return step


def flow_case(model: LightningDiT, batch: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    for parameter in model.parameters():  # zeros would let no gradient through
        nn.init.normal_(parameter, std=0.02)
    c, side = model.config.in_channels, model.config.input_size
    return model, (torch.randn(batch, c, side, side), torch.rand(batch), torch.randint(10, (batch,)))


def s1() -> LightningDiT:
    return FlowModelConfig(size="S/1").build((32, 16, 16), 1000)


def decoder_case() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = ConvolutionalDecoder(16, 1, width=32, multipliers=(1, 2, 4, 4), stride=8)
    z = torch.randn(64, 16, 4, 4).to(memory_format=torch.channels_last)
    return model.to(memory_format=torch.channels_last), (z,)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "LightningDiT-S/1, 16x16x32, batch 16": lambda: flow_case(s1(), 16),
    "LightningDiT 128x4, 4x4x16, batch 256": lambda: flow_case(
        LightningDiT(in_channels=16, input_size=4, width=128, depth=4, heads=4, num_classes=10), 256
    ),
    "Decoder, 32x32 grey, batch 64": decoder_case,
}
LARGE: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "LightningDiT-XL/1, 16x16x32, batch 32": lambda: flow_case(
        FlowModelConfig(size="XL/1").build((32, 16, 16), 1000), 32
    ),
    "Paper's decoder, 256x256, batch 8": lambda: (ConvolutionalDecoder(32, 3), (torch.randn(8, 32, 16, 16),)),
}
PLAIN = "LightningDiT-S/1 beside its paper's"
WEIGHT = "Adaptive weight's two gradients"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="timings a figure, whose median counts (default: %(default)s)"
    )
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile too")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="as run.precision (default: %(default)s)",
    )
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if uses_bf16(args.device, args.precision) else torch.float32
    peak = peak_flops(dtype, args.repeat, args.device)
    name = str(dtype).removeprefix("torch.")
    print(f"peak of matrix multiplication, {name}, {args.device}, {args.threads} threads: {peak / 1e9:.0f} GFLOP/s")
    for name, make in chosen(args.only, args.device).items():
        for mode in ("eager", "compile") if args.compile else ("eager",):
            torch.manual_seed(0)
            model, inputs = make()
            model, inputs = model.to(args.device), tuple(x.to(args.device) for x in inputs)
            with FlopCounterMode(display=False) as counter:
                training_step(model, *inputs)()
            memory(args.device, reset=True)  # what was counted was in float32 and eager
            if mode == "compile":
                compile_networks(nn.ModuleList([model]))
            seconds = median_seconds(training_step(model, *inputs, dtype=dtype), args.repeat)
            share = counter.get_total_flops() / seconds / peak
            taken = memory(args.device)
            print(f"{name:42} {mode:8} {seconds * 1e3:8.1f} ms {share:6.0%} of peak{taken}", flush=True)
    if args.only in PLAIN:
        for mode in ("eager", "compile") if args.compile else ("eager",):
            ratio = times_as_fast(mode == "compile", args.repeat, args.device, dtype)
            print(f"{PLAIN:42} {mode:8} {ratio:8.2f} times as fast", flush=True)
    if args.only in WEIGHT:
        for mode in ("eager", "compile") if args.compile else ("eager",):
            share = weight_share(mode == "compile", args.repeat, args.device)
            print(f"{WEIGHT:42} {mode:8} {share:8.2f} of a decoder's backward pass", flush=True)


def chosen(only: str, device: torch.device) -> dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]]:
    """The cases whose name contains `only`; the large ones on a GPU, or where no other has such a name."""
    small, large = ({name: make for name, make in cases.items() if only in name} for cases in (CASES, LARGE))
    return small | large if device.type == "cuda" or not small else small


def times_as_fast(compiles: bool, repeat: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time of a training step of the paper's S/1 over ours: the median of turns, in each of which both make a step."""
    torch.manual_seed(0)
    ours, inputs = flow_case(s1(), 16)
    networks = nn.ModuleList([ours, PlainLightningDiT(cast(LightningDiT, ours))]).to(device)
    if compiles:
        compile_networks(networks)
    inputs = tuple(x.to(device) for x in inputs)
    mine, theirs = (training_step(network, *inputs, dtype=dtype) for network in networks)
    for step in (mine, theirs):
        step()  # compiles
    return statistics.median(seconds_of(theirs) / seconds_of(mine) for _ in range(repeat))


def weight_share(compiles: bool, repeat: int, device: torch.device) -> float:
    """Time of two gradients at the last layer over that of the backward pass through the whole decoder."""
    model, (z,) = decoder_case()
    model, z = model.to(device), z.to(device)
    if compiles:
        compile_networks(nn.ModuleList([model]))
    images = model(z)
    gradient, last = torch.randn_like(images), model.last_layer
    parameters = list(model.parameters())

    def two() -> None:
        for _ in range(2):
            torch.autograd.grad(images, last, gradient, retain_graph=True)

    def whole() -> None:
        torch.autograd.grad(images, parameters, gradient, retain_graph=True)

    return median_seconds(two, repeat) / median_seconds(whole, repeat)


if __name__ == "__main__":
    main()
