"""Objectives between samples: each takes points to a reference that they start apart from, without a teacher."""

import re
from dataclasses import replace

import pytest
import torch
from small import SHAPE, Halves

from dmvae import config as configs
from dmvae.matching import Context, Matching
from dmvae.matching.between import BetweenSamples
from dmvae.references.features import FeaturesReference
from dmvae.references.gaussian import Gaussian, GaussianReference
from dmvae.references.mixture import MixtureReference
from dmvae.registry import find, names
from dmvae.runtime.random import Random

STEPS = 70
FEWER = {"sinkhorn": {"iterations": 10}}
"""Enough for so few latents, and five times as fast."""
OBJECTIVES = [name for name in names(Matching) if issubclass(find(Matching, name), BetweenSamples)]


def test_there_is_one_of_each_kind():
    assert OBJECTIVES == ["drift", "energy", "mmd", "moments", "normality", "sinkhorn", "transport"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_latents_reach_a_gaussian(name):
    objective = find(Matching, name)(samples=128, vectors=128, **FEWER.get(name, {}))
    reference = Gaussian(SHAPE, 3, 1.0)
    # The pull of a normality test, and of kernels, fades with the distance.
    away = {"normality": 0.5, "mmd": 1.0}.get(name, 3.0)
    z = (away + 0.3 * Random(0).normal(64, *SHAPE)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    labels = torch.zeros(len(z), dtype=torch.int64)
    for step in range(STEPS):
        context = Context(Random(1, step), 3, progress=step / STEPS, reference=reference)
        loss, log = objective.loss(z, labels, context=context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(log) == {f"{name}/{view}" for view in ("whole", "token", "pair")}
    assert z.mean().abs() < 0.25
    assert 0.6 < z.std() < 1.4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_autocast_leaves_distances_as_they_are(name):
    """Distances are small differences of large products: bf16 would leave two of their digits."""
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(moved(name, at(3.0)))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_latents_of_a_trainer_in_bf16_are_compared_in_float32(name):
    """As they are, rounded, beside rounded ones of the turns before: the pull is the same, to the digits it has."""
    z, queue = (Random(i).normal(64, 16, 2, 2).bfloat16() for i in (0, 1))
    reference, labels, found = Gaussian((16, 2, 2), 3, 1.0), torch.zeros(64, dtype=torch.int64), []
    for kind in (torch.bfloat16, torch.float32):
        x = z.to(kind).requires_grad_()
        context = Context(Random(2), 3, progress=0.5, reference=reference, recent=(queue.to(kind), labels))
        loss, _ = find(Matching, name)(samples=64, queue=64, **FEWER.get(name, {})).loss(x, labels, context=context)
        found.append((loss, *torch.autograd.grad(loss, x)))
    (loss, pull), (expected, expected_pull) = found
    assert torch.equal(loss, expected)
    assert pull.dtype is torch.bfloat16
    assert torch.equal(pull, expected_pull.bfloat16())


@pytest.mark.parametrize("name", ["drift", "energy", "moments", "sinkhorn"])
def test_no_vector_of_many_is_compared_with_its_own_copy(name, monkeypatch):
    """Drawn twice, it would repel itself, or nothing."""
    seen, z = [], Random(0).normal(16, *SHAPE).requires_grad_()
    kind = find(Matching, name)
    monkeypatch.setattr(kind, "distance", lambda self, a, b, *_: seen.extend((a, b)) or a.sum())
    context = Context(Random(1), 3, reference=Gaussian(SHAPE, 3, 1.0))
    kind(views=("token",), vectors=48, samples=24).loss(z, torch.zeros(16, dtype=torch.int64), context=context)
    assert [len(x) for x in seen] == [len(x.unique(dim=0)) for x in seen] == [48, 48]


def test_narrow_kernels_leave_tokens_of_the_reference_s_spread_as_they_are():
    """Half of 4,096 tokens are compared. Each would stay near its own copies, and the pull towards samples be alone."""
    z = Random(0).normal(256, 16, 4, 4).requires_grad_()
    context = Context(Random(1), 3, progress=0.999, reference=Gaussian((16, 4, 4), 3, 1.0))
    objective = find(Matching, "drift")(views=("token",))
    objective.loss(z, torch.zeros(256, dtype=torch.int64), context=context)[0].backward()
    assert float((z.grad * z.detach()).sum() / z.detach().square().mean() / 16) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_says_what_it_lacks(name):
    objective = find(Matching, name)()
    assert objective.new_student(SHAPE, 3, None, None) is None
    with pytest.raises(ValueError, match=f"{name} compares latents with samples: give context="):
        objective.loss(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("transport", {"views": ()}, "views: give at least one"),
        ("sinkhorn", {"eps": 0.0}, "eps: expected a number, above 0, to below 100, got 0.0"),
        ("mmd", {"bandwidths": ()}, "bandwidths: give at least one"),
        ("drift", {"bandwidths": (0.0, 1.0)}, r"bandwidths\[0\]: expected a number, above 0"),
        ("normality", {"std": -1.0}, "std: expected a number, above 0"),
        ("energy", {"samples": 0}, "samples: expected a whole number, 1 to"),
    ],
)
def test_fields_that_make_no_sense_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        configs.read(Matching, {"type": name} | fields)


@pytest.mark.parametrize("name", ["transport", "energy"])
def test_class_by_class_latents_go_where_their_class_is(name):
    """Where they begin, on the wrong side, the whole of them has the right distribution already."""
    labels = torch.arange(64) % 2
    found = []
    for by_class in (True, False):
        z = ((2 - 4.0 * labels).view(-1, 1, 1, 1) + 0.3 * Random(0).normal(64, *SHAPE)).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.2)
        for step in range(25):
            context = Context(Random(1, step), 2, reference=Halves(SHAPE))
            loss, _ = find(Matching, name)(samples=64, labels=by_class).loss(z, labels, context=context)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(float(((2.0 * labels - 1) * z.detach().mean((1, 2, 3))).mean()))
    assert found[0] > 1.5
    assert found[1] < -1.5


class TwoModes:
    """Vectors at -3 and, as many, at +3."""

    def sample(self, n, rng):
        return 6.0 * (torch.arange(n) % 2).view(-1, 1, 1, 1) - 3 + 0.1 * rng.normal(n, 2, 1, 1), torch.arange(n) % 2


def at(place, n=16, seed=0):
    return place + 0.1 * Random(seed).normal(n, 2, 1, 1)


def moved(name, z, recent=None, of=None, **fields):
    """By how much a step along the gradient moves a latent of labels `of`, on average: [2]."""
    z = z.clone().requires_grad_()
    objective = find(Matching, name)(views=("whole",), samples=64, **fields)
    context = Context(Random(0), 2, reference=TwoModes(), recent=recent)
    of = torch.zeros(len(z), dtype=torch.int64) if of is None else of
    loss = objective.loss(z, of, context=context)[0]
    with torch.autocast("cpu", enabled=False):
        loss.backward()
    return -len(z) * z.grad.mean((0, 2, 3))


def unlabelled(z):
    return z, torch.zeros(len(z), dtype=torch.int64)


SLICED = {"along": ("random",), "slices": 512}


@pytest.mark.parametrize(("name", "fields"), [("sinkhorn", {}), ("transport", SLICED)])
def test_a_queue_balances_a_batch_of_one_mode(name, fields):
    """A batch in one of two modes is half of a balanced assignment, whose other half is the queue's. Without one, half
    of the batch is sent over to the mode that looks empty, which is 3 on average: the mean over directions u of
    2 (u . v) u is v in two dimensions, too."""
    z, other = at(-3.0), unlabelled(at(3.0, seed=1))
    assert moved(name, z, **fields) == pytest.approx(torch.full((2,), 3.0), abs=0.5)
    assert moved(name, z, other, queue=16, **fields) == pytest.approx(torch.zeros(2), abs=0.1)


@pytest.mark.parametrize(("name", "fields"), [("sinkhorn", {}), ("transport", SLICED), ("moments", {})])
def test_a_queue_of_the_batch_s_kind_leaves_the_pull_as_long_as_it_was(name, fields):
    z = at(-3.0)
    for times in (1, 3):
        with_it = moved(name, z, unlabelled(z.repeat(times, 1, 1, 1)), queue=16 * times, **fields)
        assert with_it == pytest.approx(moved(name, z, **fields), rel=0.06)


def test_a_queue_is_the_newest_latents_and_gets_no_gradient():
    z, new, old = at(-3.0), at(3.0, seed=1).requires_grad_(), at(90.0, seed=2)
    alone = moved("sinkhorn", z, unlabelled(new), queue=16)
    assert torch.equal(moved("sinkhorn", z, unlabelled(torch.cat([new, old])), queue=16), alone)
    assert not torch.equal(moved("sinkhorn", z, unlabelled(torch.cat([new, old])), queue=32), alone)
    assert torch.equal(moved("sinkhorn", z, unlabelled(z[:0]), queue=16), moved("sinkhorn", z)), "none at first"
    assert torch.equal(moved("sinkhorn", z, unlabelled(new)), moved("sinkhorn", z)), "none is asked for"
    assert new.grad is None


def test_class_by_class_a_queue_is_of_the_class():
    z, ones = at(0.0), torch.ones(16, dtype=torch.int64)
    found = [moved("sinkhorn", z, (at(-3.0, seed=1), label * ones), of=ones, labels=True, queue=16) for label in (0, 1)]
    alone = moved("sinkhorn", z, of=ones, labels=True)
    assert torch.equal(found[0], alone)
    assert not torch.equal(found[1], alone)


@pytest.mark.parametrize(
    ("recent", "message"),
    [
        (
            None,
            r"queue: 16, but context.recent is None: the caller keeps .*; give context=Context\(..., recent=",
        ),
        (unlabelled(torch.zeros(4, 3, 1, 1)), r"recent: latents \[4, 3, 1, 1\] .* for latents \[16, 2, 1, 1\]; give"),
        ((torch.zeros(4, 2, 1, 1), torch.zeros(3)), r"recent: latents \[4, 2, 1, 1\] with labels \[3\]"),
    ],
)
def test_a_queue_that_is_none_says_so(recent, message):
    with pytest.raises(ValueError, match=message):
        moved("energy", at(0.0), recent, queue=16)


@pytest.mark.parametrize(
    ("fields", "batch_size", "classes", "reference", "message"),
    [
        ({"labels": True}, 64, 3, GaussianReference(), "labels: those of 'gaussian' mean nothing"),
        ({"labels": True}, 64, 1, FeaturesReference(), "labels: the data have a single class"),
        ({"labels": True}, 64, 20, FeaturesReference(), "batch_size: 64 for 20 classes; .* give at least 80"),
        ({"labels": True, "samples": 40}, 80, 20, FeaturesReference(), "samples: 40 for 20 classes"),
        ({"slices": 300}, 8, 3, FeaturesReference(), "slices: 300, of which 100 lie along .* at most 192"),
        (
            {"labels": True, "slices": 90},
            256,
            10,
            FeaturesReference(),
            "slices: 90, of which 30 lie along .* have 28 such gaps in each of 10 classes: .* at most 84",
        ),
        ({"labels": True, "samples": 24}, 12, 3, FeaturesReference(), "have 1 such gap in each of 3 classes"),
        ({}, 1, 3, FeaturesReference(), "batch_size: 1; transport compares sets"),
        ({"type": "moments"}, 2, 3, GaussianReference(), "batch_size: 2; moments compares sets, so give at least 3"),
        ({"type": "normality"}, 1, 3, GaussianReference(), "batch_size: 1; normality compares sets"),
        ({"type": "normality"}, 2, 3, GaussianReference(), "batch_size: 2; .* on 2 latents is least .* of 0.44 times"),
        (
            {"type": "normality"},
            64,
            3,
            GaussianReference(std=2.0),
            "std: 1, and reference.distribution.std is 2, .* same",
        ),
        ({"type": "normality", "queue": 4}, 2, 3, GaussianReference(), "on 6 latents .* and of 0.87 on 8: give at"),
    ],
)
def test_batches_and_labels_that_do_not_do_are_found_before_anything_runs(
    fields, batch_size, classes, reference, message
):
    objective = configs.read(Matching, {"type": "transport"} | fields)
    (found,) = objective.problems(batch_size, classes, reference)
    assert re.search(message, found)


def test_what_does_goes_without_a_word():
    objective = find(Matching, "transport")(labels=True)
    assert list(objective.problems(256, 10, FeaturesReference())) == []
    assert list(replace(objective, slices=84).problems(256, 10, FeaturesReference())) == []
    for fields, batch_size in (({}, 8), ({"queue": 6}, 2), ({"views": ("token",)}, 2)):
        assert list(find(Matching, "normality")(**fields).problems(batch_size, 10, GaussianReference())) == []
    assert list(find(Matching, "normality")(std=2.0).problems(8, 10, GaussianReference(std=2.0))) == []
    assert list(objective.problems(256, 10, MixtureReference())) == []
    assert list(objective.problems(256, 10, MixtureReference(conditional=False))) != []
    assert {"labels", "queue"}.isdisjoint(configs.identity(find(Matching, "transport")()))
