"""The same few images of noise, 24 x 20 pixels, as each kind of data set of files reads them, kept decoded and not."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from dmvae.datasets.huggingface import HuggingFace
from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.webdataset import WebDataset
from packed import features, images, parquet, tar

SIDE = 20
"""Height of the images, pixels; they are 24 wide."""


def noise(i):
    """Bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIDE, 24, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder_of(root, n=8):
    for split in ("train", "test"):
        for i in range(n):
            path = root / split / "cat" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(noise(i))
    return root


def parquet_of(root, n=8):
    columns = {"image": images([noise(i) for i in range(n)]), "label": pa.array([0] * n)}
    for split in ("train", "test"):
        parquet(root / f"{split}-00000-of-00001.parquet", columns, features(("cat",)))
    return root


def shards_of(root, n=8):
    members = [member for i in range(n) for member in ((f"{i:02d}.png", noise(i)), (f"{i:02d}.cls", b"0"))]
    for split in ("train", "test"):
        tar(root / f"{split}-000.tar", members)
    return root


KINDS = {
    "image_folder kept": (ImageFolder, folder_of, {"cache": "auto"}),
    "image_folder held": (ImageFolder, folder_of, {"cache": "memory"}),
    "image_folder": (ImageFolder, folder_of, {"cache": "none"}),
    "huggingface kept": (HuggingFace, parquet_of, {}),
    "huggingface": (HuggingFace, parquet_of, {"cache_gib": 0.0}),
    "webdataset kept": (WebDataset, shards_of, {}),
    "webdataset": (WebDataset, shards_of, {"cache_gib": 0.0}),
}
