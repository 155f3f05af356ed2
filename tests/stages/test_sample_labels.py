"""Which classes samples are of: as many of each, or drawn."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.inputs import Inputs
from dmvae.runtime import distributed
from dmvae.stages import sample
from dmvae.stages.sample import SampleConfig, drawn_labels


def test_random_labels_are_a_function_of_the_seed_and_all_as_likely():
    config = SampleConfig(count=9000, labels="random")
    labels = drawn_labels(config, 0, 9)
    assert torch.equal(labels, drawn_labels(config, 0, 9))
    assert not torch.equal(labels, drawn_labels(config, 1, 9))
    counts = labels.bincount()
    assert len(counts) == 9
    assert 2 < (counts - 1000).square().sum() / 1000 < 25, "chi squared of 8 degrees of freedom"
    assert torch.equal(drawn_labels(SampleConfig(count=8), 0, 3), torch.arange(8) % 3)


def test_fewer_images_than_classes_are_of_evenly_spaced_classes():
    """The first of ImageNet's classes are all animals."""
    assert drawn_labels(SampleConfig(count=4), 0, 10).tolist() == [0, 2, 5, 7]
    assert drawn_labels(SampleConfig(count=9), 0, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert drawn_labels(SampleConfig(count=600), 0, 1000).diff().unique().tolist() == [1, 2]
    assert torch.equal(drawn_labels(SampleConfig(count=10), 0, 10), torch.arange(10))


@pytest.mark.slow
def test_neither_batches_nor_ranks_nor_a_stop_change_random_labels(tmp_path, monkeypatch):
    jobs = tiny.run(tiny.write(tmp_path, sample__count=24, sample__labels="random"), "kl", until="generator")
    job = next(job for job in jobs if job.stage.name == "sample")

    def drawn(name, batch_size, ranks=1):
        inputs = Inputs(job.recipe, "kl", tmp_path / name, job.reads, torch.device("cpu"))
        for rank in range(ranks):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "world_size", lambda: ranks)
            sample.SampleStage(replace(job.recipe.sample, batch_size=batch_size), inputs).run()
        parts = [load_file(file) for file in sorted((tmp_path / name / "guidance-1").iterdir())]
        return [torch.cat([part[name] for part in parts]) for name in ("labels", "seeds", "images")]

    whole = drawn("whole", 24)
    assert sorted(whole[0].unique().tolist()) == [0, 1, 2]
    assert not torch.equal(whole[0], torch.arange(24) % 3)
    for name, batch_size, ranks in (("batches", 7, 1), ("ranks", 7, 2)):
        labels, seeds, images = drawn(name, batch_size, ranks)
        assert torch.equal(labels, whole[0])
        assert torch.equal(seeds, whole[1])
        assert (images.int() - whole[2].int()).abs().max() <= 2
    (tmp_path / "batches/guidance-1/samples-00001.safetensors").unlink()
    assert torch.equal(drawn("batches", 7)[0], whole[0])
