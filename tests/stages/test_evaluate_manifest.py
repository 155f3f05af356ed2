"""What a run's figures say of how they were made."""

import json

import pytest

import tiny
from dmvae.evaluation.manifest import require_comparable


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
