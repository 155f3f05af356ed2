"""Pictures of samples as `benchmarks.pictures` draws them."""

import json
import re

import pytest
import torch
from benchmarks import pictures
from benchmarks.pictures import by_class
from safetensors.torch import save_file


def samples(folder, value, labels):
    folder.mkdir(parents=True)
    images = torch.full((len(labels), 3, 4, 4), value, dtype=torch.uint8)
    save_file({"images": images, "labels": torch.tensor(labels)}, folder / "samples-00000.safetensors")


def test_the_lowest_scale_is_drawn_and_classes_may_have_unequal_numbers(tmp_path):
    for scale in ("10", "2", "2.5"):
        samples(tmp_path / f"guidance-{scale}", int(float(scale)), [0, 1, 2, 3] * 7 + [0, 1])
    found = by_class(tmp_path, columns=8)
    assert found.shape == (4, 7, 3, 4, 4)
    assert found.unique().tolist() == [2]
    with pytest.raises(ValueError, match="no samples in"):
        by_class(tmp_path / "other", columns=8)


def test_reconstructions_of_other_test_images_are_not_drawn_below_the_first_method_s(tmp_path):
    for name, value in (("a", 0), ("b", 0), ("c", 9)):
        (tmp_path / name / "evaluate").mkdir(parents=True)
        images = torch.full((4, 3, 2, 2), value, dtype=torch.uint8)
        save_file(
            {"originals": images, "reconstructions": images + 1}, tmp_path / name / "evaluate/pictures.safetensors"
        )
    pictures.reconstructions_picture(tmp_path, ["a", "b"], tmp_path / "same.png", 2, 1)
    assert (tmp_path / "same.png").is_file()
    with pytest.raises(ValueError, match="c has other test images than a; draw it alone"):
        pictures.reconstructions_picture(tmp_path, ["a", "b", "c"], tmp_path / "other.png", 2, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "no method of .* has ended"),
        (("--methods", "b"), "no folder .*b; methods that have ended"),
        (("--methods", "a"), "no samples in"),
        (("--methods", "a", "--reconstructions"), "pictures.safetensors"),
    ],
)
def test_what_has_no_picture_is_told_in_a_line(tmp_path, monkeypatch, capsys, options, told):
    (tmp_path / "a").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps({"methods": {"a": {}}, "not_ended": ["a"]}))
    monkeypatch.setattr("sys.argv", ["pictures", str(tmp_path), str(tmp_path / "a.png"), *options])
    with pytest.raises(SystemExit):
        pictures.main()
    assert re.search(told, capsys.readouterr().err)
