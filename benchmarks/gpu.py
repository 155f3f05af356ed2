"""What a GPU reaches, and whether steps take what `dmvae plan` says:

    make bench-gpu                                   a GPU, under ten minutes, with the core dependencies alone
    python -m benchmarks.gpu --device cpu --tiny     the same lines on small networks, to see that it runs

Prints: the peak of matrix products; of every training stage of the recipe the images a second, the share of that peak,
and the memory beside the plan's; LightningDiT and decoder steps, eager and compiled; PSNR between decodes in float32
and in TF32; images a second of sampling, decoded. Networks have random weights and data are noise: nothing is fetched.
A stage makes 100 steps in a row as in a training, with rows of the log. Between these a step that waits for the device
fails, by torch.cuda.set_sync_debug_mode("error"), but where docs/performance.md lists that it waits.

At full size the exit code is 1 where memory is not within a tenth of the plan's, or a network reaches less of the peak
than `GOALS`; what was missed is printed last.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import GIB, peak_flops, training_step, wait
from dmvae.blank import first_tokenizer
from dmvae.decoders.conv import ConvolutionalDecoder
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Blueprint
from dmvae.models.dit import LightningDiT
from dmvae.recipe import Recipe, load
from dmvae.runtime.precision import autocast, tuned, uses_bf16, without_tf32
from dmvae.stages.sample import generate
from dmvae.training.counting import cost_of
from dmvae.training.logging import Figures
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import AnyTraining, Batch, TrainingStage
from dmvae.training.trainer import Trainer

GOALS = {"LightningDiT eager": 0.2, "LightningDiT compiled": 0.4, "decoder compiled": 0.35}
"""Shares of the peak that are to be reached at full size."""
WARM = 2
"""Steps that are not counted, in which libraries choose their kernels."""


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    recipe: str
    batch: int
    steps: int
    network: Callable[[], LightningDiT]
    decoder: Callable[[], ConvolutionalDecoder]
    side: int
    images: int
    sampled: int
    sampling: int
    products: tuple[int, ...] = ()
    """Sizes of matrix products by which the peak is measured; the usual ones unless given."""


FULL = Scale(
    recipe="imagenet256",
    batch=32,
    steps=100,
    network=lambda: FlowModelConfig(size="XL/1").build((32, 16, 16), 1000),
    decoder=lambda: ConvolutionalDecoder(32, 3),
    side=16,
    images=1000,
    sampled=125,
    sampling=250,
)
TINY = Scale(
    recipe="smoke",
    batch=8,
    steps=6,
    network=lambda: LightningDiT(in_channels=4, input_size=4, width=16, depth=1, heads=2, num_classes=4),
    decoder=lambda: ConvolutionalDecoder(4, 3, width=8, multipliers=(1, 2), blocks=0, stride=4, attention=False),
    side=4,
    images=8,
    sampled=4,
    sampling=2,
    products=(64, 128),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small networks and few steps")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled networks out")
    args = parser.parse_args()
    device, scale = torch.device(args.device), TINY if args.tiny else FULL
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --device cpu --tiny shows that the benchmark runs")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    dtype = torch.bfloat16 if uses_bf16(device, "auto") else torch.float32
    peak = peak_flops(dtype, 5, device, scale.products)
    print(f"{name}: {peak / 1e12:.3g} TFLOP/s in products of {dtype}", flush=True)
    recipe = next(iter(load(scale.recipe, {"losses.perceptual": None}).values()))
    with tuned():
        memory = stages(recipe, scale, device, peak)
        shares = networks(scale, device, dtype, peak, compiles=not args.no_compile)
    decodes(scale, device)
    sampling(recipe, scale, device, compiles=not args.no_compile)
    if found := missed(memory, shares if scale is FULL else {}):
        raise SystemExit("missed: " + "; ".join(found))


def missed(memory: Mapping[str, tuple[float, float]], shares: Mapping[str, float]) -> list[str]:
    """What is not as it should be, of the GiB that stages take and those that are planned (the first is NaN where it is
    not known), and of the shares of the peak that networks reach. What was not measured is not missed."""
    apart = [(name, *both) for name, both in memory.items() if abs(both[0] / both[1] - 1) > 0.1]
    slow = [(name, share) for name, share in shares.items() if share < GOALS.get(name, 0.0)]
    return [
        *(f"{name} takes {used:.2f} GiB, and not {planned:.2f}" for name, used, planned in apart),
        *(f"{name} reaches {share:.0%} of the peak, and not {GOALS[name]:.0%}" for name, share in slow),
    ]


def seconds(run: Callable[[], object], repeat: int) -> float:
    """Mean time of `run`, after two calls that are not counted."""
    for _ in range(2):
        run()
    wait()
    begun = time.perf_counter()
    for _ in range(repeat):
        run()
    wait()
    return (time.perf_counter() - begun) / repeat


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Whatever waits for the GPU in the block raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def stages(recipe: Recipe, scale: Scale, device: torch.device, peak: float) -> dict[str, tuple[float, float]]:
    """Time every training stage; {name: (GiB that its steps take, GiB that are planned)}."""
    print(f"{scale.recipe}, {scale.batch} images a step, {scale.steps} steps in a row")
    print(f"{'stage':<10} {'images/s':>9} {'of peak':>8} {'GiB':>7} {'plan':>7}")
    trained = [stage for stage in recipe.stages() if issubclass(stage, TrainingStage)]
    return {stage.name: time_stage(stage, recipe, scale, device, peak) for stage in trained}


def time_stage(
    stage: type[AnyTraining], recipe: Recipe, scale: Scale, device: torch.device, peak: float
) -> tuple[float, float]:
    """GiB that the stage's steps take, and those that are planned."""
    section = replace(recipe.section(stage), batch_size=scale.batch)
    recipe = replace(recipe, **{stage.name: section}, run=replace(recipe.run, compile=False))
    reads = {name: recipe.section(name) for name in stage.reads if recipe.section(name) is not None}
    plan = cost_of(stage, Blueprint(recipe, "", reads, 1000), gpu=device.type == "cuda")
    inputs = Blueprint(recipe, "", reads, 1000, fake=False)
    inputs.device = device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(stage(section, inputs))
    data = torch.randn(scale.batch, *trainer.stage.item_shape, device=device)
    labels, images = torch.zeros(scale.batch, dtype=torch.int64, device=device), None
    if trainer.stage.sees_images:
        images = torch.randn(scale.batch, recipe.data.channels, recipe.data.size, recipe.data.size, device=device)
    with tempfile.TemporaryDirectory() as folder:
        figures = Figures(Path(folder), "none", 0, stage.name)
        for step in range(WARM + scale.steps):
            if step == WARM:
                wait()
                begun = time.perf_counter()
            with no_waiting(device if step >= WARM else torch.device("cpu")):
                # as one past the last: every adversary has begun
                trainer.advance(Batch(data, labels, step, max(1, step), images), figures)
            if trainer.step % recipe.run.log_every == 0:
                trainer.health.judge()
                figures.write(trainer.step)
        wait()
    taken = (time.perf_counter() - begun) / scale.steps
    used = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else float("nan")
    share, planned = plan.flops / taken / peak, plan.peak / GIB
    print(f"{stage.name:<10} {scale.batch / taken:>9.0f} {share:>8.0%} {used:>7.2f} {planned:>7.2f}", flush=True)
    return used, planned


