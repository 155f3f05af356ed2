"""Snapshots: networks of earlier steps are kept, and sampled from."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import pipeline
from dmvae.recipe import load

KEPT = {"run__keep_every": 3, "generator__learning_rate": 1e-2, "generator__ema": 0.5}


@pytest.mark.slow
def test_samples_come_from_the_step_that_is_asked_for(tmp_path):
    tiny.run(tiny.write(tmp_path, **KEPT), "kl", until="generator")
    (generator,) = tmp_path.glob("run/stages/generator-*")
    early, late, final = (
        load_file(generator / folder / "generator/diffusion_pytorch_model.safetensors")
        for folder in ("snapshots/step-00000003", "snapshots/step-00000006", ".")
    )
    assert all(torch.equal(late[name], final[name]) for name in final)
    assert not all(torch.equal(early[name], final[name]) for name in final)
    found = {}
    for step in (None, 3, 6):
        recipes = {"kl": load(tiny.write(tmp_path, **KEPT, sample__snapshot=step))["kl"]}
        jobs = pipeline.run(recipes, tmp_path / "run", "sample")
        folder = next(job.folder for job in jobs if job.stage.name == "sample")
        found[step] = load_file(folder / "guidance-1/samples-00000.safetensors")["images"]
    assert torch.equal(found[None], found[6])
    assert not torch.equal(found[3], found[6])
    recipes = {"kl": load(tiny.write(tmp_path, **KEPT, sample__snapshot=4))["kl"]}
    with pytest.raises(ValueError, match="of step 4 was not kept, there are those of 3, 6; see run"):
        pipeline.run(recipes, tmp_path / "run", "sample")
