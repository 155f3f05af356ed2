"""Random numbers, data order, averages, learning rates: what resume rests on, besides checkpoints."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmvae import config as configs
from dmvae.runtime.random import Random
from dmvae.training.data import order
from dmvae.training.ema import Average
from dmvae.training.optim import adamw, learning_rate_factor
from dmvae.training.stage import TrainingConfig


def test_random_is_a_function_of_its_key():
    a, b, c = Random(0, "stage", 7), Random(0, "stage", 7), Random(0, "stage", 8)
    x = a.normal(4, 2)
    assert torch.equal(x, b.normal(4, 2))
    assert not torch.equal(x, c.normal(4, 2))
    assert torch.equal(torch.randn(3, generator=a), torch.randn(3, generator=b))


def test_a_copy_draws_its_original_s_part_of_the_batch():
    rng = Random(0, "stage", part=(1, 2))
    assert torch.equal(deepcopy(rng).normal(3), rng.normal(3))


def test_two_ranks_draw_what_one_draws(monkeypatch):
    from dmvae.runtime import distributed

    whole = Random(0, 1).normal(8, 3)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(Random(0, 1).normal(4, 3))
    assert torch.equal(torch.cat(parts), whole)


def test_order_shows_every_item_once_a_pass_and_resumes_anywhere():
    whole = list(order(10, 4, ("k",), 0, 10))
    seen = [i for batch in whole for i in batch]
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert list(order(10, 4, ("k",), 3, 10)) == whole[3:]


def test_ema_of_constant_weights_is_the_weights_and_it_is_put_back():
    net = nn.Linear(2, 2)
    average = Average(net, 0.9)
    for _ in range(5):
        average.update()
    assert torch.allclose(average.tensors[0], net.weight)
    with torch.no_grad():
        net.weight.add_(1)
    moved = net.weight.clone()
    with average.applied():
        assert torch.allclose(net.weight, moved - 1, atol=1e-6)
    assert torch.equal(net.weight, moved)


def test_ema_follows_weights_by_its_decay_which_begins_low():
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.0)
    average, expected = Average(net, 0.25), 0.0
    for n, decay in enumerate((0.1, 2 / 11, 0.25, 0.25)):
        with torch.no_grad():
            net.weight.fill_(n + 1.0)
        average.update()
        expected = decay * expected + (1 - decay) * (n + 1)
        assert float(average.tensors[0]) == pytest.approx(expected)


def test_ema_goes_on_from_its_state():
    net = nn.Linear(2, 2)
    first, again = Average(net, 0.9), Average(nn.Linear(2, 2), 0.9)
    first.update()
    again.load_state_dict(first.state_dict())
    again.module, again.parameters = first.module, first.parameters
    with torch.no_grad():
        net.weight.add_(1)
    for average in (first, again):
        average.update()
    assert all(torch.equal(*both) for both in zip(first.tensors, again.tensors, strict=True))


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(steps=100, warmup=10, schedule="cosine")
    factors = [learning_rate_factor(config, s) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert factors[-1] < 0.01
    assert learning_rate_factor(TrainingConfig(steps=5), 3) == 1


RAE = {"steps": 800, "learning_rate": 2e-4, "final_learning_rate": 2e-5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"schedule": "linear", "decay_from": 0.05}, {0: 1, 40: 1, 41: 1 - 0.9 / 760, 420: 0.55, 800: 0.1}),
        ({"schedule": "linear", "warmup": 40}, {0: 1 / 40, 39: 1, 40: 1, 420: 0.55, 800: 0.1}),
        ({"schedule": "linear", "warmup": 8, "decay_from": 0.05}, {3: 0.5, 7: 1, 40: 1, 420: 0.55, 610: 0.325}),
        ({"schedule": "linear", "final_learning_rate": 0}, {0: 1, 200: 0.75, 600: 0.25, 800: 0}),
        ({"schedule": "cosine", "warmup": 40}, {39: 1, 40: 1, 230: 0.55 + 0.45 * 2**-0.5, 420: 0.55, 800: 0.1}),
        ({"schedule": "cosine", "final_learning_rate": 2e-4}, {0: 1, 400: 1, 800: 1}),
    ],
)
def test_a_learning_rate_falls_from_where_it_says_to_where_it_says(given, expected):
    config = TrainingConfig(**RAE | given)
    assert {step: learning_rate_factor(config, step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "generator: final_learning_rate: schedule: constant does not fall; set linear or cosine, or leave it out"),
        ({"final_learning_rate": 0, "decay_from": 0.5}, "generator: decay_from: schedule: constant does not fall"),
        (
            {"schedule": "linear", "final_learning_rate": "3e-4"},
            "generator: final_learning_rate: 0.0003 is above the learning_rate of 0.0002, from which it falls; give at",
        ),
        ({"schedule": "linear", "decay_from": 1}, "generator.decay_from: expected a number, 0 to below 1, got 1"),
        (
            {"schedule": "linear", "decay_from": 0.05, "warmup": 41},
            "generator: decay_from: 0.05 of 800 steps is within the 41 of warmup, after which the fall begins any",
        ),
    ],
)
def test_a_fall_that_there_is_not_is_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configs.read(TrainingConfig, RAE | given, "generator")


def test_a_new_optimizer_has_moved_nothing():
    p = nn.Parameter(torch.ones(3))
    optimizer = adamw([p], TrainingConfig(steps=1, weight_decay=0.1), 0.1)
    assert torch.equal(p.detach(), torch.ones(3))
    assert optimizer.state[p]["step"] == 0


def test_ranks_hear_of_each_other_one_step_later_and_in_the_last_at_once(monkeypatch):
    from dmvae.runtime import distributed

    others = iter([False, True, False, True])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def all_reduce(x, op, async_op):
        x.clamp_(min=float(next(others)))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    any_rank = distributed.SharedFlag()
    assert [any_rank(False), any_rank(False), any_rank(False), any_rank(False, now=True)] == [False, False, True, True]
