"""What a reference says before training."""

import pytest
import torch

from dmvae.references.report import compare


def normal(n=800, scale=1.0, shift=0.0, seed=0):
    return shift + scale * torch.randn(n, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_equal_distributions_are_as_far_as_chance_puts_them():
    report = compare(normal(seed=1), normal(seed=2))
    assert report.distance < 2 * report.floor
    assert report.rank == pytest.approx(4, abs=0.05)
    assert report.advice == ()
    (line,) = report.lines()
    assert "effective rank 4.0 of 4 channels (initial latents 4.0)" in line
    assert "sliced Wasserstein distance 0.0" in line


def test_the_distance_is_in_standard_deviations():
    assert compare(normal(seed=1), normal(scale=3.0, seed=2)).distance == pytest.approx(2, abs=0.1)


def test_latents_at_another_scale_are_told_so():
    report = compare(normal(seed=1), normal(scale=4.0, shift=1.0, seed=2))
    (advice,) = report.advice
    assert "already in scale: 4" in advice
    assert "`scale: initial`" in advice
    assert report.lines()[1].startswith("warning: ")


def test_latents_of_another_shape_are_told_of_the_recipe_that_arrives():
    one_sign = torch.randint(2, (800, 1, 1, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    (advice,) = compare(normal(seed=1), one_sign.expand(-1, 4, 3, 3) + normal(scale=0.01, seed=2)).advice
    assert "in shape and not in scale" in advice
    assert "matching.noise: assigned, as in the recipe `arrive`" in advice


def test_a_reference_of_few_directions_warns_of_what_is_lost():
    flat = normal(seed=1)[:, :1].expand(-1, 4, -1, -1) + normal(scale=1e-3, seed=3)
    report = compare(flat, normal(seed=2))
    assert report.rank == pytest.approx(1, abs=0.05)
    assert any("about 1.0 of 4 channels" in line for line in report.advice)
