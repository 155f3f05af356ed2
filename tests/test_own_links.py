"""Paths through links of the run's own folder, which lead to other stages once the run begins: they are refused,
whatever field has them, and those that stay are not."""

import json
import re
import shutil

import pytest

import tiny
from dmvae import pipeline
from dmvae.blank import build_autoencoder
from dmvae.generators.flow import FlowModelConfig
from dmvae.hindrances import hindrances
from dmvae.jobs import plan, point, replaced
from dmvae.models.artifact import save_network
from dmvae.recipe import load

OF_FEATURES = {"type": "tokenizer", "resolution": 12, "weights": "PATH"}
OURS = {"type": "dmvae", "path": "PATH"}
WITHOUT = dict.fromkeys(("autoencoder", "encoder", "tokenizer", "reference", "matching"))
FIELDS = [
    ("evaluate.features.weights", "tokenizer/autoencoder", {"evaluate": {"features": OF_FEATURES}}),
    ("evaluate.also[1].weights", "tokenizer/autoencoder", {"evaluate.also": [{"type": "effnet-lite0"}, OF_FEATURES]}),
    (
        "reference.distribution.source.path",
        "tokenizer/autoencoder",
        {"reference.distribution": {"type": "tokenizer", "source": OURS}},
    ),
    ("pretrained.path", "latents/autoencoder", WITHOUT | {"pretrained": OURS}),
    ("generator.start_from", "generator/generator", {"generator.start_from": "PATH"}),
    ("reference.start_from", "generator/generator", {"reference.start_from": "PATH"}),
    ("sample.guide", "generator/generator", {"sample.guide": "PATH", "sample.guidance": [2.0]}),
]
"""Field, what its path names within a variant's folder, the sections that have it."""


@pytest.fixture
def before(tmp_path):
    """A run's folder whose links lead to a tokenizer and a generator of before."""
    run = tmp_path / "run"
    recipe = load(tiny.write(tmp_path, variants={"main": {}}))["main"]
    for stage in ("tokenizer", "latents"):
        save_network(build_autoencoder(recipe), run / f"stages/{stage}-before/autoencoder")
    save_network(FlowModelConfig(**tiny.DIT).build((4, 3, 3), 3), run / "stages/generator-before/generator")
    for variant in ("main", "other"):
        (run / variant).mkdir()
        for stage in ("tokenizer", "latents", "generator"):
            (run / variant / stage).symlink_to(f"../stages/{stage}-before")
    return run


def write(run, over, path):
    """A recipe with these sections, whose PATH is that."""
    return tiny.write(run.parent, variants={"main": json.loads(json.dumps(over).replace("PATH", str(path)))})


def jobs(path):
    return plan(load(path), path.parent / "run")


@pytest.mark.parametrize(("place", "within", "over"), FIELDS)
def test_a_path_through_a_link_that_will_lead_elsewhere_is_refused(before, place, within, over):
    path = write(before, over, before / "main" / within)
    stays = before / "stages" / within.replace("/", "-before/")
    told = f"{place}: {before / 'main' / within} is replaced when the run begins; give {stays}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'main: {told}')}$"):
        pipeline.run(load(path), before)
    assert {link.readlink().name.partition("-")[2] for link in (before / "main").iterdir()} == {"before"}
    assert ("main", told) in hindrances(jobs(path), jobs(path))


@pytest.mark.parametrize(("place", "within", "over"), FIELDS)
def test_a_folder_that_stays_is_taken(before, place, within, over):
    """A stage's, by another name of the run's folder too; an import; one by a link of a variant that is not run now."""
    (before.parent / "alias").symlink_to("run")
    shutil.copytree(before / "stages", before / "imports")
    stage = within.replace("/", "-before/")
    stay = (before / "stages" / stage, before.parent / "alias/stages" / stage, before / "imports" / stage)
    for folder in (*stay, before / "other" / within):
        found = jobs(write(before, over, folder))
        assert list(replaced(found, found)) == []
    found = jobs(write(before, over, before.parent / "alias/main" / within))
    assert [told.partition(":")[0] for _, told in replaced(found, found)] == [place]


def test_the_stages_may_lie_on_another_disk(before):
    (before / "stages").rename(before.parent / "large")
    (before / "stages").symlink_to(before.parent / "large")
    found = jobs(write(before, {"generator.start_from": "PATH"}, before / "main/generator/generator"))
    assert [told.partition(":")[0] for _, told in replaced(found, found)] == ["generator.start_from"]


def test_a_link_that_will_lead_to_the_same_folder_is_taken(before):
    path = write(before, {"evaluate.features": OF_FEATURES}, before / "main/tokenizer/autoencoder")
    (job,) = (job for job in jobs(path) if job.stage.name == "tokenizer")
    (before / "stages/tokenizer-before").rename(job.folder)
    (before / "main/tokenizer").unlink()
    (before / "main/tokenizer").symlink_to(f"../stages/{job.folder.name}")
    assert list(replaced(jobs(path), jobs(path))) == []


def test_a_pipeline_of_the_run_is_refused_to_the_stage_that_reads_it(before):
    there = before / "main/pipeline/transformer"
    save_network(FlowModelConfig(**tiny.DIT).build((4, 3, 3), 3), there)
    found = jobs(write(before, {"generator.start_from": "PATH"}, there))
    told = f"generator.start_from: {there} is replaced when the run begins; give a folder below {before / 'stages'}"
    assert list(replaced(found, found)) == [("main", told)]
    assert list(replaced([job for job in found if job.stage.name != "generator"], found)) == []


def test_a_copy_that_followed_links_is_told_how_to_copy(tmp_path):
    (tmp_path / "matched/encoder").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is no link; .*copy the run with its links"):
        point(tmp_path / "matched/encoder", tmp_path / "stages/encoder-1")
