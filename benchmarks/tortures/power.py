"""Power cuts: the same command goes on with what a disk had at a random moment, without what was only in memory."""

from __future__ import annotations

import filecmp
import random
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.tortures import Row
from benchmarks.tortures.kills import commands
from benchmarks.tortures.processes import compare, finish, kill, start, undisturbed

SIZE = 256 << 20
"""Bytes of the disk; a run of every stage needs a tenth."""
AFTER = 8.0
"""Seconds after a command's end in which the power may go too: names reach this disk after one second, what files hold
after thirty, unless it is flushed."""
MOUNT = ["mount", "-o", "loop,commit=1,noauto_da_alloc"]


def cuts(folder: Path, tries: int, rng: random.Random) -> Iterator[Row]:
    """Power cuts at random moments of a run of every stage and soon after it. None where no disk can be mounted from a
    file, which takes Linux and root."""
    image, cut, disk, log = (folder / name for name in ("disk.img", "cut.img", "disk", "cut.log"))
    disk.mkdir()
    row = Row("power cuts: every stage", tries)
    if not _can(image, disk):
        print("  power cuts: no disk can be mounted from a file here", flush=True)
        tries = 0
    else:
        command = commands(folder)["every stage"]
        wanted, seconds = undisturbed(command, folder / "every stage")
    for _ in range(tries):
        row.tried()
        _format(image)
        with _mounted(image, disk):
            process = start(command(disk / "out")[0], log)
            process.join(rng.uniform(0, seconds))
            after = 0.0 if process.is_alive() else rng.uniform(0, AFTER)
            time.sleep(after)
            ended = process.exitcode == 0
            kill(process)
            _copy(image, cut)
        # the log names a stage when it begins: those before the last are finished
        before = log.read_text(errors="replace") if log.exists() else ""
        finished = [stage for stage, _ in _stages(before)][: None if ended else -1]
        log.unlink(missing_ok=True)
        said = f"try {row.tries}, {f'{after:.1f} s after its end' if ended else 'before its end'}"
        with _mounted(cut, disk):
            code, lines = finish(start(command(disk / "out")[0], log), log, row, said)
            gone = [stage for stage, how in _stages(lines) if how != "skip" and stage in finished]
            if gone:
                row.count("losses", f"{said}: {', '.join(gone)} were finished")
            if code != 0:
                row.count("losses", f"{said}: {lines[-300:]}")
            else:
                compare(row, wanted, disk / "out", said)
    yield row


def _stages(log: str) -> list[tuple[str, str]]:
    """(stage, whether it is skipped, run or resumed) in the order of a command's log."""
    return re.findall(r"^main/(\w+): (skip|run|resume) ", log, re.MULTILINE)


def _can(image: Path, disk: Path) -> bool:
    try:
        _format(image)
        with _mounted(image, disk):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def _format(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)


@contextmanager
def _mounted(image: Path, disk: Path) -> Iterator[None]:
    subprocess.run([*MOUNT, str(image), str(disk)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _copy(image: Path, cut: Path) -> None:
    """What the disk has now, all of one moment."""
    while True:
        subprocess.run(["cp", "--sparse=always", str(image), str(cut)], check=True)
        if filecmp.cmp(image, cut, shallow=False):
            return
