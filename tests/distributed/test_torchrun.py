"""Ranks under `torchrun` itself: it is told to stop, or loses one of them."""

import os
import signal
import subprocess
import sys
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
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
        said = tmp_path / "said"
        with said.open("w") as file:
            process = subprocess.Popen(
                [*torchrun, "-m", "dmvae", "encoder", str(path)],
                env=processes.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process, said

    yield start
    for process in started:
        for pid in [*ranks(process).values(), process.pid] if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.wait()


def ranks(process):
    """Rank -> the process that it is, of those that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    given = {int(pid): Path("/proc", pid, "environ").read_bytes().split(b"\0") for pid in children}
    return {int(x[5:]): pid for pid, env in given.items() for x in env if x.startswith(b"RANK=")}


def steps(tmp_path):
    """The steps of the checkpoints, ascending; [0] before the first."""
    found = tmp_path.glob("run/stages/encoder-*/checkpoints/step-????????")
    return sorted(int(folder.name.removeprefix("step-")) for folder in found) or [0]


def wait_for(step, tmp_path, process, said):
    """Wait for a checkpoint of that step or a later one."""
    until = time.monotonic() + 120
    while steps(tmp_path)[-1] < step:
        assert process.poll() is None, f"it ended before it could be stopped: {said.read_text()}"
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_told_to_stop_all_save(tmp_path, start):
    process, said = start("--max-restarts", "1", run__save_every=4)
    wait_for(4, tmp_path, process, said)
    os.kill(ranks(process)[1], signal.SIGKILL)
    wait_for(steps(tmp_path)[-1] + 8, tmp_path, process, said)  # it may have been about to write one
    assert "resumes at step" in said.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0
    assert "stopped; the state was saved, the same command goes on" in said.read_text()
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
