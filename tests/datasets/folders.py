"""Folders of images: two classes, whole and damaged, and how they are opened."""

import pytest
from PIL import Image

from dmvae.datasets.image_folder import ImageFolder

BOTH = pytest.mark.parametrize("cache", ["auto", "memory", "none"])


def picture(path, value, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def classes(root, cats=20, dogs=10):
    """Cats have even values, dogs odd ones; some lie deeper; what is no image lies about."""
    for i in range(cats):
        picture(root / "cat" / ("deep/er" if i % 3 == 0 else "") / f"{i}.png", 2 * i)
    for i in range(dogs):
        picture(root / "dog" / f"{i}.PNG", 2 * i + 1)
    (root / "README.md").write_text("not an image")
    (root / "cat" / "notes.txt").write_text("nor this")
    picture(root / "cat" / ".hidden.png", 255)
    picture(root / ".thumbs" / "x.png", 255)
    return root


def open_split(root, split="train", **fields):
    return ImageFolder(**({"root": str(root), "size": 8} | fields)).build(split)


def cut(path):
    """Damage that the header does not show."""
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def break_some(root):
    (root / "cat" / "1.png").write_bytes(b"")
    (root / "cat" / "2.png").write_text("hello")
    return root
