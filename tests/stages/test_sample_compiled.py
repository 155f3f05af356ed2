"""With `run.compile`, samples come from a compiled generator, and are the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.inputs import Inputs
from dmvae.stages import sample
from dmvae.training.preparing import compile_networks


@pytest.mark.slow
def test_the_generator_is_compiled_and_draws_the_same_images(tmp_path, monkeypatch):
    jobs = tiny.run(tiny.write(tmp_path, run__precision="float32"), "kl", until="generator")
    job = next(job for job in jobs if job.stage.name == "sample")
    compiled = []

    def compiling(networks):
        compile_networks(networks, backend="aot_eager")
        compiled.extend(m for m in networks.modules() if m._compiled_call_impl)

    monkeypatch.setattr(sample, "compile_networks", compiling)
    images = {}
    for compiles in (False, True):
        recipe = replace(job.recipe, run=replace(job.recipe.run, compile=compiles))
        out = tmp_path / str(compiles)
        sample.SampleStage(recipe.sample, Inputs(recipe, "kl", out, job.reads, torch.device("cpu"))).run()
        images[compiles] = load_file(out / "guidance-1/samples-00000.safetensors")["images"]
        assert bool(compiled) == compiles
    assert (images[True].int() - images[False].int()).abs().max() <= 1
