"""The distance that matching measures: what it remembers, what its ratio and its anchor follow."""

import pytest
import torch

from dmvae.losses.pull import held, inverse_covariance
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random
from dmvae.stages import approach
from dmvae.transport import two_sample


def test_an_anchor_measures_edits_by_the_reference_s_own_spread():
    rng = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=rng))
    spread = torch.tensor([2.0, 1.0, 0.5, 1e-4])
    inverse = inverse_covariance(torch.randn(20000, 4, generator=rng) * spread @ turn)
    assert turn @ inverse @ turn.T == pytest.approx(torch.diag(torch.tensor([0.25, 1, 4, 846])), rel=0.05, abs=0.5)
    pull = 1e-5 * torch.randn(8, 4, 3, 3, generator=rng)
    alone = held(pull, torch.zeros_like(pull), 0.3, inverse)
    assert alone.square().mean() == pytest.approx(1)
    edit = 0.3 * (turn[2] * 0.5).view(1, 4, 1, 1).expand(8, -1, 3, 3)
    back = held(pull, edit, 0.3, inverse) - alone
    assert back[0, :, 0, 0] @ turn[2] == pytest.approx(2, rel=0.05), "0.3 of its deviation 0.5 costs 1 / 0.5"
    assert back == pytest.approx(2 * (held(pull, edit, 0.6, inverse) - alone), abs=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(held(pull, edit, 0.3, inverse), back + alone)


def test_the_newest_latents_are_remembered_with_their_labels():
    memory = approach.Recent((1, 1, 1), size=3, with_labels=True)
    for batch in ([1, 2], [3, 4]):
        memory.remember(torch.tensor(batch).float().view(-1, 1, 1, 1), torch.tensor(batch))
    z, labels = memory.newest(9)
    assert labels.tolist() == z.flatten().tolist() == [3, 4, 1]
    assert memory.newest(1)[1].tolist() == [3]
    assert set(memory.state_dict()) == {"recent", "count", "labels"}
    # Checkpoints of older versions have no labels of the first; of the second they are `LATER`.
    assert {"recent", "count"} == set(approach.Recent((1, 1, 1)).state_dict())
    state = approach.Approach((1, 1, 1), 1.0, 1.1).state_dict()
    assert set(state) == {"recent", "count", "labels", "ratio", "multiple", "near"}


def test_the_ratio_follows_the_distance_and_three_in_a_row_are_arrival(monkeypatch):
    found = iter([3.0, 1.05, 1.05, 2.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(approach, "multiples", lambda *_: {"whole": next(found)})
    memory = approach.Approach((2, 2, 2), 1.0, 1.1)
    reference = Gaussian((2, 2, 2), 3, 1.0)
    assert memory.measure(reference, Random(0)) == {}, "too few latents are remembered"
    for _ in range(2):
        memory.remember(torch.randn(600, 2, 2, 2))
    ratios = [memory.measure(reference, Random(i))["distance/ratio"] for i in range(6)]
    assert ratios[0] > 1
    assert ratios[1] < ratios[0]
    assert ratios[3] > ratios[2]
    assert not memory.arrived
    memory.measure(reference, Random(7))
    assert memory.arrived


@pytest.mark.parametrize("batch_size", [1, 100, 256, 1023, 1024, 4096])
def test_it_is_measured_at_every_tenth_turn_once_enough_latents_are_remembered(batch_size):
    for turns in (0, 1, 4, 11, 100, 1030):
        found = [turn for turn in range(turns) if turn % 10 == 0 and (turn + 1) * batch_size >= 1024]
        assert approach.measurements(turns, batch_size) == len(found), turns


def test_the_distance_is_of_slices_and_arrival_of_what_is_told_apart_too(monkeypatch):
    monkeypatch.setattr(approach, "multiples", lambda *_: {"whole": 1.0, "told": 3.0})
    memory = approach.Approach((2, 2, 2), 1.0, 1.1)
    memory.remember(torch.randn(1024, 2, 2, 2))
    for _ in range(3):
        memory.measure(Gaussian((2, 2, 2), 3, 1.0), Random(0))
    assert memory.distance == 1.0
    assert not memory.arrived


def test_a_distance_that_is_measured_for_another_end_moves_no_ratio(monkeypatch):
    monkeypatch.setattr(approach, "multiples", lambda *_: {"whole": 3.0})
    memory = approach.Approach((2, 2, 2), 0.05, 1.1)
    memory.remember(torch.randn(1024, 2, 2, 2))
    assert memory.measure(Gaussian((2, 2, 2), 3, 1.0), Random(0), follow=False) == {"distance/whole": 3.0}
    assert (memory.ratio.item(), memory.distance) == (pytest.approx(0.05), 3.0)


@pytest.mark.slow
def test_latents_that_are_not_finite_are_trouble_and_no_mistake_of_the_user_s():
    memory = approach.Approach((2, 2, 2), 1.0, 1.1)
    memory.remember(torch.randn(1024, 2, 2, 2))
    memory.recent[3, 0, 0, 0] = torch.nan
    for follow in (True, False):
        with pytest.raises(FloatingPointError, match="distance to the reference is not finite"):
            memory.measure(Gaussian((2, 2, 2), 3, 1.0), Random(0), follow)


def test_autocast_leaves_the_measured_distance_as_it_is(monkeypatch):
    monkeypatch.setattr(approach, "RECENT", 64)
    monkeypatch.setattr(two_sample, "STEPS", 20)
    memory, found = approach.Approach((2, 2, 2), 1.0, 1.1), []
    memory.remember(Random(0).normal(64, 2, 2, 2))
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            memory.ratio.fill_(1.0)
            found.append(memory.measure(Gaussian((2, 2, 2), 3, 1.0), Random(1)))
            found[-1] |= memory.tell(Gaussian((2, 2, 2), 3, 1.0), Random(1), (), whole=True)
    assert found[0] == found[1]
    assert len(found[0]) == 7
