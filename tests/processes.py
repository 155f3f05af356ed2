"""The `dmvae` command in processes of its own, that can be killed, signalled, or be the ranks of one run.

They are forked from a process that has imported what the command needs, once for each worker of pytest: the imports
take seconds, and most commands of the tests take less.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

IMPORTS = [
    *("dmvae.commands.run", "dmvae.commands.measure", "dmvae.commands.measurements", "dmvae.models.effnet"),
    *("dmvae.evaluation.features.effnet", "dmvae.interop.pipeline", "dmvae.report.latent_map", "dmvae.report.training"),
    *("sklearn.manifold", "torch.utils.tensorboard", "diffusers.models.autoencoders.vae"),
]
PLAIN = {"PLAIN_REPORT": "1"}
"""Environment of a command whose report nobody reads: its charts take as long as all stages of a tiny run."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTS)

FSYNC = os.fsync


def trust_the_power() -> None:
    """No fsync in this process: no test cuts the power, and most of what they write is gone before it would reach a
    disk. Tests of what is flushed, and when, call FSYNC."""
    os.fsync = lambda _: None


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Command:
    """`dmvae ARGUMENTS`, or another of PROGRAMS, as it runs; its output goes into the file `out`, where one is
    given."""

    def __init__(self, *arguments: str, program: str = "dmvae", out: str | None = None, **env: str) -> None:
        self.arguments, self.folder = arguments, Path(tempfile.mkdtemp())
        files = (out or str(self.folder / "1"), str(self.folder / "2"))
        given = (program, arguments, environment() | env, files, os.getcwd())
        self.process = FORKS.Process(target=_main, args=given)
        self.process.start()

    def ended(self) -> bool:
        return self.process.exitcode is not None

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def said(self) -> str:
        """Its output and its errors so far."""
        files = (self.folder / "1", self.folder / "2")
        return "".join(file.read_text() for file in files if file.exists())

    def result(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for its end. After `timeout` seconds it is killed, and subprocess.TimeoutExpired raised."""
        self.process.join(timeout)
        late = not self.ended()
        if late:
            self.process.kill()
            self.process.join()
        out, err = (file.read_text() if file.exists() else "" for file in (self.folder / "1", self.folder / "2"))
        shutil.rmtree(self.folder)
        if late:
            raise subprocess.TimeoutExpired(self.arguments, timeout, out, err)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def command(*arguments: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    """`dmvae ARGUMENTS`, to its end; `env` is added to the environment."""
    return Command(*arguments, **env).result(timeout)


def started(count: int, *arguments: str, **env: str) -> list[Command]:
    """`dmvae ARGUMENTS` on so many ranks, in the environment that torchrun gives them."""
    return [Command(*arguments, **env, **world) for world in _worlds(count)]


def ranks(count: int, *arguments: str, **env: str) -> list[subprocess.CompletedProcess[str]]:
    """The same, to their end."""
    all_of_them = started(count, *arguments, **env)
    running = {rank.process.sentinel: rank.process for rank in all_of_them}
    while running:
        for ended in wait([*running], timeout=300) or [*running]:
            if running.pop(ended).exitcode != 0:  # the others would wait for it
                for process in running.values():
                    process.kill()
    return [rank.result() for rank in all_of_them]


def on_ranks(
    function: Callable[..., None], *arguments: object, timeout: float = 120, count: int = 2
) -> list[int | None]:
    """Exit codes of function(rank, *arguments) on so many ranks, which find each other by the environment; None for one
    that has not ended after `timeout` seconds."""
    started = [FORKS.Process(target=_rank, args=(world, function, arguments)) for world in _worlds(count)]
    for process in started:
        process.start()
    until = time.monotonic() + timeout
    for process in started:
        process.join(until - time.monotonic())
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _worlds(count: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _rank(world: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= environment() | world
    torch.set_num_threads(1)
    trust_the_power()
    try:
        function(int(world["RANK"]), *arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _main(program: str, arguments: tuple[str, ...], env: dict[str, str], files: tuple[str, str], cwd: str) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)  # the old one would seek in a pipe, if it was made for a file
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    trust_the_power()
    multiprocessing.set_start_method("fork", force=True)  # of data workers, as in a command that nobody forked
    if env.keys() >= PLAIN.keys():
        from dmvae.report import latent_map, training

        training.lines, latent_map.latent_map = (lambda *_, **__: ""), (lambda _: "")
    try:
        PROGRAMS[program](*arguments)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _dmvae(*arguments: str) -> None:
    from dmvae import cli

    cli.main([*arguments])


def _torchrun(*arguments: str) -> None:
    """torchrun's own agent; but that it forks its ranks, where it would start Python for each."""
    from torch.distributed import run

    def launched(config: Any, entrypoint: str) -> Callable[..., object]:
        config.start_method = "fork"
        return elastic_launch(config, _rank_of_torchrun)

    elastic_launch, run.elastic_launch = run.elastic_launch, launched
    run.main([*arguments])


def _rank_of_torchrun(*line: str) -> None:
    assert line[:3] == ("-u", "-m", "dmvae")
    try:
        _dmvae(*line[3:])
    finally:
        atexit._run_exitfuncs()


PROGRAMS = {"dmvae": _dmvae, "torchrun": _torchrun}
