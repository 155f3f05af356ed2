"""What checksums cost in a run: the bytes that they are made of and compared with, and the processor's time for it.

    python -m benchmarks.verifying [--recipe recipes/demo.yaml] [--section.field value]

Runs the recipe in a folder that is thrown away, and then the same command again, which does nothing but verify. With
few steps (--tokenizer.steps 10) files have the sizes of a whole run's; --run.save_every 5 writes checkpoints too.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dmvae import pipeline
from dmvae.commands.parser import parse_overrides
from dmvae.recipe import load
from dmvae.runtime import done, hashing
from dmvae.training import checkpoint


@dataclass
class Cost:
    """Of all checksums of files so far; seconds are this thread's on the processor, so other processes do not count."""

    bytes: int = 0
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def counted(self, crc: Callable[..., int], size: Callable[[Any], int]) -> Callable[..., int]:
        """`crc`, counted; size: of its first argument, bytes."""

        def crc_and_count(data: Any, *more: int) -> int:
            begun = time.thread_time()
            found = crc(data, *more)
            with self.lock:  # checkpoints are written by a thread beside the training
                self.seconds += time.thread_time() - begun
                self.bytes += size(data)
            return found

        return crc_and_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/demo.yaml", help="file or name (default: %(default)s)")
    args, rest = parser.parse_known_args()
    cost = Cost()
    done.crc = cost.counted(hashing.crc, lambda file: file.stat().st_size)
    crc32 = cost.counted(zlib.crc32, lambda data: memoryview(data).nbytes)
    checkpoint.zlib = SimpleNamespace(crc32=crc32)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        recipes = load(args.recipe, parse_overrides(rest) | {"run.dir": folder})
        for what in ("the run", "the same command again"):
            cost.bytes, cost.seconds, begun = 0, 0.0, time.process_time()
            done._crc.cache_clear()  # a process reads a file once, and the second stands for one of its own
            pipeline.run(recipes, Path(folder))
            print(
                f"{what}: checksums of {cost.bytes / 1e6:.1f} MB in {cost.seconds:.3f} s of the processor, of "
                f"{time.process_time() - begun:.1f} s in all"
            )


if __name__ == "__main__":
    main()
