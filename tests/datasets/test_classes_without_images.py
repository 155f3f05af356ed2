"""Classes that no training image has, as in a subset of a larger data set: they are told, and none is sampled."""

from types import SimpleNamespace

import pytest
import torch

import packed
import tiny
from dmvae import DMVAEPipeline, cli
from dmvae.commands.generated import Generated
from dmvae.commands.serve import read
from dmvae.datasets import open_dataset
from dmvae.jobs import jobs_of
from dmvae.pipeline import about_data
from dmvae.recipe import load
from dmvae.report.run import Run
from dmvae.runtime.hashing import digest
from dmvae.serve import views
from dmvae.serve.folder import Networks
from dmvae.stages.sample import SampleConfig

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A recipe on parquet files of bees and dogs alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 40), ("val", 24)):
        labels = packed.pa.array([1 + 2 * (i % 2) for i in range(count)])
        columns = {"image": packed.images(range(count)), "label": labels}
        packed.parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", columns, packed.features(NAMES))
    data = {"type": "huggingface", "root": str(tmp_path / "data"), "size": 12}
    return tiny.write(tmp_path, data=data)


def test_they_are_told(path):
    recipe = load(path)["kl"]
    told = "of 5 classes, 3 of them without a training image (ant, cat, eel), of which none is sampled"
    assert told in about_data(recipe)
    assert open_dataset(recipe.data, "train").classes == NAMES


@pytest.mark.slow
def test_nothing_is_sampled_of_them(path, tmp_path, capsys):
    cli.main(["run", str(path), "--variant", "kl", "--sample.count", "10"])
    assert "without a training image (ant, cat, eel)" in " ".join(capsys.readouterr().out.split())
    run = Run(tmp_path / "run", jobs_of(tmp_path / "run"))
    assert run.sampled("kl", 1.0) == {1, 3}
    assert {label: len(images) for label, images in run.samples("kl", 1.0, [1, 3], 9).items()} == {1: 5, 3: 5}
    page = (tmp_path / "run/report.html").read_text()
    assert 'alt="kl: samples of bee"' in page
    assert 'alt="kl: samples of ant"' not in page
    assert "pipeline(class_labels=[1], " in (tmp_path / "run/kl/pipeline/README.md").read_text()


@pytest.mark.slow
def test_neither_a_pipeline_nor_the_page_draws_any_of_them(path, tmp_path):
    cli.main(["run", str(path), "--variant", "kl", "--sample.count", "4"])
    pipeline = DMVAEPipeline.from_pretrained(tmp_path / "run/kl/pipeline")
    assert pipeline.classes == {1: "bee", 3: "dog"}
    for label, told in (("ant", "no class is called 'ant'"), (2, "class 2 had no training image; .* are 1, 3")):
        with pytest.raises(ValueError, match=f"class_labels: {told}"):
            pipeline(label)
    drawn = Generated(pipeline, SampleConfig(count=4, steps=1), seed=0, device=torch.device("cpu"))
    assert drawn.labels.tolist() == [0, 1, 0, 1], "as folders of bees and dogs alone count them"
    assert drawn.facts["classes"] == digest(("bee", "dog"))
    asked = []
    drawn.pipeline = lambda class_labels, **_: (
        asked.extend(class_labels) or SimpleNamespace(images=torch.zeros(64, 3, 12, 12))
    )
    assert sum(len(batch) for batch in drawn.batches(range(4), 4)) == 4
    assert set(asked) == {1, 3}

    page = read(tmp_path / "run", Networks(torch.device("cpu")), data=True, trust=False)
    assert views.overview(page)["classes"] == [{"label": 1, "name": "bee"}, {"label": 3, "name": "dog"}]
    with pytest.raises(ValueError, match="class 2 is not one that kl's generator has learned; those are 1, 3"):
        views.samples(page, "kl", 2, count=1, guidance=1.0, steps=1, seed=0, sampler="euler")
