"""Recipes with a finished tokenizer: every stage after it runs, and what such a recipe may not say."""

import json
from pathlib import Path

import foreign
import pytest
import torch

import tiny
from dmvae.commands.plan import Machine, print_plan
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.recipe import load
from dmvae.tokenizers.adapted import AdaptedTokenizer, load_tokenizer

FINISHED = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))


def write(folder: Path, **over) -> Path:
    return tiny.write(folder, **(FINISHED | over))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoencoderKL", "identity", "dmvae"])
def test_every_stage_after_the_tokenizer_runs(kind, tmp_path):
    model = tiny.DIT | {"patch_size": 3}
    path = write(tmp_path, pretrained=foreign.source(kind, tmp_path), generator__model=model)
    jobs = tiny.run(path)
    assert [job.stage.name for job in jobs] == ["latents", "generator", "sample", "evaluate"]
    run_dir = tmp_path / "run/main"
    tokenizer = load_tokenizer(run_dir / "latents/autoencoder")
    assert type(tokenizer) is AdaptedTokenizer
    assert torch.equal(tokenizer.latent_mean, LatentSet(run_dir / "latents/latents").mean)
    metrics = json.loads((run_dir / "evaluate/metrics.json").read_text())
    assert {"psnr", "rfd", "gfd", "generator_loss"} <= set(metrics)
    assert (metrics["psnr"] > 50) == (kind == "identity")


def states(path: Path) -> set[str]:
    return {job.state for job in plan(load(path), path.parent / "run")}


def test_other_weights_redo_the_latents(tmp_path):
    path = write(tmp_path, pretrained=foreign.source("dmvae", tmp_path))
    tiny.run(path, until="latents")
    assert plan(load(path), tmp_path / "run")[0].state == "finished"
    model = foreign.own_model()
    torch.nn.init.zeros_(model.bottleneck[0].bias)
    model.save_pretrained(tmp_path / "model")
    assert states(path) == {"new"}


def test_a_dry_run_tells_the_latents(tmp_path, capsys):
    print_plan(load(write(tmp_path, pretrained=foreign.source("AutoencoderKL", tmp_path))), Machine.here())
    assert "latents 4x6x6 (stride 2)" in capsys.readouterr().out


def test_a_recipe_has_one_tokenizer(tmp_path):
    identity = {"type": "identity"}
    with pytest.raises(ValueError, match="set encoder to null, or remove `pretrained`"):
        load(write(tmp_path, pretrained=identity, tokenizer={}, encoder={}))
    for name in ("tokenizer", "autoencoder"):
        with pytest.raises(ValueError, match=f"{name}: this field is required, unless `pretrained`"):
            load(tiny.write(tmp_path, **{name: None}))
    with pytest.raises(ValueError, match="did you mean 'diffusers'"):
        load(write(tmp_path, pretrained={"type": "difusers"}))
    with pytest.raises(ValueError, match="image size 12 is not a multiple of the patch 5"):
        tiny.run(write(tmp_path, pretrained={"type": "identity", "patch": 5}))
