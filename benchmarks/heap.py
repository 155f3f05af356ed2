"""What keeping freed memory brings on a CPU (`dmvae/runtime/heap.py`), each computation in processes of its own, with
it and without, in turn:

    python -m benchmarks.heap [--threads 1]        (after `make install-dev`)

Prints images per second, the better of two processes each, and the most memory of a process. Weights are random.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.extraction import EXTRACTORS
from benchmarks.models import median_seconds
from benchmarks.tables import header, line
from dmvae.blank import build_autoencoder
from dmvae.recipe import load
from dmvae.runtime.heap import keep_freed_memory

ROUNDS = 2
IMAGES = 64
RECIPE = "recipes/tiny_imagenet.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        child(*args.child)
        return
    print(
        header(["computation", "freed at once, images/s", "kept, images/s", "times", "most memory, GiB", "kept, GiB"])
    )
    for name in WORK:
        command = [sys.executable, "-m", "benchmarks.heap", "--threads", str(args.threads), "--child", name]
        best: dict[str, tuple[float, float]] = {}
        for how in ("freed", "kept") * ROUNDS:
            printed = subprocess.run([*command, how], check=True, capture_output=True, text=True).stdout
            rate, peak = map(float, printed.split())
            best[how] = max(best.get(how, (0.0, 0.0)), (rate, peak))
        (freed, less), (kept, more) = best["freed"], best["kept"]
        print(
            line([name, f"{freed:.4g}", f"{kept:.4g}", f"{kept / freed:.2f}", f"{less:.2f}", f"{more:.2f}"]), flush=True
        )


def child(name: str, how: str) -> None:
    if how == "kept":
        keep_freed_memory()
    seconds = median_seconds(WORK[name](), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    print(IMAGES / seconds, peak)


def inception() -> Callable[[], object]:
    extractor, images = EXTRACTORS["inception"](), torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    return torch.inference_mode()(lambda: extractor.heads(images))


def reconstruct() -> Callable[[], object]:
    return torch.no_grad()(reconstruction())


def train() -> Callable[[], object]:
    forward = reconstruction()
    return lambda: forward().square().mean().backward()


def reconstruction() -> Callable[[], Tensor]:
    """Of the recipe's own encoder and decoder, in float32."""
    recipe = next(iter(load(RECIPE, {"data.root": "."}).values()))
    model, images = build_autoencoder(recipe), torch.rand(IMAGES, recipe.data.channels, *[recipe.data.size] * 2)
    return lambda: model.decode(model.encode(images).latents).sample


WORK = {"features of Inception": inception, f"reconstruction, {RECIPE}": reconstruct, "its gradient": train}

if __name__ == "__main__":
    main()
