"""Weights of timm's models, from files and from the hub: they are fitted, or refused with the fix."""

import inspect
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_vit import tiny_vit

from dmvae.encoders.timm import TimmEncoder, load_weights


def test_timm_reads_weights_alone_from_the_version_on_that_is_asked_for():
    """1.0.25's load_checkpoint unpickles whatever a file holds."""
    asked = re.search(r'"timm>=([\d.]+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert tuple(map(int, asked[1].split("."))) >= (1, 0, 26)
    assert inspect.signature(timm.models.load_checkpoint).parameters["weights_only"].default is True


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_are_fitted_to_the_patch_and_image_size(tmp_path, suffix):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    path = tmp_path / f"weights.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(source.state_dict(), path)
    encoder = tiny_vit(checkpoint=path).build(size=16, channels=3, pretrained=True)
    mlp = "blocks.0.mlp.fc1.weight"
    assert torch.equal(encoder.model.state_dict()[mlp], source.state_dict()[mlp])
    assert encoder.model.pos_embed.shape == (1, 17, 192)
    unread = tiny_vit(checkpoint=path).build(size=16, channels=3)
    assert not torch.equal(unread.model.state_dict()[mlp], source.state_dict()[mlp])


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        tiny_vit(checkpoint=tmp_path / "none.pth").build(size=16, channels=3, pretrained=True)


def test_weights_that_cannot_be_had_are_an_error_that_names_the_fix(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained, **kwargs):
        if pretrained:
            raise OSError("network is unreachable")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*unreachable.*HF_HUB_CACHE.*checkpoint"):
        tiny_vit().build(size=16, channels=3, pretrained=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, r"lacks \d+ tensors .*begin with backbone"),
        (lambda s: {k: v for k, v in s.items() if "blocks.0.mlp" not in k}, r"lacks 4 tensors .*blocks\.0\.mlp"),
        (lambda s: s | {"norm.weight": torch.ones(7)}, "not the weights of this VisionTransformer"),
    ],
)
def test_weights_that_leave_a_part_random_are_an_error(tmp_path, edit, message):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    save_file(edit(source.state_dict()), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        tiny_vit(checkpoint=tmp_path / "weights.safetensors").build(size=16, channels=3, pretrained=True)


def test_a_damaged_checkpoint_is_an_error_in_one_line(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"cut\.pth: damaged"):
        tiny_vit(checkpoint=tmp_path / "cut.pth").build(size=16, channels=3, pretrained=True)


def vit(**changes):
    return timm.create_model("vit_tiny_patch16_224", patch_size=4, img_size=16, num_classes=5, **changes)


def test_weights_of_more_than_the_model_has_are_another_model_s(tmp_path):
    """Without them its features would be others; a head is not of the features, nor is what only a training had."""
    beside = {"mask_token": torch.zeros(1, 1, 192), "decoder_blocks.0.weight": torch.zeros(3)}
    path = tmp_path / "deep.safetensors"
    save_file(vit(depth=2).state_dict() | beside, path)
    with pytest.raises(ValueError, match=r"has 12 tensors that this VisionTransformer lacks, blocks\.1\..*depth: N"):
        load_weights(vit(depth=1), path)
    first = TimmEncoder(model="vit_tiny_patch16_224", patch_size=4, kwargs={"depth": 1}, checkpoint=path)
    assert first.build(size=16, channels=3, pretrained=True).channels == 192, "its first block, as asked for"
    save_file(vit(depth=1, init_values=1e-5).state_dict() | beside, path)
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma"):
        first.build(size=16, channels=3, pretrained=True)


def test_heads_of_convolutional_networks_may_be_there(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), path)
    assert TimmEncoder(model="resnet10t", checkpoint=path).build(size=32, channels=3, pretrained=True).stride == 32
