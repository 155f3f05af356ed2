"""Two ranks make the reference that one makes, up to rounding."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny

CASES = {
    "noise_states": {"type": "noise_states", "of": {"type": "features", "reduction": "pca", "classes": [0, 1]}},
    "mixture": {"type": "mixture", "fit": {"type": "features"}, "components": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_make_the_reference_of_one(tmp_path, name):
    over = {"reference__distribution": CASES[name], "reference__learning_rate": 1e-3, "run__precision": "float32"}
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    tiny.run(tiny.write(one, **over), "matched", until="tokenizer")
    shutil.copytree(one, two, symlinks=True)
    tiny.run(tiny.write(one, **over), "matched", until="reference")
    for result in processes.ranks(2, "reference", str(tiny.write(two, **over)), "--variant", "matched"):
        assert result.returncode == 0, result.stderr[-3000:]
    folders = [f / "run/matched/reference" for f in (one, two)]
    files = sorted(f.relative_to(folders[0]) for f in folders[0].rglob("*.safetensors"))
    assert files == sorted(f.relative_to(folders[1]) for f in folders[1].rglob("*.safetensors"))
    for file in files:
        if file.name == "map.safetensors":  # drawn for the ranks together
            continue
        a, b = (load_file(folder / file) for folder in folders)
        assert all(torch.allclose(a[key].float(), b[key].float(), atol=1e-3) for key in a), file
