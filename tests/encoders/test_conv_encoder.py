"""The convolutional encoder: its shapes, and norms of one value."""

import re

import pytest
import torch

import tiny
from dmvae import checks
from dmvae.encoders.conv import ConvEncoder
from dmvae.recipe import load


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_conv_features(stride, channels):
    encoder = ConvEncoder(width=8, out_channels=20, stride=stride).build(size=32, channels=channels)
    assert encoder(torch.randn(2, channels, 32, 48)).shape == (2, 20, 32 // stride, 48 // stride)
    assert (encoder.channels, encoder.stride) == (20, stride)


@torch.no_grad()
def test_conv_features_depend_on_their_own_image_only():
    encoder, x = ConvEncoder(width=8).build(size=32, channels=3), torch.randn(4, 3, 32, 32)
    assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-5)


def test_a_stride_that_the_levels_overshoot_is_an_error():
    with pytest.raises(ValueError, match="stride 2 must be a multiple of 4"):
        ConvEncoder(multipliers=(1, 2, 2), stride=2)
    with pytest.raises(ValueError, match="multipliers: give at least one"):
        ConvEncoder(multipliers=())


@pytest.mark.parametrize(
    ("width", "size", "constant"), [(8, 8, True), (16, 8, True), (24, 8, False), (32, 8, False), (8, 16, False)]
)
def test_a_norm_of_one_value_is_told_before_a_run(tmp_path, width, size, constant):
    encoder = ConvEncoder(width=width, stride=8, out_channels=8)
    torch.manual_seed(0)
    with torch.no_grad():
        features = encoder.build(size=size, channels=3)(torch.rand(4, 3, size, size))
    assert (float(features.std(0).max()) < 1e-4) == constant
    over = {"type": "conv", "width": width, "multipliers": [1, 2], "stride": 8}
    recipe = load(tiny.write(tmp_path, autoencoder__encoder=over, data__size=size, losses__adversarial__weight=0.0))
    found = list(checks.problems(recipe["kl"], recipe["kl"].stages()))
    assert len(found) == constant
    for problem in found:
        assert re.match(
            f"autoencoder: encoder: one feature for an image of 8 pixels .stride 8., and {2 * width} channels", problem
        )
        assert problem.endswith("more than 32 channels there, or a stride below 8")
