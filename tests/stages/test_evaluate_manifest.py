"""What a run's figures say of how they were made."""

import json
from pathlib import Path

import pytest

import tiny
from dmvae.commands.check import check
from dmvae.evaluation.manifest import require_comparable
from dmvae.jobs import plan, record
from dmvae.recipe import load


@pytest.mark.slow
def test_runs_that_differ_in_mirrored_training_images_compare(tmp_path):
    """Test images are never mirrored."""
    manifests = []
    for flip in (False, True):
        (folder := tmp_path / str(flip)).mkdir()
        jobs = tiny.run(tiny.write(folder, data__flip=flip), "kl")
        evaluated = next(job for job in jobs if job.stage.name == "evaluate")
        manifests.append(json.loads((evaluated.folder / "metrics.json").read_text())["manifest"])
    one, other = manifests
    assert one["measured"]["stages"] != other["measured"]["stages"]
    require_comparable(one, other)
    other["reference"]["data"]["size"] = 99
    with pytest.raises(ValueError, match=r"do not compare: reference\.data\.size"):
        require_comparable(one, other)


def test_a_check_of_other_data_says_so_and_does_not_blame_the_tokenizer(tmp_path):
    run_dir, recipe = tmp_path / "run", load(tiny.write(tmp_path))["kl"]
    jobs = plan({"kl": recipe}, run_dir)
    for job in jobs:
        job.folder.mkdir(parents=True)
    record({"kl": recipe}, jobs, run_dir, ["kl"])
    scores = {"metrics": {}, "manifest": {"call": {"kind": "evaluate", "run_dir": str(run_dir), "variant": "kl"}}}
    file = run_dir / "kl/evaluate/metrics.json"
    file.write_text(json.dumps(scores))
    there = Path(run_dir, "kl/recipe.yaml")
    there.write_text(there.read_text().replace("count: 48", "count: 40"))  # of training images
    with pytest.raises(ValueError, match=r"has no \S+/stages/latents-\w+: it was removed, or the data, .* has changed"):
        check(file)
