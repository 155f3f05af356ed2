"""The measure of arrival: 1 by chance, words for what it sees, and no luck in it."""

import re
from dataclasses import replace

import pytest
import torch

from dmvae.transport import two_sample
from dmvae.transport.arrival import (
    Arrival,
    _told,
    accuracy_of,
    details,
    effective_rank,
    measure,
    mixing,
    multiples,
    told_by_class,
    told_with_class,
)
from dmvae.transport.two_sample import accuracy_with_class, two_sample_accuracy
from draws import normal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return normal(1280, 4, 2, 2, seed=9)


@pytest.fixture
def untrained(monkeypatch):
    """Classifiers of which nothing is asked."""
    monkeypatch.setattr(two_sample, "STEPS", 3)


@pytest.fixture
def quick(monkeypatch):
    """A third of a classifier's steps."""
    monkeypatch.setattr(two_sample, "STEPS", 100)


def test_a_second_sample_has_arrived(reference):
    found = measure(normal(512, 4, 2, 2), reference)
    for value in (found.whole, found.token, found.pair, found.energy):
        assert value == pytest.approx(1, abs=0.3)
    assert found.accuracy == pytest.approx(0.5, abs=0.1)
    assert found.token_accuracy == pytest.approx(0.5, abs=0.05)
    assert found.mixing == pytest.approx(0.5, abs=0.05)
    assert found.spread == pytest.approx(1, abs=0.03)
    assert found.arrived
    assert found.verdict == "arrived"


def test_narrow_latents_are_on_the_way(reference, quick):
    found = measure(0.5 * normal(512, 4, 2, 2), reference)
    assert min(found.whole, found.token, found.pair, found.energy) > 2
    assert found.token_accuracy > 0.7
    assert found.spread == pytest.approx(0.5, abs=0.03)
    assert re.fullmatch("on the way: .* at [0-9.]+ times chance, where 2 is arrival", found.verdict)


def test_what_is_just_above_a_limit_is_not_rounded_to_it(reference, untrained):
    found = replace(measure(normal(512, 4, 2, 2), reference), whole=1.0, token=1.0, pair=1.0, token_accuracy=0.5)
    assert "tokens at 2.01 times chance, where 2" in replace(found, token=2.004).verdict
    assert "60.1% of the tokens told apart, where 60%" in replace(found, token_accuracy=0.6004).verdict


def test_few_directions_do_not_compare(reference, untrained):
    z = normal(512, 2) @ normal(2, 16, seed=1) / 2**0.5
    found = measure(z.view(-1, 4, 2, 2), reference)
    assert found.rank < 2.1 < 15 < found.reference_rank
    assert found.verdict == "not comparable: the reference has more dimensions than the encoder fills"


def test_dependence_between_places_is_seen_by_pairs_and_not_by_tokens(reference):
    """Every place of a latent the same: each token is normal, a pair is not."""
    found = measure(normal(512, 4, 1, 1).expand(-1, -1, 2, 2), reference)
    assert found.token_accuracy < 0.6
    assert found.pair > 2
    assert found.accuracy > 0.9
    assert not found.arrived


def test_it_is_the_same_each_time_and_leaves_randomness_alone(reference, untrained):
    z = normal(128, 4, 2, 2)
    torch.manual_seed(0)
    first = measure(z, reference[:400])
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert torch.equal(torch.rand(()), drawn)
    assert measure(z, reference[:400]) == first


def test_a_grid_of_one_place_has_the_tokens_distance_for_pairs(untrained):
    found = measure(normal(200, 3, 1, 1), normal(600, 3, 1, 1, seed=1))
    assert isinstance(found, Arrival)
    assert found.pair == found.token


def test_two_samples_told_apart_by_what_they_hide():
    """Same mean and variance in every component: a sphere against a ball of Gaussians, learned from norms alone."""
    a = normal(2000, 1, 4)
    b = 2 * torch.nn.functional.normalize(normal(2000, 1, 4, seed=1), dim=2)
    assert two_sample_accuracy(a, b) > 0.8
    assert two_sample_accuracy(a, normal(2000, 1, 4, seed=2)) == pytest.approx(0.5, abs=0.06)


def test_classes_that_have_changed_places_are_told_apart_one_by_one():
    """All latents together have the reference's distribution: only who is told the class can see it."""
    labels, sides = torch.arange(2048) % 2, torch.tensor([-1.0, 1.0])
    y = normal(2048, 4, 2, 2) + sides[labels].view(-1, 1, 1, 1)
    z, there = normal(1024, 4, 2, 2, seed=1) + sides[labels[:1024]].view(-1, 1, 1, 1), labels[:1024]
    right, swapped = (details(z, y, (of, labels)) for of in (there, 1 - there))
    assert max(right.values()) < 2
    assert min(swapped[f"{view}{of}"] for view in ("told", "told_whole") for of in ("_class", "/0", "/1")) > 4
    assert swapped["told_whole"] < 2
    assert swapped["energy"] == right["energy"]


