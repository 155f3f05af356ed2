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
from benchmarks.tortures.processes import Commands, compare, finish, kill, start, undisturbed
from dmvae.datasets.shapes import Shapes

MOST = 6
"""Kills of one command before it is left to its end."""
DISKS = ("every stage", "encode", "decode")
"""Commands whose disk is filled."""


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
    """Kills of every kind of command, most of them of the one that trains."""
    wanted: dict[str, Any] = {}
    seconds = 0.0
    for name, command in commands(folder).items():
        if len(command(folder)) == 1:  # two processes end where one does
            wanted, seconds = undisturbed(command, folder / name)
        share = tries if name == "every stage" else max(1, tries // 4)
        yield _killed(Row(f"kill -9: {name}", share), command, folder / "killed", wanted, seconds, rng)


def disks(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Full disks under every kind of command that writes more than a file."""
    for name, command in commands(folder).items():
        if name in DISKS:
            wanted, _ = undisturbed(command, folder / name)
            yield _filled(Row(f"full disk: {name}", tries), command, folder, folder / name, wanted, rng)


def _killed(row: Row, command: Commands, out: Path, wanted: dict[str, Any], seconds: float, rng: random.Random) -> Row:
    log = out.with_suffix(".log")
    for _ in range(3 * row.of):  # of which some end before they are killed, and do not count
        if row.tries == row.of:
            break
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(min(MOST, row.of - row.tries)):
            running = [start(arguments, log) for arguments in command(out)]
            one = running.pop(rng.randrange(len(running)))
            one.join(rng.uniform(0, seconds))
            if one.is_alive():
                row.tried()
            kill(one)
            for process in running:  # the others do the work of the one that is gone
                if finish(process, log, row, f"try {row.tries}, beside a killed one")[0] != 0:
                    row.count("losses", f"try {row.tries}: the other process failed")
        code, _ = finish(start(command(out)[0], log), log, row, f"after try {row.tries}")
        if code != 0:
            row.count("losses", f"after try {row.tries}: exit code {code}")
        else:
            compare(row, wanted, out, f"after try {row.tries}")
    shutil.rmtree(out, ignore_errors=True)
    return row


def _filled(row: Row, command: Commands, folder: Path, good: Path, wanted: dict[str, Any], rng: random.Random) -> Row:
    """A disk that is full at a random moment, and then is not: a small one in memory where one may be mounted, else a
    limit on the size of files."""
    sizes = [path.stat().st_size for path in good.rglob("*") if path.is_file() and not path.is_symlink()]
    log, out = folder / "full.log", folder / "disk/out"
    for _ in range(row.of):
        row.tried()
        share = rng.uniform(0.02, 0.95)
        with _disk(folder / "disk", int(share * sum(sizes))) as mounted:
            said = f"try {row.tries}, {share:.0%} of the {'disk' if mounted else 'largest file'}"
            process = start(command(out)[0], log, None if mounted else int(share * max(sizes)))
            code, lines = finish(process, log, row, said)
            if code == 0:
                compare(row, wanted, out, said)  # it needed less than it leaves
            elif not any(word in lines for word in ("No space left", "disk full", "File too large")):
                row.count("silent uses", f"{said}: not said: {lines[-200:]}")
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=1G", str(folder / "disk")], check=True)
            code, _ = finish(start(command(out)[0], log), log, row, f"after {said}")
            if code != 0:
                row.count("losses", f"after {said}: exit code {code}")
            else:
                compare(row, wanted, out, f"after {said}")
    return row


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
