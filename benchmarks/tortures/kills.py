"""kill -9 at random moments, and full disks: the same commands go on, and end where an undisturbed one ends."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.tortures import Row, ours
from benchmarks.tortures.processes import PATIENCE, Commands, compare, finish, kill, start, undisturbed
from dmvae.datasets.shapes import Shapes

MOST = 6
"""Kills of one command before it is left to its end."""


def commands(folder: Path) -> dict[str, Commands]:
    """Of every kind of command that writes, by name; each takes seconds. The first trains the tokenizer of others."""
    recipe = ours("tiny").write(folder, variants=None, data__type="shapes")
    images = folder / "images"
    for split in ("train", "test"):
        data = Shapes(size=12, num_classes=3, count=120, test_count=60).build(split)
        for i in range(len(data)):
            path = images / split / f"{i % 3}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data[i][0].permute(1, 2, 0).numpy()).save(path)
    tokenizer = folder / "every stage/main/latents/autoencoder"
    z = folder / "encode"
    codec = ["--tokenizer", str(tokenizer), "--batch-size", "4"]
    run = lambda out: ["run", str(recipe), "--run_dir", str(out)]
    return {
        "every stage": lambda out: [run(out)],
        "two processes": lambda out: [run(out), run(out)],
        "encode": lambda out: [
            ["encode", str(images / "train"), *codec, "--out", str(out), "--shard-size", "20", "--workers", "2"]
        ],
        "decode": lambda out: [["decode", str(z), *codec, "--out", str(out)]],
        "measure": lambda out: [
            [
                *("measure", "folder", str(images / "test"), str(images / "train"), "--workers", "0"),
                *("--features", "effnet-lite0@32", "--save-reference", str(out / "kept.safetensors")),
            ]
        ],
    }


def kills(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Kills of every kind of command: half of them fall on the stages."""
    for name, command in commands(folder).items():
        share = tries if name == "every stage" else max(1, tries // 4)
        (folder / name).parent.mkdir(exist_ok=True)
        wanted, seconds = undisturbed(command, folder / name)
        yield _killed(Row(f"kill -9: {name}"), command, folder / "killed", wanted, seconds, share, rng)


def _killed(
    row: Row, command: Commands, out: Path, wanted: dict[str, Any], seconds: float, tries: int, rng: random.Random
) -> Row:
    log = out.with_suffix(".log")
    for _ in range(3 * tries):  # of which some end before they are killed, and do not count
        if row.tries == tries:
            break
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(min(MOST, tries - row.tries)):
            running = [start(arguments, log) for arguments in command(out)]
            one = running.pop(rng.randrange(len(running)))
            one.join(rng.uniform(0, seconds))
            row.tries += one.is_alive()
            kill(one)
            for process in running:  # the others do the work of the one that is gone
                if finish(process, log, row, f"try {row.tries}, beside a killed one") != 0:
                    row.count("losses", f"try {row.tries}: the other process failed")
        code = finish(start(command(out)[0], log), log, row, f"after try {row.tries}")
        if code != 0:
            row.count("losses", f"after try {row.tries}: exit code {code}")
        else:
            compare(row, wanted, out, f"after try {row.tries}")
    shutil.rmtree(out, ignore_errors=True)
    return row


def full_disks(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """A disk that is full at a random moment, and then is not: a small one in memory where one may be mounted, else a
    limit on the size of files."""
    known = commands(folder)
    for name in ("every stage", "encode", "decode"):
        wanted, _ = undisturbed(known[name], folder / name)
        row, log = Row(f"full disk: {name}"), folder / "full.log"
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        largest = max(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        for _ in range(tries):
            row.tries += 1
            share = rng.uniform(0.02, 0.95)
            with _disk(folder / "disk", int(share * size)) as mounted:
                out = folder / "disk/out"
                said = f"try {row.tries}, {share:.0%} of the {'disk' if mounted else 'largest file'}"
                process = start(known[name](out)[0], log, None if mounted else int(share * largest))
                process.join(PATIENCE)
                lines = log.read_text(errors="replace")
                if finish(process, log, row, said) == 0:
                    compare(row, wanted, out, said)  # what it needed at most was less than what it leaves
                elif "space" not in lines and "full" not in lines and "large" not in lines:
                    row.count("silent uses", f"{said}: not said: {lines[-200:]}")
                if mounted:
                    subprocess.run(["mount", "-o", "remount,size=1G", str(folder / "disk")], check=True)
                code = finish(start(known[name](out)[0], log), log, row, f"after {said}")
                if code != 0:
                    row.count("losses", f"after {said}: exit code {code}")
                else:
                    compare(row, wanted, out, f"after {said}")
        yield row


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[bool]:
    """A folder on a disk of its own of so many bytes; False where it is an ordinary folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 1 << 16)}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)
