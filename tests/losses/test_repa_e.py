"""Alignment through a flow model's tokens: what it is at its best, what it does not see, what moves what."""

import json

import pytest
import torch

from dmvae import config as configs
from dmvae.generators.flow import FlowModelConfig
from dmvae.generators.sit import SiTConfig
from dmvae.losses.alignment import AlignmentConfig
from dmvae.losses.alignment.repa_e import FlowProjection, RepaE
from dmvae.models.dit import LightningDiT
from dmvae.runtime.random import Random
from draws import normal

SHAPE, CLASSES, WIDTH = (4, 4, 4), 3, 6
LABELS = torch.tensor([0, 1, 2, 1, 0])
MODEL = FlowModelConfig(width=16, depth=4, heads=2)


def projection_of(config):
    torch.manual_seed(0)
    projection = config.projection(SHAPE, CLASSES, WIDTH)
    for parameter in projection.parameters():  # a flow model starts with zeros, which let no gradient through
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return projection


def found(config, projection, z, features):
    return config.losses(projection, z, LABELS, features, Random(3))


Z, FEATURES = normal(5, *SHAPE), normal(5, WIDTH, 4, 4, seed=1)
CONFIG = RepaE(model=MODEL, width=8, depth=2)
OF_SIT = RepaE(model=SiTConfig(width=16, depth=4, heads=2), width=8, depth=2)


def test_it_is_zero_where_tokens_point_to_the_features_and_two_where_they_point_away():
    projection = projection_of(CONFIG)
    last = projection.projector.layers[-1]
    torch.nn.init.zeros_(last.weight)
    feature = last.bias.detach().view(1, WIDTH, 1, 1).expand(5, WIDTH, 4, 4)
    assert found(CONFIG, projection, Z, 7 * feature)[0].item() == pytest.approx(0, abs=1e-6)
    assert found(CONFIG, projection, Z, -feature)[0].item() == pytest.approx(2, abs=1e-6)


def test_tokens_and_features_meet_at_their_places():
    """Where a projected token changes with its place, a feature map that is turned no longer fits."""
    projection = projection_of(CONFIG)
    with torch.no_grad():
        rng = Random(3)
        labels = torch.where(rng.uniform(5) < 0.1, CLASSES, LABELS)
        _, tokens = projection(Z, labels, rng)
    assert found(CONFIG, projection, Z, tokens)[0].item() == pytest.approx(0, abs=1e-5)
    assert found(CONFIG, projection, Z, tokens.transpose(2, 3))[0] > 1e-3


def test_mean_and_spread_of_the_latents_do_not_count():
    projection = projection_of(CONFIG)
    here, there = (found(CONFIG, projection, z, FEATURES) for z in (Z, 30 * Z + 5))
    assert [x.item() for x in here[:2]] == pytest.approx([x.item() for x in there[:2]], rel=1e-3)


def test_the_alignment_sees_the_first_blocks_alone_and_the_flow_all():
    projection = projection_of(CONFIG)
    alignment, own, log = found(CONFIG, projection, Z, FEATURES)
    assert own.item() == pytest.approx((log["alignment/flow"] + 0.5 * alignment).item())
    with torch.no_grad():
        projection.flow.blocks[2].mlp.w3.weight.mul_(3)
    after = found(CONFIG, projection, Z, FEATURES)
    assert after[0] == alignment
    assert after[2]["alignment/flow"] != log["alignment/flow"]
    with torch.no_grad():
        projection.flow.blocks[1].mlp.w3.weight.mul_(3)
    assert found(CONFIG, projection, Z, FEATURES)[0] != alignment


@pytest.mark.parametrize("config", [CONFIG, OF_SIT], ids=["flow", "sit"])
def test_latents_follow_the_alignment_and_the_flow_model_both(config):
    projection, z = projection_of(config), Z.clone().requires_grad_()
    alignment, own, _ = found(config, projection, z, FEATURES)
    (pull,) = torch.autograd.grad(alignment, z, retain_graph=True)
    assert pull.norm() > 0
    # what a batch norm takes away, nothing can ask for
    assert pull.sum(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (pull * Z).sum(dim=(0, 2, 3)).abs().max() < 1e-4
    trained = [p for p in projection.parameters() if p.requires_grad]
    assert all(gradient.norm() > 0 for gradient in torch.autograd.grad(own, trained))


@pytest.mark.parametrize(("blocks", "third"), [(1, 1), (4, 2), (12, 4), (24, 8), (28, 10)])
def test_a_third_of_the_blocks_is_meant_where_none_is_said(blocks, third):
    config = RepaE(model=FlowModelConfig(width=16, depth=blocks, heads=2), width=8)
    assert config.projection(SHAPE, CLASSES, WIDTH).config.depth == third


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"alignment\.depth: 5, and the flow model has 4 blocks; give at most those"):
        RepaE(model=MODEL, depth=5).projection(SHAPE, CLASSES, WIDTH)


def test_patches_of_latents_meet_features_of_their_stride():
    config = configs.read(
        AlignmentConfig,
        {"type": "repa_e", "width": 8, "model": {"width": 16, "depth": 2, "heads": 2, "patch_size": 2}},
    )
    assert config.patch == 2
    alignment, _, _ = found(config, projection_of(config), Z, normal(5, WIDTH, 2, 2))
    assert 0 <= alignment <= 2


@pytest.mark.parametrize("config", [CONFIG, OF_SIT], ids=["flow", "sit"])
def test_its_weights_come_back(tmp_path, config):
    projection = projection_of(config)
    projection.save_pretrained(tmp_path)
    again = type(projection).from_pretrained(tmp_path)
    assert type(again.flow) is config.model.network
    assert found(config, projection, Z, FEATURES)[:2] == found(config, again.train(), Z, FEATURES)[:2]


def test_a_folder_of_an_earlier_version_names_no_class_and_holds_a_lightningdit(tmp_path):
    projection_of(CONFIG).save_pretrained(tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    del held["kind"]
    (tmp_path / "config.json").write_text(json.dumps(held))
    assert type(FlowProjection.from_pretrained(tmp_path).flow) is LightningDiT
