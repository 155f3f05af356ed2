"""The discriminator on a frozen encoder's features: what it sees, what learns, artifacts, in a run, what is refused."""

import json
from dataclasses import dataclass

import pytest
import torch
from diffusers.configuration_utils import register_to_config

import tiny
from dmvae import config as configs
from dmvae.encoders import levels
from dmvae.encoders.effnet import EffNetEncoder
from dmvae.encoders.timm import TimmEncoder
from dmvae.losses.adversarial import hinge_discriminator
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.discriminators.features import FeatureGAN
from dmvae.models.discriminator import Discriminator, PatchGAN
from dmvae.registry import register
from dmvae.runtime.random import Random
from dmvae.stages.decoder import DecoderTrainingStage

EFFNET = {"type": "effnet", "enlarge": 2, "reduce": 32}
VIT = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "pretrained": False, "kwargs": {"depth": 8}}
ADVERSARY = {"type": "features", "encoder": EFFNET, "width": 8, "start": 0.5}


def images(n=2, size=16):
    return Random(0).uniform(n, 3, size, size) * 2 - 1


def build(**over) -> FeatureGAN:
    config = configs.read(AdversarialConfig, ADVERSARY | over, "losses.adversarial")
    return config.build(size=16, channels=3, pretrained=True)


def test_what_names_no_type_is_a_patchgan():
    assert configs.read(AdversarialConfig, {"width": 4}, "losses.adversarial").network is PatchGAN


def test_the_encoder_has_its_public_weights_and_learns_nothing():
    network, x = build(), images()
    public = EffNetEncoder(enlarge=2, reduce=32).build(size=16, channels=3, pretrained=True)
    assert all(torch.equal(p, q) for p, q in zip(network.frozen.parameters(), public.parameters(), strict=True))
    network.train().requires_grad_(True)
    assert not network.frozen.training
    loss = hinge_discriminator(network(x), network(-x))
    loss.backward()
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert moved == {"heads"}
    assert all(p.grad is not None for p in network.heads.parameters())


def test_frozen_it_passes_a_gradient_to_the_image_and_keeps_none():
    network, x = build().eval().requires_grad_(False), images().requires_grad_()
    (gradient,) = torch.autograd.grad(-network(x).mean(), x)
    assert gradient.abs().max() > 0
    assert all(p.grad is None for p in network.parameters())


def test_each_level_answers_and_counts_as_much_as_any_other():
    network, x = build(), images()
    with torch.no_grad():
        for i, head in enumerate(network.heads):
            head[-1] = torch.nn.Conv2d(8, 1, 1)
            head[-1].weight.zero_()
            head[-1].bias.fill_(i)
        found = network.eval()(x)
    assert found.shape == (2, 5, 16, 16)  # the finest features, of an image enlarged to 32 pixels
    assert found.mean(dim=(0, 2, 3)).tolist() == [0, 1, 2, 3, 4]


def test_the_scale_of_a_level_says_nothing_and_each_place_weighs_alike(monkeypatch):
    from dmvae.losses.discriminators import features as module

    network, x = build().eval(), images()
    before = network(x)
    monkeypatch.setattr(module, "levels", lambda frozen, x: [10 * level for level in levels(frozen, x)])
    torch.testing.assert_close(network(x), before)
    monkeypatch.undo()
    coarse = [head(level) for head, level in zip(network.heads, _units(network, x), strict=True)]
    for found, own in zip(before.unbind(1), coarse, strict=True):
        times = found.shape[-1] // own.shape[-1]
        torch.testing.assert_close(found, own[:, 0].repeat_interleave(times, 1).repeat_interleave(times, 2))


def _units(network, x):
    found = [level.float() for level in levels(network.frozen, x)]
    return [level / level.norm(dim=1, keepdim=True) * level.shape[1] ** 0.5 for level in found]


def test_levels_of_a_transformer_are_at_the_quarters_of_its_depth():
    encoder = configs.read(TimmEncoder, {k: v for k, v in VIT.items() if k != "type"}, "encoder")
    encoder = encoder.build(size=16, channels=3).eval()
    seen = {}
    for i, block in enumerate(encoder.model.blocks):
        block.register_forward_hook(lambda module, given, out, i=i: seen.__setitem__(i, out))
    with torch.no_grad():
        found = levels(encoder, images())
    assert len(found) == 4
    for level, i in zip(found, (1, 3, 5, 7), strict=True):
        assert level.shape == (2, 192, 4, 4)
        assert torch.equal(level.flatten(2).transpose(1, 2), seen[i][:, 1:])


def test_levels_of_a_convolutional_network_end_with_its_features_and_others_have_these_alone():
    encoder = EffNetEncoder(enlarge=2, reduce=32).build(size=16, channels=3).eval()
    with torch.no_grad():
        found = levels(encoder, images())
        assert [level.shape[1] for level in found] == [16, 24, 40, 112, 320]
        assert torch.equal(found[-1], encoder(images()))
        plain = torch.nn.Conv2d(3, 4, 2, 2)
        assert [level.shape for level in levels(plain, images())] == [(2, 4, 8, 8)]


