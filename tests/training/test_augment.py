"""Random views of a batch, in whatever precision the step is."""

import pytest
import torch

from dmvae.commands.fields import describe
from dmvae.runtime.random import Random
from dmvae.stages.encoder import EncoderTraining
from dmvae.training.augment import random_flip, random_view


def test_autocast_moves_no_crop():
    x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = random_view(x, Random(0))
    assert torch.equal(cast, random_view(x, Random(0)))


def test_a_crop_lies_within_its_image():
    """Of a slope from left to right a view is a slope, between the image's ends but for brightness and contrast."""
    x = torch.linspace(-0.5, 0.5, 64).expand(16, 1, 64, 64)
    view = random_view(x, Random(1), jitter=0.0)
    assert view.min() >= -0.5
    assert view.max() <= 0.5
    steps = view[..., 0, 1:-1].diff(dim=-1)
    assert (steps.std(-1) < 1e-3).all()
    assert set(steps.mean(-1).sign().flatten().tolist()) == {-1.0, 1.0}, "half of them are mirrored"
    span = (view[..., 0, -1] - view[..., 0, 0]).abs().flatten()
    assert 0.25 < span.min() < span.max() <= 1.0


def test_brightness_and_contrast_change_by_the_jitter_at_most():
    shifts, both = (random_view(torch.full((2000, 1, 2, 2), x), Random(0), jitter=0.4) for x in (0.0, 1.0))
    for change, limit in ((shifts, 0.2), (both - shifts - 1, 0.4)):
        assert -limit - 1e-5 <= change.min() < -0.98 * limit
        assert 0.98 * limit < change.max() <= limit + 1e-5


def test_half_of_the_images_are_mirrored():
    x = torch.arange(6000.0).view(2000, 1, 1, 3)
    found = random_flip(x, Random(0))
    mirrored, same = ((found == y).flatten(1).all(1) for y in (x.flip(3), x))
    assert (mirrored ^ same).all()
    assert 0.45 < mirrored.float().mean() < 0.55


@pytest.mark.parametrize(("min_crop", "smallest"), [(0.1, 0.1), (0.5625, 0.5625), (0.8, 0.75 * 0.8**0.5), (1.0, 0.75)])
def test_aspect_and_area_are_as_the_docstring_says(monkeypatch, min_crop, smallest):
    drawn, own = [], torch.nn.functional.affine_grid
    monkeypatch.setattr(torch.nn.functional, "affine_grid", lambda *x, **more: drawn.append(x[0]) or own(*x, **more))
    random_view(torch.zeros(20000, 1, 2, 2), Random(0), min_crop)
    w, h = drawn[0][:, 0, 0].abs(), drawn[0][:, 1, 1]
    assert smallest - 1e-4 <= float((w * h).min()) < smallest + 0.01
    assert 9 / 16 - 1e-3 < float((w / h).min()) < float((w / h).max()) < 16 / 9 + 1e-3
    if min_crop < 0.5:
        assert float((w / h).min()) < 0.58
    assert "9/16" in describe(EncoderTraining)["min_crop"]
