"""Classes that no training image has, as in a subset of a larger data set: they are told, and none is sampled."""

import io
from contextlib import redirect_stdout
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
from dmvae.report.pipelines import write_pipelines
from dmvae.report.run import Run
from dmvae.runtime.hashing import digest
from dmvae.serve import views
from dmvae.serve.folder import Networks
from dmvae.stages.sample import SampleConfig

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A recipe on parquet files of bees and dogs alone."""
    folder = tmp_path_factory.mktemp("bees_and_dogs")
    for split, count in (("train", 40), ("val", 24)):
        labels = packed.pa.array([1 + 2 * (i % 2) for i in range(count)])
        columns = {"image": packed.images(range(count)), "label": labels}
        packed.parquet(folder / f"data/{split}-00000-of-00001.parquet", columns, packed.features(NAMES))
    data = {"type": "huggingface", "root": str(folder / "data"), "size": 12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield tiny.write(folder, data=data)


@pytest.fixture(scope="module")
def finished(path):
    """Its run, and what the command has printed."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr("dmvae.report.training.lines", lambda *_, **__: "")
        cli.main(["run", str(path), "--variant", "kl", "--sample.count", "10"])
    return path.parent / "run", out.getvalue()


def test_they_are_told(path):
    recipe = load(path)["kl"]
    told = "of 5 classes, 3 of them without a training image (ant, cat, eel), of which none is sampled"
    assert told in about_data(recipe)
    assert open_dataset(recipe.data, "train").classes == NAMES


@pytest.mark.slow
def test_nothing_is_sampled_of_them(finished):
    folder, out = finished
    assert "without a training image (ant, cat, eel)" in " ".join(out.split())
    run = Run(folder, jobs_of(folder))
    assert run.sampled("kl", 1.0) == {1, 3}
    assert {label: len(images) for label, images in run.samples("kl", 1.0, [1, 3], 9).items()} == {1: 5, 3: 5}
    page = (folder / "report.html").read_text()
    assert 'alt="kl: samples of bee"' in page
    assert 'alt="kl: samples of ant"' not in page
    card = folder / "kl/pipeline/README.md"
    assert "pipeline(class_labels=[1], " in card.read_text()
    write_pipelines([job for job in jobs_of(folder) if job.stage.name != "sample"], folder)
    assert "pipeline(class_labels=[1], " in card.read_text(), "without samples, the first class that was learned"


@pytest.mark.slow
def test_neither_a_pipeline_nor_the_page_draws_any_of_them(finished):
    folder, _ = finished
    pipeline = DMVAEPipeline.from_pretrained(folder / "kl/pipeline")
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

    page = read(folder, Networks(torch.device("cpu")), data=True, trust=False)
    assert views.overview(page)["classes"] == [{"label": 1, "name": "bee"}, {"label": 3, "name": "dog"}]
    with pytest.raises(ValueError, match="class 2 is not one that kl's generator has learned; those are 1, 3"):
        views.samples(page, "kl", 2, count=1, guidance=1.0, steps=1, seed=0, sampler="euler")
