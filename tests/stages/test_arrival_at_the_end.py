"""What a finished matching says of its latents, with many classes, few, and labels that say nothing."""

import re
from types import SimpleNamespace

import pytest
import torch

from dmvae.runtime.random import Random
from dmvae.stages import arrival

SHAPE = (4, 2, 2)


class Clouds:
    """A normal cloud of its own about each class's middle."""

    def __init__(self, classes):
        self.classes = classes
        self.middles = 2 * torch.randn(classes, SHAPE[0], 1, 1, generator=torch.Generator().manual_seed(0))

    def sample(self, n, rng):
        labels = torch.arange(n) % self.classes
        return self.middles[labels] + rng.normal(n, *SHAPE), labels


def inputs_of(cloud, labelled, monkeypatch):
    config = SimpleNamespace(distribution=SimpleNamespace(labelled_for=lambda _: labelled))
    monkeypatch.setattr(arrival, "config_of", lambda inputs: config)
    of = {
        "normalisation.safetensors": {"mean": torch.ones(SHAPE[0]), "std": torch.full((SHAPE[0],), 3.0)},
        "map.safetensors": {"latents": cloud.sample(200, Random(1))[0]},
    }
    names = [f"class {i}" for i in range(cloud.classes)]
    return SimpleNamespace(seed=0, tensors=lambda stage, name: of[name], test_set=SimpleNamespace(classes=names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "labelled", "ending"),
    [
        (2, True, r"; of its classes class \d is farthest, with (9\d|100)% of its tokens told apart"),
        (100, True, r"; a network that knows the class tells [789]\d% of the tokens apart"),
        (100, False, ""),
    ],
)
def test_the_verdict_says_of_classes_that_have_changed_places(classes, labelled, ending, monkeypatch):
    cloud = Clouds(classes)
    inputs = inputs_of(cloud, labelled, monkeypatch)
    z, labels = cloud.sample(1000, Random(2))
    found = arrival.at_the_end(inputs, cloud, 3 * z + 1, (labels + 1) % classes, drawn=False)
    assert found["distance_whole"] < 2
    assert re.fullmatch("arrived" + ending, found["arrival"]["verdict"])
    assert bool(found["arrival"]["class_known"]) == labelled


def test_too_few_latents_have_a_distance_and_no_verdict(monkeypatch):
    cloud = Clouds(2)
    z, labels = cloud.sample(63, Random(2))
    found = arrival.at_the_end(inputs_of(cloud, True, monkeypatch), cloud, 3 * z + 1, labels, drawn=False)
    assert found.keys() == {"distance_to_reference"}
