"""Which images of each method the map of latents shows."""

import numpy as np
import pytest

from dmvae.report import latent_map


def places_of(counts, classes=10):
    """Those of a reference and of methods with so many images, whose classes follow one another in turn."""
    clouds = [
        latent_map.Cloud(str(i), str(i), np.zeros((n, 3)), np.arange(n) % classes, is_reference=i == 0)
        for i, n in enumerate(counts)
    ]
    (group,) = latent_map.planes(clouds)
    return [cloud.places for cloud in group]


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
