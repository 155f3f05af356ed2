"""Ranks under `torchrun` itself: it is told to stop, or loses one of them."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import processes
import tiny
from dmvae.runtime import distributed

STEPS = 100_000


@pytest.fixture
def start(tmp_path):
    """Starts `torchrun ... -m dmvae encoder RECIPE`; what is left of it at the end of the test is killed."""
    started = []

    def start(*options, **over):
        path = tiny.write(tmp_path, variants=None, encoder__steps=STEPS, run__workers=0, **over)
        line = ("--standalone", "--nproc-per-node", "2", *options, "-m", "dmvae", "encoder", str(path))
        started.append(processes.Command(*line, program="torchrun"))
        return started[0]

    yield start
    for command in started:
        for pid in [] if command.ended() else [*ranks(command), command.process.pid]:
            os.kill(pid, signal.SIGKILL)
        command.result()


def ranks(command):
    """The processes of the ranks that torchrun has started, in their order."""
    pid = command.process.pid
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def steps(tmp_path):
    """The steps of the checkpoints, ascending; [0] before the first."""
    found = tmp_path.glob("run/stages/encoder-*/checkpoints/step-????????")
    return sorted(int(folder.name.removeprefix("step-")) for folder in found) or [0]


def wait_for(step, tmp_path, command):
    """Wait for a checkpoint of that step or a later one."""
    until = time.monotonic() + 120
    while steps(tmp_path)[-1] < step:
        assert not command.ended(), f"it ended before it could be stopped: {command.said()}"
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_told_to_stop_all_save(tmp_path, start):
    command = start("--max-restarts", "1", run__save_every=4)
    wait_for(4, tmp_path, command)
    os.kill(ranks(command)[1], signal.SIGKILL)
    wait_for(steps(tmp_path)[-1] + 8, tmp_path, command)  # it may have been about to write one
    assert "resumes at step" in command.said()
    command.signal(signal.SIGTERM)
    command.process.join(30)
    assert command.process.exitcode not in (0, None)
    assert "stopped; the state was saved, the same command goes on" in command.said()
    assert not [*tmp_path.glob("run/stages/encoder-*/checkpoints/*.part")]
    assert not [*tmp_path.glob("run/stages/encoder-*/done.json")]


def test_a_start_has_a_name_of_its_own_where_ranks_before_have_left_theirs():
    store, names = dist.HashStore(), []
    for late in (0, 1, 2):
        found = {}

        def start(rank, late=late, found=found):
            time.sleep(0.1 * (rank == late))
            found[rank] = distributed._agreed(store, rank, 3, 1)

        threads = [threading.Thread(target=start, args=(rank,), daemon=True) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 3
        names += {*found.values()}
    assert len({*names}) == len(names) == 3


def test_ranks_that_do_not_come_are_named():
    store = dist.HashStore()
    store.set("dmvae/1", "one that has ended")
    with pytest.raises(TimeoutError, match=r"ranks 1, 2 did not join within 0\.001 min \(run.timeout\)"):
        distributed._agreed(store, 0, 3, 0.001)
