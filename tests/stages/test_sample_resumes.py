"""A stage `sample` that was stopped goes on after the files that are whole."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.inputs import Inputs
from dmvae.stages import sample


@pytest.mark.slow
def test_files_that_are_whole_are_kept_and_the_others_drawn(tmp_path, monkeypatch):
    jobs = tiny.run(tiny.write(tmp_path, sample__count=24, sample__batch_size=8), "kl", until="generator")
    job = next(job for job in jobs if job.stage.name == "sample")

    def drawn(out):
        sample.SampleStage(job.recipe.sample, Inputs(job.recipe, "kl", out, job.reads, torch.device("cpu"))).run()
        return sorted((out / "guidance-1").glob("samples-*.safetensors"))

    generate, calls = sample.generate, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*given)

    monkeypatch.setattr(sample, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path / "cut")
    (first,) = (tmp_path / "cut/guidance-1").iterdir()
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(sample, "generate", generate)
    cut, whole = drawn(tmp_path / "cut"), drawn(tmp_path / "whole")
    assert [file.name for file in cut] == [file.name for file in whole]
    assert first.stat().st_mtime_ns == before
    for a, b in zip(cut, whole, strict=True):
        one, other = load_file(a), load_file(b)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
