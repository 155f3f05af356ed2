"""What holds for encoders of every kind, those of plugins too."""

import pytest
import torch
from tiny_vit import tiny_vit

from dmvae import config as configs
from dmvae.encoders import EncoderConfig, load_public
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
