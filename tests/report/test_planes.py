"""Which images of each method the map of latents shows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmvae.report import latent_map


def places_of(counts, classes=10):
    """Those of a reference and of methods with so many images, whose classes follow one another in turn."""
    clouds = [
        latent_map.Cloud(str(i), str(i), np.zeros((n, 3)), np.arange(n) % classes, is_reference=i == 0)
        for i, n in enumerate(counts)
    ]
    (group,) = latent_map.planes(clouds)
    return [cloud.places for cloud in group]


def test_a_reference_in_units_of_its_own_is_drawn_in_those_of_the_latents():
    """Latents of the reference's own law, which are normalised, lie where its samples do."""
    z = torch.randn(400, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(400, dtype=torch.int64)
    there = {
        "reference": {"a": {"latents": 3 + 5 * z[:200], "labels": labels[:200]}},
        "evaluate": {"a": {"map_latents": z[200:].flatten(1), "map_labels": labels[200:]}},
    }
    run = SimpleNamespace(variants=["a"], folders=lambda stage: {"a": "here"}, tensors=lambda stage, name: there[stage])
    reference, own = latent_map.clouds_of(run)
    assert own.reference is reference
    assert np.abs(reference.latents.mean(0)).max() < 0.3
    assert reference.latents.std() == pytest.approx(own.latents.std(), rel=0.05)
    assert latent_map._note(own, [reference, own]) in [
        f"mixing with the reference: {share} %" for share in range(45, 51)
    ]


@pytest.mark.parametrize(("distance", "began"), [(0.03, True), (0.09, True), (0.5, False)])
def test_a_page_tells_where_latents_began(tmp_path, distance, began):
    (tmp_path / "report.json").write_text(json.dumps({"distance": distance, "floor": 0.05}))
    run = SimpleNamespace(folders=lambda stage: {"a": tmp_path, "b": tmp_path, "none": tmp_path / "other"})
    (told,) = latent_map._began(run)
    assert "the latents of <b>a</b>, <b>b</b> were" in told
    assert f"{distance / 0.05:.2g} times as far" in told
    assert ("so they began at it" in told) == began


def test_methods_show_different_images():
    reference, first, second = places_of([40, 40, 41])
    assert reference.tolist() == [*range(40)]
    assert sorted([*first, *second]) == [*range(41)]
    assert abs(len(first) - len(second)) < 5
    again = places_of([40, 40, 41])
    assert all(np.array_equal(a, b) for a, b in zip(again, (reference, first, second), strict=True))


@pytest.mark.parametrize("methods", [2, 5])
def test_every_method_shows_every_class(methods):
    """With every second image of classes in turn, a method of two would show half of ten classes."""
    for places in places_of([1000] * (1 + methods)):
        assert len({*(places % 10)}) == 10
        assert len(places) > 100