def latents(scale: Scale, device: torch.device) -> Tensor:
    with torch.device("meta"):
        channels = scale.network().config.in_channels
    return torch.randn(scale.batch, channels, scale.side, scale.side, device=device)


def networks(scale: Scale, device: torch.device, dtype: torch.dtype, peak: float, compiles: bool) -> dict[str, float]:
    """Time forward and backward of the two large networks; {"NAME eager": share of the peak}."""
    found = {}
    z = latents(scale, device)
    t, labels = torch.rand(len(z), device=device), torch.zeros(len(z), dtype=torch.int64, device=device)
    for name, make, inputs in (("LightningDiT", scale.network, (z, t, labels)), ("decoder", scale.decoder, (z,))):
        for mode in ("eager", "compiled") if compiles else ("eager",):
            network = make().to(device, memory_format=torch.channels_last)
            step = training_step(network, *inputs, dtype=dtype)
            with FlopCounterMode(display=False) as counter:
                step()
            if mode == "compiled":
                compile_networks(torch.nn.ModuleList([network]))
            taken = seconds(step, scale.steps)
            share = counter.get_total_flops() / taken / peak
            print(f"{name} {mode}, batch {len(z)}: {taken * 1e3:.1f} ms, {share:.0%} of peak", flush=True)
            found[f"{name} {mode}"] = share
    return found


@torch.inference_mode()
def decodes(scale: Scale, device: torch.device) -> None:
    """How far TF32 takes a decode in float32, in dB of images in [-1, 1]."""
    decoder = scale.decoder().to(device)
    errors, begun = [], time.perf_counter()
    for _ in range(0, scale.images, scale.batch):
        z = latents(scale, device)
        rounded = decoder(z)
        with without_tf32(device):
            errors.append((decoder(z) - rounded).square().mean(dim=(1, 2, 3)))
    decibel = 10 * torch.log10(4 / torch.cat(errors).clamp_min(1e-20)).mean()
    print(f"decodes with TF32 against float32: PSNR {decibel:.1f} dB ({time.perf_counter() - begun:.0f} s)", flush=True)


def sampling(recipe: Recipe, scale: Scale, device: torch.device, compiles: bool) -> None:
    """Time a batch of samples as the stage `sample` makes it, decoded."""
    network = scale.network().to(device).eval()
    tokenizer = first_tokenizer(recipe, weights=False).to(device).eval()
    settings = replace(recipe.sample, steps=scale.sampling, method="sde").settings(1.0)
    labels, seeds = torch.zeros(scale.sampled, dtype=torch.int64), list(range(scale.sampled))

    def run() -> None:
        with autocast(device, "auto"):
            generate(network, tokenizer, labels, seeds, settings, device)

    for mode in ("eager", "compiled") if compiles else ("eager",):
        if mode == "compiled":
            compile_networks(torch.nn.ModuleDict({"generator": network}))
            run()
        begun = time.perf_counter()
        run()
        wait()
        taken = time.perf_counter() - begun
        speed = f"{scale.sampled / taken:.2f} images/s"
        print(f"sampling {mode}, {scale.sampling} steps at batch {scale.sampled}: {speed}", flush=True)


if __name__ == "__main__":
    main()
