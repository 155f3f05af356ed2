"""Two ranks: one of them looks through a folder of images."""

import pytest
from PIL import Image

import processes
import tiny
from dmvae import datasets, pipeline
from dmvae.datasets import image_folder
from dmvae.recipe import load
from dmvae.runtime.joined import joined


def looks(rank, path):
    """Run the first stage; write how often this rank looked through files, and what it found."""
    recipes, scans, scan = load(path), [], image_folder.split_files

    def counted(root, split, fraction):
        scans.append(split)
        return scan(root, split, fraction)

    image_folder.split_files = counted
    with joined():
        pipeline.run(recipes, path.parent / "run", only="encoder")
    found = [(key, data.fingerprint, data.labels.tolist(), data[0][0].sum()) for key, data in datasets._open.items()]
    (path.parent / str(rank)).write_text(f"{scans}\n{sorted(found)}")


@pytest.mark.slow
def test_the_other_is_given_the_index(tmp_path):
    for i in range(32):
        folder = tmp_path / "images" / f"{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (9 * i % 255, 0, 0)).save(folder / f"{i}.png")
    data = {"type": "image_folder", "root": str(tmp_path / "images"), "size": 12, "channels": 3, "cache": "none"}
    path = tiny.write(tmp_path, data=None, variants=None, run__workers=0)
    text = path.read_text().replace("data: null", f"data: {data}")
    path.write_text(text)
    assert processes.on_ranks(looks, path) == [0, 0]
    (one, found), (two, again) = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert one.count("train") == 1
    assert two == "[]"
    assert found == again
