"""The commands of docs/cluster.md, as they stand there, on two ranks of this machine."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import processes
import tiny
from dmvae import cli

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


def written_for_here(folder, command, ranks=2, recipe=None):
    """The command for so many ranks of this machine."""
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
        ("recipe.yaml", str(recipe)),
    ):
        command = command.replace(written, here)
    return command


def started(folder, command):
    """Exit code and what was printed of the command, in the folder."""
    bin = folder / "bin"
    bin.mkdir(exist_ok=True)
    for name, body in STUBS.items():
        (bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin / name).chmod(0o755)
    path = os.pathsep.join([str(bin), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = processes.environment() | {"PATH": path, "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}
    line = ["bash", "-c", command]
    ended = subprocess.run(line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ended.returncode, ended.stdout


def test_all_commands_are_tried():
    found = commands("dmvae run") + commands("dmvae study") + commands("dmvae plan")
    assert len(found) == len(commands("recipe.yaml")) == 7


def test_the_ranks_of_two_nodes_train(tmp_path):
    (command,) = commands("torchrun --nnodes 2")
    program, *words = shlex.split(written_for_here(tmp_path, command, ranks=1))
    assert program == "torchrun"
    nodes = [processes.Command(*words, program="torchrun") for _ in range(2)]
    results = [node.result() for node in nodes]
    said = "\n".join(result.stdout + result.stderr for result in results)
    assert [result.returncode for result in results] == [0, 0], said
    assert len([*tmp_path.glob("run/stages/tokenizer-*/done.json")]) == 1
    assert said.count("tokenizer: run (new)") == 1, said  # not once for each rank
    # at the start of a line: torchrun's own log has one behind its prefix, where the node of the rendezvous ends first
    assert not re.search(r"^(\[rank\d+\]: ?)?Traceback", said, flags=re.M), said


@pytest.fixture
def noting(tmp_path, monkeypatch):
    """Instead of `dmvae`, torchrun starts what notes the command and the rank, and ends so: importing torch, and a run,
    would take ten times as long as torchrun itself."""

    def noting(code=0):
        (tmp_path / "bin/dmvae").mkdir(parents=True)
        (tmp_path / "bin/dmvae/__init__.py").touch()
        (tmp_path / "bin/dmvae/__main__.py").write_text(
            "import os, sys\n"
            "about = [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')]\n"
            "open('started', 'a').write(' '.join([*about, *sys.argv[1:]]) + '\\n')\n"
            f"sys.exit({code})\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bin"))

    return noting


@pytest.mark.parametrize("word", ["torchrun --nproc-per-node", "--max-restarts", "SBATCH"])
def test_every_rank_is_started_once(tmp_path, noting, word):
    noting()
    (command,) = commands(word)
    code, said = started(tmp_path, written_for_here(tmp_path, command, recipe="recipe.yaml"))
    assert code == 0, said
    ranks = (tmp_path / "started").read_text().splitlines()
    assert sorted(ranks) == ["0 2 0 run recipe.yaml", "1 2 1 run recipe.yaml"]
    assert not (tmp_path / "requeued").exists()


def test_a_job_that_has_not_ended_well_is_put_into_the_queue_again(tmp_path, noting):
    noting(code=130)
    (command,) = commands("SBATCH")
    started(tmp_path, written_for_here(tmp_path, command, ranks=1, recipe="recipe.yaml"))
    assert (tmp_path / "started").read_text() == "0 1 0 run recipe.yaml\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.fixture
def here(tmp_path):
    """Runs the page's command with that word on a small recipe, in this process."""

    def here(word):
        (command,) = commands(word)
        over = {"tokenizer__train_encoder": True, "tokenizer__batch_size": 16}
        recipe = tiny.write(tmp_path, variants=None, **over, **dict.fromkeys(STAGES))
        program, *words = shlex.split(command.replace("recipe.yaml", str(recipe)), comments=True)
        assert program == "dmvae"
        cli.main(words)
        assert not (tmp_path / "run").exists()

    return here


def test_processes_of_one_machine_get_the_command(here, monkeypatch):
    """tests/test_processes.py has what they do."""
    found = []
    monkeypatch.setattr("dmvae.commands.run.side_by_side", lambda words, count: found.append((words[0], count)))
    monkeypatch.setattr("dmvae.commands.run.finish_chosen", lambda *_: None)
    here("dmvae study")
    assert found == [("study", 4)]


@pytest.mark.parametrize(("word", "machine"), [("--dry-run", "1 process"), ("dmvae plan", "16 GPUs")])
def test_it_tells_what_a_run_would_take(here, capsys, word, machine):
    here(word)
    said = capsys.readouterr().out
    assert re.search(f"^for {machine} of ", said, flags=re.M)
    assert re.search(r"tokenizer .* MiB (?s:.*)memory of each rank(?s:.*)nothing stands in the way", said), said