def test_saved_and_loaded_it_answers_the_same(tmp_path):
    network, x = build().train(), images()
    network(x)  # a step of the power iteration, which the artifact holds too
    network.eval().save_pretrained(tmp_path)
    assert torch.allclose(FeatureGAN.from_pretrained(tmp_path)(x), network(x), atol=1e-5)  # another memory layout


class Half(Discriminator):
    frozen_parts = ("body",)

    @register_to_config
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
        self.head = torch.nn.Conv2d(4, 1, 1)

    def forward(self, x):
        return self.head(self.body(x))


def test_parts_that_a_discriminator_names_stay_as_they_are(tmp_path):
    Half().save_pretrained(tmp_path)
    for network in (Half(), Half.from_pretrained(tmp_path)):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.train().requires_grad_(True)
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
        network(images()).mean().backward()
        optimizer.step()
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {"head.weight", "head.bias"}
        assert not any(p.requires_grad for p in network.requires_grad_(False).parameters())


@pytest.mark.slow
def test_a_run_trains_it_through_its_stages_and_a_cut_one_ends_the_same(tmp_path):
    found = {}
    adversary = ADVERSARY | {"encoder": EFFNET | {"enlarge": 1}, "layers": 0, "start": 0.0}
    steps = {"tokenizer__steps": 1, "reference__steps": 1, "matching__steps": 1, "decoder__steps": 2}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        over = {"variants": {"x": {}}, "losses__adversarial": adversary, "losses__perceptual": None}
        path = tiny.begin(tiny.write(tmp_path / name, run__save_every=1, **over, **steps), "matching")
        if name == "cut":
            with tiny.cut(DecoderTrainingStage, 1):
                tiny.run(path, only="decoder")
            assert list(path.parent.glob("run/stages/decoder-*/checkpoints/step-00000001"))
        tiny.run(path, only="decoder")
        found[name] = tiny.weights(tmp_path / name / "run")
    assert found["whole"].keys() == found["cut"].keys()
    assert all(torch.equal(value, found["cut"][key]) for key, value in found["whole"].items())
    folders = [*(tmp_path / "whole/run/x").glob("*/discriminator/config.json")]
    assert {json.loads(file.read_text())["_class_name"] for file in folders} == {"FeatureGAN"}
    assert len(folders) == 3


def test_an_encoder_that_cannot_take_images_of_that_size_is_refused_before_anything_runs(tmp_path):
    vit = {"type": "timm", "model": "vit_small_patch14_dinov2.lvd142m", "kwargs": {"depth": 1}}
    path = tiny.write(tmp_path, losses__adversarial=ADVERSARY | {"encoder": vit}, losses__perceptual=None)
    with pytest.raises(ValueError, match=r"losses\.adversarial: encoder: 'timm' cannot be run on images of 12 pix"):
        tiny.run(path)
    assert not (tmp_path / "run/matched").exists()


class Wrong(Half):
    def forward(self, x):
        return ANSWERS[kind](super().forward(x))


kind = ""
ANSWERS = {
    "a pair": lambda x: (x, x),
    "empty": lambda x: x[:0],
    "whole": lambda x: x.long(),
    "narrow": lambda x: x @ torch.empty(3, 1, device=x.device),
}


@register("wrong_discriminator")
@dataclass(frozen=True, kw_only=True)
class WrongConfig(AdversarialConfig):
    network = Wrong

    def build(self, *, size, channels, pretrained=False):
        return Wrong() if kind else None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "build returned a NoneType, no Wrong"),
        ("a pair", "returns tuple of 2 for two images; give their logits"),
        ("empty", r"returns torch.float32 \[0, 1, 12, 12\] for two images; give their logits"),
        ("whole", "returns torch.int64 .*give their logits"),
        ("narrow", r"cannot be run on images \[n, 3, 12, 12\]: "),
    ],
)
def test_what_is_no_discriminator_is_told_before_anything_runs(tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(f"{__name__}.kind", answer)
    path = tiny.write(tmp_path, losses__adversarial={"type": "wrong_discriminator"})
    with pytest.raises(ValueError, match=f"losses.adversarial: 'wrong_discriminator'.* {message}"):
        tiny.run(path)
    assert not list(tmp_path.glob("run/stages/*"))


def test_a_random_encoder_is_refused_before_anything_runs(tmp_path):
    path = tiny.write(tmp_path, losses__adversarial=ADVERSARY | {"encoder": VIT})
    with pytest.raises(ValueError, match=r"losses\.adversarial: encoder: 'timm' would be random; give one with public"):
        tiny.run(path)
    assert not (tmp_path / "run/matched").exists()
