"""Pictures of samples as `benchmarks.pictures` draws them."""

import pytest
import torch
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
