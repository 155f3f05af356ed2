"""The commands of docs/cluster.md, as they stand there, on two ranks of this machine."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import processes
import tiny

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
STAGES = ("encoder", "reference", "matching", "decoder", "generator", "sample", "evaluate")
STUBS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" > requeued',
}
"""What SLURM's commands do, for a job on one node."""


def commands(word):
    """The page's commands with that word in them, each in one string."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", PAGE, flags=re.S)
    lines = [b for block in blocks for b in ([block] if block.startswith("#!") else re.split(r"(?<!\\)\n", block))]
    told = [re.sub(r"\s+", " ", text) for text in re.findall(r"`(dmvae [^`]+)`", PAGE)]  # in a sentence
    return [line for line in lines + told if word in line]


def started(folder, command, ranks=2, recipe=None, times=1):
    """Exit codes and what was printed of the command, started so many times in the folder."""
    recipe = recipe or tiny.write(folder, variants=None, tokenizer__train_encoder=True, **dict.fromkeys(STAGES))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for written, here in (
        ("--nproc-per-node 8", f"--nproc-per-node {ranks}"),
        ("HOST:29500", f"127.0.0.1:{port}"),
        ("$head:29500", f"$head:{port}"),
        ("--nnodes 1:2", "--nnodes 1:2 --rdzv-conf last_call_timeout=1"),  # it waits half a minute for the second
        ("--rdzv-backend", "--local-addr 127.0.0.1 --rdzv-backend"),
        ("--processes 4", "--processes 2"),
        ("recipe.yaml", str(recipe)),
    ):
        command = command.replace(written, here)
    bin = folder / "bin"
    bin.mkdir()
    for name, body in STUBS.items():
        (bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin / name).chmod(0o755)
    path = os.pathsep.join([str(bin), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = processes.environment() | {"PATH": path, "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    running = [
        subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(times)
    ]
    said = [process.communicate(timeout=500)[0] for process in running]
    return [process.returncode for process in running], "\n".join(said)


def test_all_commands_are_tried():
    found = commands("dmvae run") + commands("dmvae study") + commands("dmvae plan")
    assert len(found) == len(commands("recipe.yaml")) == 7


@pytest.mark.parametrize(
    ("word", "ranks", "times"),
    [
        ("torchrun --nproc-per-node", 2, 1),
        ("torchrun --nnodes 2", 1, 2),
        ("dmvae study", 1, 1),
        ("--max-restarts", 2, 1),
        ("SBATCH", 2, 1),
    ],
)
def test_it_trains(tmp_path, word, ranks, times):
    (command,) = commands(word)
    codes, said = started(tmp_path, command, ranks, times=times)
    assert codes == [0] * times, said
    assert len([*tmp_path.glob("run/stages/tokenizer-*/done.json")]) == 1
    assert said.count("tokenizer: run (new)") == 1, said  # not once for each rank
    # at the start of a line: torchrun's own log has one behind its prefix, where the node of the rendezvous ends first
    assert not re.search(r"^(\[rank\d+\]: ?)?Traceback", said, flags=re.M), said
    assert ("waits for stages" in said or "skip (finished)" in said) == (word == "dmvae study"), said
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_has_not_ended_well_is_put_into_the_queue_again(tmp_path):
    (command,) = commands("SBATCH")
    started(tmp_path, command, ranks=1, recipe="none.yaml")
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(("word", "machine"), [("--dry-run", "1 process"), ("dmvae plan", "16 GPUs")])
def test_it_tells_what_a_run_would_take(tmp_path, word, machine):
    (command,) = commands(word)
    over = {"tokenizer__train_encoder": True, "tokenizer__batch_size": 16}
    recipe = tiny.write(tmp_path, variants=None, **over, **dict.fromkeys(STAGES))
    codes, said = started(tmp_path, command, recipe=recipe)
    assert codes == [0], said
    assert re.search(f"^for {machine} of ", said, flags=re.M)
    assert re.search(r"tokenizer .* MiB (?s:.*)memory of each rank(?s:.*)nothing stands in the way", said), said
    assert not (tmp_path / "run").exists()
