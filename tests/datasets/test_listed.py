"""Labels that a dataset.json lists, as EDM2's and REPA's tools write it."""

import json

import pytest
from folders import BOTH, open_split, picture

from dmvae.datasets import skipped


@BOTH
def test_labels_that_dataset_json_lists_are_those_and_folders_are_no_classes(tmp_path, cache):
    """As EDM2's and REPA's dataset tools write them: a thousand images in each folder."""
    for i in range(30):
        picture(tmp_path / f"{i // 10:05d}/img{i:08d}.png", 7 * i)
    rows = [[f"{i // 10:05d}/img{i:08d}.png", i % 3] for i in range(30)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": rows}))
    train, test = (open_split(tmp_path, split, cache=cache) for split in ("train", "test"))
    assert train.classes == test.classes == ("0", "1", "2")
    values = {(int(x[0, 0, 0]), int(y)) for split in (train, test) for x, y in (split[i] for i in range(len(split)))}
    assert values == {(7 * i, i % 3) for i in range(30)}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"labels": [["0/a.png", 0]]}, r"dataset\.json gives no label for 0/b\.png \(2 such images\)"),
        ({"labels": [["0/a.png", 0.5]]}, r"dataset\.json: 0/a\.png has the label 0\.5"),
        ({"labels": [["0/a.png", -1]]}, r"has the label -1; give the numbers of classes"),
        ({"labels": None}, ("all",)),
        ({"labels": ["a", "b"]}, ("0", "1")),
        ({"images": []}, ("0", "1")),
        ([1], ("0", "1")),
    ],
    ids=str,
)
def test_a_list_that_lacks_images_is_refused_and_another_dataset_json_is_none(tmp_path, content, told):
    for name in ("0/a", "0/b", "1/c"):
        picture(tmp_path / f"{name}.png", 9)
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    if isinstance(told, tuple):
        assert open_split(tmp_path).classes == told
    else:
        with pytest.raises(ValueError, match=told):
            open_split(tmp_path)


def test_a_list_that_is_read_is_not_told_as_left_out(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", 9)
    for labels, lines in (([["a.png", 0], ["b.png", 1]], 0), (["a"], 1)):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        skipped.forget()
        open_split(tmp_path)
        assert skipped.write_skipped(tmp_path)[0] == lines
