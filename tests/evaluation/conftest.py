"""Two splits of images, in memory and as folders of files, and a cache."""

import pytest
from PIL import Image

from dmvae.datasets.shapes import Shapes


@pytest.fixture(scope="module")
def data():
    """(images, labels) of two splits."""
    config = Shapes(size=16, channels=3, num_classes=3, count=60, test_count=60)
    return [config.build(split).__getitems__(range(60)) for split in ("train", "test")]


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name, (images, labels) in zip("ab", data, strict=True):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / name / f"class-{label}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return str(root / "a"), str(root / "b")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty one, where features of references are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
