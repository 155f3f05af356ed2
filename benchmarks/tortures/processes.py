"""Processes that can be killed. Those of `start` are forked from one that has imported the package and trained nothing,
so that a start takes no time; those of `run` are any command."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.tortures import Row, ours

PATIENCE = 900
"""Seconds after which a command hangs: it takes a few."""
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["dmvae.cli", *(f"dmvae.commands.{name}" for name in ("run", "encode", "measure", "measurements", "convert"))]
)


def start(arguments: list[str], log: Path, file_size: int | None = None) -> BaseProcess:
    """`dmvae ARGUMENTS`, whose output goes to a file; it may write no file larger than `file_size` bytes."""
    process = _forks.Process(target=_command, args=(arguments, str(log), file_size))
    process.start()
    return process


def _command(arguments: list[str], log: str, file_size: int | None) -> None:
    from dmvae import cli

    os.setsid()  # so that what it leaves running can be found
    multiprocessing.set_start_method("fork", force=True)  # as in a command that nobody forked
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    cli.main(arguments)


def kill(process: BaseProcess) -> None:
    """kill -9, of the main process alone."""
    process.kill()
    process.join()


def finish(process: BaseProcess, log: Path, row: Row, note: str) -> tuple[int | None, str]:
    """Wait for the end, and count what should not be: a hang, a traceback, a process that is left. (exit code, what was
    said)."""
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        row.count("hangs", note)
        kill(process)
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        row.count("tracebacks", f"{note}: {text[text.index('Traceback') :][:1500]}")
    if not _within_seconds(lambda: not _group(process.pid)):
        row.count("hangs", f"{note}: a process is left")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
    log.unlink()
    return code, text


def _group(number: int | None) -> bool:
    """Whether a group of processes has any."""
    try:
        os.killpg(number or 0, 0)
    except ProcessLookupError:
        return False
    return True


def run(command: Sequence[str], row: Row, note: str, patience: float) -> str:
    """Run any command to its end, with an exit code that is not 0: what it printed. Counts the try, and a hang where it
    has not ended after `patience` seconds or leaves a process behind, in whatever session; that is killed."""
    row.tried()
    mark = f"TORTURE={os.getpid()} {row.name} {row.tries}"  # in the environment of all that it starts
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=ours("processes").environment() | dict([mark.split("=")]),
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=patience)
        if not _within_seconds(lambda: not _marked(mark)):
            row.count("hangs", f"{note}: a process is left")
    except subprocess.TimeoutExpired:
        row.count("hangs", note)
    for number in _marked(mark):
        os.kill(number, signal.SIGKILL)
    if process.returncode is None:
        said, _ = process.communicate()
    elif process.returncode == 0:
        row.count("silent uses", f"{note}: exit code 0")
    return said


def _marked(mark: str) -> list[int]:
    """The processes that have the mark in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if mark.encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def _within_seconds(holds: Callable[[], bool]) -> bool:
    """Whether it holds, now or soon: workers end a moment after their parent."""
    for _ in range(50):
        if holds():
            return True
        time.sleep(0.1)
    return False


def contents(folder: Path) -> dict[str, Any]:
    """What a command's folder holds: tensors of .safetensors files and bytes of other results; not features, which are
    kept where there is room."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors" and not path.name.startswith("features-"):
            found[name] = {key: value.numpy().tobytes() for key, value in load_file(path).items()}
        elif path.suffix in (".png", ".tar"):
            found[name] = path.read_bytes()
    return found


def compare(row: Row, wanted: Mapping[str, Any], folder: Path, note: str) -> None:
    """Count what differs from a run that nothing has disturbed, and what is left behind."""
    there = contents(folder)
    if wanted != there:
        differ = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
        row.count("silent uses" if wanted.keys() == there.keys() else "losses", f"{note}: {', '.join(differ[:4])}")
    left = [p for pattern in ("*.part", ".tmp??????", "checkpoints") for p in folder.rglob(pattern)]
    if left:
        row.count("losses", f"{note}: left behind: {left[0]}")


Commands = Callable[[Path], list[list[str]]]
"""The arguments of the commands, one or more side by side, that write into a folder."""


def undisturbed(commands: Commands, folder: Path) -> tuple[dict[str, Any], float]:
    """(contents, seconds) of one command run to its end."""
    row, log, begun = Row("undisturbed", 1), folder.with_suffix(".log"), time.monotonic()
    code, _ = finish(start(commands(folder)[0], log), log, row, str(folder))
    assert code == 0, f"without any harm: {row.notes or code}"
    assert not row.notes, row.notes
    return contents(folder), time.monotonic() - begun
