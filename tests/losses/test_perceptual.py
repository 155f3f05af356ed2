"""Perceptual losses: zero at identity, growing with damage, gradients to the reconstruction alone."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision

from dmvae import config as configs
from dmvae.losses.perceptual import EffNetPerceptual, LPIPSPerceptual, PerceptualConfig
from dmvae.registry import find, names


@pytest.fixture(scope="module")
def loss():
    return EffNetPerceptual(resolution=32).build()


@pytest.fixture(params=[1, 3])
def images(request):
    coarse = torch.rand(4, request.param, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, (28, 28), mode="nearest")


def blurred(x, width):
    return F.avg_pool2d(F.pad(x, (width // 2,) * 4, mode="replicate"), width, 1)


def noisy(x, scale):
    return x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_features_are_of_length_one_at_every_place(loss, images):
    for features in loss.features(images):
        torch.testing.assert_close(features.norm(dim=1), torch.ones_like(features[:, 0]), atol=1e-3, rtol=0)


def test_it_is_twice_one_minus_the_cosine_at_each_place(loss, images):
    recon = noisy(images, 0.1)
    pairs = zip(loss.features(recon), loss.features(images), strict=True)
    expected = sum(2 - 2 * F.cosine_similarity(f, w, dim=1).mean((1, 2)) for f, w in pairs)
    torch.testing.assert_close(loss.per_sample(recon, images), expected, rtol=1e-2, atol=1e-5)


def test_zero_at_identity_and_growing_with_damage(loss, images):
    assert float(loss(images, images)) == 0
    for damage, amounts in [(blurred, (3, 5, 9)), (noisy, (0.02, 0.1, 0.4))]:
        values = [float(loss(damage(images, amount), images)) for amount in amounts]
        assert 0 < values[0] < values[1] < values[2], (damage, values)


def test_the_mean_over_samples_is_weighted(images):
    loss = EffNetPerceptual(resolution=32, stages=2, weight=0.25).build()
    recon = noisy(images, 0.1)
    each = loss.per_sample(recon, images)
    assert each.shape == (4,)
    assert float(loss(recon, images)) == pytest.approx(0.25 * float(each.mean()), rel=1e-6)
    alone = torch.cat([loss.per_sample(r[None], x[None]) for r, x in zip(recon, images, strict=True)])
    torch.testing.assert_close(each, alone, rtol=1e-4, atol=1e-6)


def test_larger_images_are_made_smaller_by_means_of_all_their_pixels(loss):
    """Stripes of one pixel in two, of which those next to the new pixels' centres are all dark."""
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(32).expand(1, 1, 128, 128)
    grey, dark = (loss.per_sample(stripes, torch.full((1, 1, 32, 32), x)).item() for x in (0.0, -1.0))
    assert grey < 0.5 * dark


def test_gradients_reach_the_reconstruction_alone(loss, images):
    recon, target = noisy(images, 0.1).requires_grad_(), images.clone().requires_grad_()
    loss.train()(recon, target).backward()
    assert recon.grad is not None
    assert recon.grad.isfinite().all()
    assert recon.grad.abs().sum() > 0
    assert target.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())


def test_the_gradient_is_the_loss_s(loss, images):
    """Against a central difference along the gradient."""
    recon = noisy(images, 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(recon, images), recon)
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        change = float(loss(recon + step, images) - loss(recon - step, images))
    assert change == pytest.approx(2e-2 * float(gradient.norm()), rel=0.1)


def test_following_the_gradient_mends(loss, images):
    recon = blurred(images, 5).requires_grad_()
    before = loss(recon, images)
    (gradient,) = torch.autograd.grad(before, recon)
    after = loss(recon.detach() - 0.1 * gradient / gradient.norm(), images)
    assert float(after) < float(before.detach())


def test_members():
    assert {"effnet-lite0", "lpips", "none"} <= set(names(PerceptualConfig))
    assert find(PerceptualConfig, "none")().build() is None
    with pytest.raises(ValueError, match="stages: expected a whole number, 1 to 7, got 8"):
        configs.read(EffNetPerceptual, {"stages": 8})


def test_lpips_without_weights_says_where_they_belong(monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth.*effnet-lite0"):
        LPIPSPerceptual().build()


def test_lpips_with_a_random_vgg(monkeypatch, tmp_path, images):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").touch()
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    monkeypatch.setattr(torchvision.models, "vgg16", lambda **_: SimpleNamespace(features=layers))
    loss = LPIPSPerceptual(weight=2.0).build()
    recon = noisy(images, 0.1).requires_grad_()
    value = loss(recon, images)
    assert float(loss(images, images)) == 0
    assert value.shape == ()
    each = loss.per_sample(recon.detach(), images)
    assert float(value.detach()) == pytest.approx(2 * float(each.mean()), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, recon)
    assert gradient.abs().sum() > 0
