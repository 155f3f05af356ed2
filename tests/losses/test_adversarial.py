"""Adversarial losses: closed forms; augmentation: what it does, its gradient, where its randomness comes from."""

import pytest
import torch

from dmvae.losses.adversarial import (
    adaptive_weight,
    augment,
    color,
    cutout,
    hinge_discriminator,
    hinge_generator,
    translation,
)
from dmvae.runtime.random import Random


def test_hinge_closed_forms():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(hinge_discriminator(real, fake)) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert float(hinge_generator(fake)) == pytest.approx(2 / 3)
    assert float(hinge_discriminator(torch.full((4,), 1.5), torch.full((4,), -1.0))) == 0


def test_adaptive_weight_closed_form():
    rec, gan = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[0.0], [2.0]], requires_grad=True)
    weight = adaptive_weight(rec, gan)
    assert float(weight) == pytest.approx(5 / 2.0001)
    assert not weight.requires_grad
    assert float(adaptive_weight(rec, torch.zeros(2), eps=1e-9)) == 1e4
    assert float(adaptive_weight(rec, torch.zeros(2), max=7.0)) == 7
    assert float(adaptive_weight(torch.zeros(2), gan)) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_randomness_is_the_generators(channels):
    x = torch.rand(6, channels, 12, 16, generator=Random(9)) * 2 - 1
    state = torch.get_rng_state()
    first, again, other = augment(x, Random(1)), augment(x, Random(1)), augment(x, Random(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == x.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_right(channels):
    x = torch.rand(2, channels, 6, 8, dtype=torch.float64, generator=Random(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, Random(3)), x)


def test_translation_moves_each_image_by_its_own_whole_pixels():
    x = torch.rand(40, 2, 16, 24, generator=Random(0)) + 1
    moved, seen = translation(x, Random(5)), set()
    for before, after in zip(x, moved, strict=True):
        shifts = []
        for dy in range(-2, 3):
            for dx in range(-3, 4):
                expected = torch.zeros_like(before)
                h, w = 16, 24
                expected[:, max(0, -dy) : h - max(0, dy), max(0, -dx) : w - max(0, dx)] = before[
                    :, max(0, dy) : h - max(0, -dy), max(0, dx) : w - max(0, -dx)
                ]
                if torch.equal(expected, after):
                    shifts.append((dy, dx))
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) > 15


@pytest.mark.parametrize(("size", "reach"), [(8, 1), (12, 2), (16, 2), (20, 3)])
def test_translation_reaches_an_eighth_rounded(size, reach):
    """A single bright column tells by how much its image has moved."""
    x = torch.zeros(400, 1, 1, size)
    x[..., size // 2] = 1
    moved = translation(x, Random(0))
    places = moved.amax(2)[:, 0].argmax(1)[moved.sum((1, 2, 3)) > 0] - size // 2
    assert (int(places.min()), int(places.max())) == (-reach, reach)


@pytest.mark.parametrize("size", [6, 8, 10, 12])
def test_a_cut_is_centred_on_every_place_alike(size):
    """So rows are cut as often from above as from below."""
    cut = (cutout(torch.ones(6000, 1, size, size), Random(0)) == 0)[:, 0].any(2).float().mean(0)
    assert torch.allclose(cut, cut.flip(0), atol=0.04)


def test_cutout_blanks_one_rectangle():
    blank = cutout(torch.ones(50, 3, 16, 12), Random(0)) == 0
    for image in blank:
        rows, columns = image[0].any(1), image[0].any(0)
        assert torch.equal(image, (rows[:, None] & columns).expand(3, -1, -1))
        assert 4 <= rows.sum() <= 8
        assert 3 <= columns.sum() <= 6
    assert 0.15 < blank.float().mean() < 0.25


def test_color_scales_saturation_by_up_to_two():
    """Beside the contrast, which grey pictures show."""
    x = torch.rand(400, 3, 2, 2, generator=Random(0))
    grey, changed = x.mean(1, keepdim=True), color(x, Random(1))
    contrast = color(grey, Random(1)).std((1, 2, 3)) / grey.std((1, 2, 3))
    before, after = ((of - of.mean(1, keepdim=True)).flatten(1).norm(dim=1) for of in (x, changed))
    saturation = after / before / contrast
    assert saturation.min() < 0.05
    assert 1.95 < saturation.max() < 2.001


def test_color_keeps_grey_and_scales_about_the_mean():
    grey = torch.rand(20, 1, 4, 4, generator=Random(0))
    changed = color(grey, Random(1))
    mean, contrast = changed.mean((1, 2, 3)), changed.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert ((mean - grey.mean((1, 2, 3))).abs() <= 0.5).all()
    assert contrast.min() >= 0.499
    assert contrast.max() <= 1.501
    # A grey picture in colour has no saturation to change.
    torch.testing.assert_close(color(grey.expand(-1, 3, -1, -1), Random(1)), changed.expand(-1, 3, -1, -1))
