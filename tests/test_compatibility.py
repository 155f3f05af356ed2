"""What version 0.1 wrote is read, and what it finished stays finished."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from dmvae import Autoencoder
from dmvae import config as configs
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Blueprint
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.sections import AutoencoderShape
from dmvae.stages.matching import MatchingStage, MatchingTraining
from dmvae.tokenizers.adapted import adapt, load_tokenizer
from dmvae.tokenizers.dmvae import DmvaeTokenizer
from dmvae.training.trainer import LATER

# The stages of the tiny recipe, which is written with version 0.1's keys, as commit 96a0fb0 addressed them.
FOLDERS = {
    "matched/encoder": "encoder-11c9565e229b",
    "matched/tokenizer": "tokenizer-8bc01fa5c32a",
    "matched/reference": "reference-f7ad7b086892",
    "matched/matching": "matching-d8615c1b258f",
    "matched/decoder": "decoder-e1c62429b63c",
    "matched/latents": "latents-de6e9df7e3d3",
    "matched/generator": "generator-57b97c0c84f1",
    "matched/sample": "sample-090521d97ee8",
    "matched/evaluate": "evaluate-43693cad4a22",
    "kl/tokenizer": "tokenizer-a4b2639541db",
    "kl/latents": "latents-09f0c3254c48",
    "kl/generator": "generator-25a551bf1d49",
    "kl/sample": "sample-a55fb41d44f7",
    "kl/evaluate": "evaluate-e13013b9e55d",
}
SHAPE = {"autoencoder__encoder__blocks": 1, "autoencoder__decoder_blocks": 1}
"""The tokenizer of that run, where the tests' is another by now."""
OLD = {
    "encoder": {"type": "conv", "width": 8, "stride": 4, "out_channels": 8},
    "latent_channels": 4,
    "bottleneck_width": 8,
    "decoder_width": 8,
    "decoder_multipliers": [1, 2],
    "decoder_blocks": 1,
    "decoder_attention": False,
}


def test_stages_that_version_0_1_finished_are_found(tmp_path):
    for name in FOLDERS.values():
        (tmp_path / "run/stages" / name).mkdir(parents=True)
    jobs = plan(load(tiny.write(tmp_path, **SHAPE)), tmp_path / "run")
    assert {f"{job.variant}/{job.stage.name}": job.folder.name for job in jobs} == FOLDERS


def test_what_it_did_not_run_has_the_same_address_but_for_a_generator_behind_a_decoder(tmp_path):
    """Which no longer depends on that decoder."""
    jobs = plan(load(tiny.write(tmp_path, **SHAPE)), Path("x"))
    found = {f"{job.variant}/{job.stage.name}": job.folder.name for job in jobs}
    others = {name for name in FOLDERS if found[name] != FOLDERS[name]}
    assert others == {f"matched/{stage}" for stage in ("generator", "sample", "evaluate")}


def test_the_new_spelling_of_the_same_has_the_same_address(tmp_path):
    decoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "attention": False}
    old = tiny.RECIPE["autoencoder"]
    new = {key: value for key, value in old.items() if not key.startswith("decoder_")} | {"decoder": decoder}
    shapes = [configs.read(AutoencoderShape, dict(values)) for values in (old, new)]
    assert shapes[0] == shapes[1]
    assert configs.identity(shapes[0]) == configs.identity(shapes[1])
    assert "decoder_width" in configs.identity(shapes[1])
    assert configs.identity(configs.read(AutoencoderShape, new | {"decoder": decoder | {"width": 9}})) != (
        configs.identity(shapes[0])
    )


def test_both_spellings_at_once_are_refused():
    with pytest.raises(ValueError, match=r"autoencoder\.decoder and decoder_width: two ways to say the same"):
        configs.read(AutoencoderShape, OLD | {"decoder": {"type": "conv"}}, "autoencoder")


def test_an_artifact_of_version_0_1_loads(tmp_path):
    torch.manual_seed(0)
    model = Autoencoder.from_config(OLD | {"image_size": 16})
    assert model.config.decoder == {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": False}
    model.save_pretrained(tmp_path)
    old = OLD | {"_class_name": "Autoencoder", "image_size": 16, "in_channels": 3, "variational": False}
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = Autoencoder.from_pretrained(tmp_path).eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(again(x).sample, model.eval()(x).sample)
    adapted = adapt(DmvaeTokenizer(path=str(tmp_path)), size=16, channels=3, pretrained=True).eval()
    adapted.save_pretrained(tmp_path / "adapted")
    assert torch.equal(load_tokenizer(tmp_path / "adapted").eval()(x).sample, adapted(x).sample)


def test_a_field_that_came_later_counts_where_it_is_used():
    assert "type" not in configs.identity(FlowModelConfig())
    recipe = tiny.RECIPE["matching"]
    plain = configs.identity(configs.read(MatchingTraining, dict(recipe)))
    assert "noise" not in plain
    assert configs.identity(configs.read(MatchingTraining, recipe | {"noise": "reference"}))["noise"] == "reference"


def test_a_checkpoint_of_version_0_1_has_all_that_a_plain_matching_asks_for(tmp_path):
    """What is remembered of the distance came later, and is asked of checkpoints that have it alone."""
    recipe = load(tiny.write(tmp_path))["matched"]
    reads = {stage: recipe.section(stage) for stage in MatchingStage.reads}
    networks = MatchingStage(recipe.section(MatchingStage), Blueprint(recipe, "", reads, 3)).build()
    later = networks.state().keys() - networks.saved().keys()
    assert {f"networks.{name}" for name in later} == {"networks.approach"} <= set(LATER)
