"""What holds for encoders of every kind, those of plugins too."""

import pytest
import torch
from tiny_vit import tiny_vit

from dmvae import config as configs
from dmvae.encoders import Encoder, EncoderConfig, load_public, require_features
from dmvae.encoders.conv import ConvEncoder
from dmvae.encoders.effnet import EffNetEncoder
from dmvae.registry import find, names


def test_all_are_registered_and_survive_being_written_down():
    assert {"conv", "effnet", "timm"} <= set(names(EncoderConfig))
    for encoder in (ConvEncoder(width=32, multipliers=(1, 2, 4)), tiny_vit(), EffNetEncoder(enlarge=4)):
        assert find(EncoderConfig, encoder.type) is type(encoder)
        assert configs.read(EncoderConfig, configs.plain(encoder)) == encoder


@pytest.mark.parametrize(("weights", "says"), [("random", False), ("random", True), ("public", False)])
def test_an_encoder_of_a_plugin_that_is_random_and_does_not_say_so_is_told(weights, says):
    class Mine(EncoderConfig):
        type, starts_random = "mine", says

        def build(self, *, size, channels, pretrained=False):
            net = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.BatchNorm2d(4))
            if pretrained and weights == "public":
                net[0].load_state_dict({name: torch.ones_like(w) for name, w in net[0].state_dict().items()})
            return net

    net = Mine().build(size=8, channels=3)
    before = torch.get_rng_state()
    if weights == "random" and not says:
        with pytest.raises(ValueError, match=r"encoder 'mine': its weights are others each time .* starts_random"):
            load_public(net, Mine(), size=8, channels=3)
        return
    load_public(net, Mine(), size=8, channels=3)
    if weights == "public":
        assert net[0].weight.eq(1).all()
    Mine().build(size=8, channels=3)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    for _ in range(2):
        Mine().build(size=8, channels=3)
    assert torch.equal(torch.get_rng_state(), after), "the second look draws nothing that others would see"


class Halved(Encoder):
    """It says that a feature is of 4 pixels; of `stride` pixels it is."""

    def __init__(self, stride: int, by_value: bool = False) -> None:
        super().__init__()
        self.channels, self.stride, self.by_value = 8, 4, by_value
        self.net = torch.nn.Conv2d(3, 8, stride, stride=stride)

    def forward(self, images):
        return self.net(images / images.max().item() if self.by_value else images)


def test_features_of_another_grid_than_the_stride_says_are_told():
    with torch.device("meta"):
        with pytest.raises(ValueError, match=r"here: this encoder gives \[2, 8, 2, 2\] .* say \[2, 8, 4, 4\]"):
            require_features(Halved(8), "here", size=16, channels=3)
        require_features(Halved(4), "here", size=16, channels=3)
        require_features(Halved(8, by_value=True), "here", size=16, channels=3)  # which meta tensors cannot tell
    require_features(Halved(8), "here", size=16, channels=3)  # a training: its images tell