def test_a_class_with_few_items_is_left_out():
    a, b = normal(200, 1, 4), normal(200, 1, 4, seed=1)
    of = (torch.arange(200) // 180, torch.arange(200) // 100)
    assert accuracy_with_class(a, b, of, steps=3)[1].keys() == {0}, "5 of 20 items are held out"


def test_a_hundred_classes_that_have_changed_places_are_told_apart_though_none_is_by_itself(quick):
    middles, labels = normal(100, 4, 1, 1, seed=2), torch.arange(2048) % 100
    y, z = (normal(n, 4, 2, 2, seed=n) + 2 * middles[labels[:n]] for n in (2048, 1024))
    there = labels[:1024]
    right, swapped = (details(z, y, (of, labels)) for of in (there, (there + 1) % 100))
    assert {key for key in right if key.startswith("told")} == {"told_whole", "told_class", "told_whole_class"}
    assert max(right.values()) < 2
    assert min(swapped["told_class"], swapped["told_whole_class"]) > 4
    assert max(swapped["told_whole"], swapped["energy"]) < 2
    assert told_with_class(z, (there + 1) % 100, y, labels)["token_accuracy"] > 0.7


def test_how_often_a_class_occurs_does_not_tell_two_sets_apart(quick):
    """Alike class by class, nine of ten of one class on one side and half on the other."""
    labels, of = (torch.arange(1000) % 10 > 8).long(), torch.arange(1000) % 2
    z, y = (normal(1000, 4, 2, 2, seed=s) + 6 * kinds.view(-1, 1, 1, 1) for s, kinds in enumerate((labels, of)))
    found = told_with_class(z, labels, y, of)
    assert max(abs(value - 0.5) for value in found.values()) < 0.1
    assert two_sample_accuracy(z.flatten(1)[:, None], y.flatten(1)[:, None]) > 0.6
    assert told_with_class(z, labels, y, of + 2) == {}, "no class in common"
    assert "told_class" not in details(z[:400], y, (labels[:400], of + 2))


def test_items_are_not_split_between_training_and_test():
    """Many vectors per item, all but equal: a network that had seen an item's others would know it again."""
    a, b = (normal(64, 1, 8, seed=s).expand(-1, 32, -1) for s in (0, 1))
    assert two_sample_accuracy(a, b) < 0.8


def test_ranks_and_mixing_with_known_answers():
    x = normal(4000, 3) * torch.tensor([1.0, 1.0, 0.0])
    assert effective_rank(x) == pytest.approx(2, abs=0.01)
    assert mixing(normal(300, 2), normal(300, 2, seed=1)) == pytest.approx(0.5, abs=0.06)
    assert mixing(normal(300, 2), 50 + normal(300, 2)) == 0
    assert mixing(0.3 * normal(300, 200), normal(300, 200, seed=1)) < 0.05  # the narrow one is nearest to all
    # In many dimensions a narrow cloud is near to every point of a wide one about it, and none of that one to it.
    corners = torch.cat([torch.eye(8), -torch.eye(8)])  # about 1 from the middle, at least sqrt(2) from each other
    assert mixing(0.01 * corners, corners) == mixing(corners, 0.01 * corners) == 0


def test_an_accuracy_is_told_and_read_back():
    told = [_told(accuracy) for accuracy in (0.4, 0.5, 0.55, 0.6)]
    assert told == pytest.approx([0, 0, 1, 2])
    assert [accuracy_of(x) for x in told] == pytest.approx([0.5, 0.5, 0.55, 0.6])


def test_a_quick_look_agrees(reference, quick):
    rng = torch.Generator().manual_seed(0)
    near, far = (multiples(scale * normal(256, 4, 2, 2), reference, rng) for scale in (1.0, 0.5))
    assert near.pop("told") < 0.5
    assert near == pytest.approx({"whole": 1, "token": 1, "pair": 1}, abs=0.4)
    assert min(far.values()) > 2


def test_a_thin_reference_is_told_apart_where_slices_see_nothing(reference):
    """Signs of one channel are the product of two others': each slice has nearly the same law, and an MLP sees it."""
    thin, flat = reference.clone(), normal(1024, 4, 2, 2)
    thin[:, 0] = thin[:, 0].abs() * (thin[:, 1] * thin[:, 2]).sign()
    found = multiples(flat[:256], thin, torch.Generator().manual_seed(0))
    assert max(found["whole"], found["token"]) < 2
    assert found["told"] > 2


def test_a_quick_look_needs_enough_samples(reference):
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="599 samples for 300 latents; give at least 602"):
        multiples(normal(300, 4, 2, 2), reference[:599], rng)


def test_classes_that_changed_places_are_told_apart_though_the_whole_is_not():
    torch.manual_seed(0)
    labels = torch.arange(600) % 2
    places = torch.where(labels == 0, 2.0, -2.0).view(-1, 1, 1, 1)
    z, y = (torch.randn(600, 4, 2, 2) + places for _ in range(2))
    alike = told_by_class(z, labels, y, labels)
    swapped = told_by_class(z, labels, y, 1 - labels)
    assert list(alike) == [0, 1]
    assert all(abs(value - 0.5) < 0.12 for figures in alike.values() for value in figures.values())
    assert all(value > 0.95 for figures in swapped.values() for value in figures.values())
    assert told_by_class(z[:100], labels[:100], y, labels) == {}, "too few of each class"
