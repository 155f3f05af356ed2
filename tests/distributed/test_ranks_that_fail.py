"""A rank that raises or dies ends the others, which say why."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import processes
import tiny
from dmvae import cli
from dmvae.runtime import distributed, joined
from dmvae.runtime.gradients import averaged
from dmvae.stages.encoder import EncoderStage

pytestmark = pytest.mark.slow


def raises():
    raise ValueError("the second rank's own trouble")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    """In no collective, where no closed connection is noticed."""
    time.sleep(300)


def steps():
    distributed._patience = 0.02
    weight = torch.nn.Parameter(torch.ones(2))
    with averaged([weight]):
        weight.sum().backward()


def meets():
    distributed.barrier()
    torch.distributed.all_reduce(torch.ones(2))


def together(part):
    with joined.joined():
        distributed.barrier()
        part()


def start(rank, folder, parts):
    """As the command does, with this rank's part in place of a run; what it says goes to a file."""
    joined.POLL = 0.5  # all waits are multiples of it
    cli._dispatch = lambda _: together(parts[rank])
    with Path(folder, str(rank)).open("w", buffering=1) as sys.stderr:
        cli.main([])


def ended(folder, *parts):
    """(exit code, what it said) of each rank; at most a minute later."""
    codes = processes.on_ranks(start, str(folder), parts, timeout=60)
    return [(code, (folder / str(rank)).read_text()) for rank, code in enumerate(codes)]


@pytest.mark.parametrize("other", [meets, hangs])
def test_one_that_raises_ends_the_other_with_its_message(tmp_path, other):
    (first, said), (second, own) = ended(tmp_path, other, raises)
    assert first == 1
    assert said == "dmvae: stopped, because rank 1 failed: the second rank's own trouble\n"
    assert second == 2
    assert own == "dmvae: the second rank's own trouble\n"


def test_the_first_rank_too(tmp_path):
    (_, own), (second, said) = ended(tmp_path, raises, hangs)
    assert own == "dmvae: the second rank's own trouble\n"
    assert second == 1
    assert said == "dmvae: stopped, because rank 0 failed: the second rank's own trouble\n"


def test_one_that_dies_ends_the_other(tmp_path):
    (first, said), (second, _) = ended(tmp_path, meets, dies)
    assert second == -signal.SIGKILL
    assert first == 1
    assert said.startswith("dmvae: rank 0 failed: another rank ended without a word")


def test_the_rank_that_keeps_them_together_dies(tmp_path):
    (_, _), (second, said) = ended(tmp_path, dies, hangs)
    assert second == 1
    assert said == "dmvae: stopped, because rank 0 ended without a word\n"


def test_one_that_hangs_in_a_step_ends_with_those_that_wait(tmp_path):
    (first, said), (second, own) = ended(tmp_path, steps, hangs)
    told = "another rank has not come to the end of its step for 0.02 min: it hangs, or needs a larger run.timeout"
    assert first == 1
    assert said.startswith(f"dmvae: {told}")
    assert second == 1
    assert own.startswith(f"dmvae: stopped, because rank 0 failed: {told}")


def test_all_that_fail_alike_say_it_themselves(tmp_path):
    assert ended(tmp_path, raises, raises) == [(2, "dmvae: the second rank's own trouble\n")] * 2


def test_ranks_that_wait_on_the_cpu_have_longer_than_gpus(tmp_path):
    assert ended(tmp_path, waits, waits) == [(0, "")] * 2


def waits():
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.options._timeout.total_seconds() == 86400
    meets()


@pytest.mark.parametrize(("rank", "count", "own"), [("0", 8, 0), ("7", 8, 7), ("5", 1, 0)])
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_is_shown(monkeypatch, rank, count, own):
    taken = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert distributed.start() == torch.device("cuda", own)
    assert taken == [torch.device("cuda", own)]


def test_more_ranks_than_gpus_are_told(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="LOCAL_RANK is 4, but this node has 4 GPUs: start 4 processes"):
        distributed.start()


def studies(_, path):
    cli.main(["study", path])


def test_both_go_on_with_the_variants_that_do_not_diverge(tmp_path):
    wild = {"matching": {"learning_rate": 1e3, "warmup": 0}}
    path = tiny.write(tmp_path, variants={"wild": wild, "matched": {}}, evaluate=None)
    assert processes.on_ranks(studies, str(path)) == [3, 3]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["not_ended_at"] == {"wild": "matching (begun)"}
    assert (tmp_path / "run/matched/pipeline").is_dir()


def fails(rank, path, folder):
    updates, joined.POLL = EncoderStage.updates, 0.5

    def one_rank_s(self, networks, batch, rng):
        if rank == 1:
            raise FloatingPointError("this rank's loss is nan")
        yield from updates(self, networks, batch, rng)

    EncoderStage.updates = one_rank_s
    with Path(folder, str(rank)).open("w", buffering=1) as sys.stderr:
        cli.main(["study", path])


def test_one_whose_update_raises_goes_on_with_no_other_variant(tmp_path):
    """The other rank waits for its gradients."""
    path = tiny.write(tmp_path, variants={"one": {}, "two": {"seed": 1}}, evaluate=None)
    assert processes.on_ranks(fails, str(path), str(tmp_path)) == [1, 1]
    told = "rank 1 failed: FloatingPointError: encoder: this rank's loss is nan; from the same settings it always will"
    assert (tmp_path / "0").read_text().startswith(f"dmvae: stopped, because {told}")
