"""Small data sets of images packed into parquet files and .tar shards, and how tests open them.

An image is of one grey value, which says which one it is; its label is the value modulo 3.
"""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ANIMALS = ("cat", "dog", "owl")


def png(value, size=(12, 10), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(file, "PNG")
    return file.getvalue()


def noise(n=40):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (n, n, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def values(data):
    return [int(data[i][0].float().mean()) for i in range(len(data))]


def opener(config):
    """(a function that opens a split, one that expects that to fail with a message), for a data set's config class."""

    def open_split(root, split="train", **fields):
        return config(**({"root": str(root), "size": 8} | fields)).build(split)

    def fails(root, message, split="train", **fields):
        with pytest.raises(ValueError, match=message):
            open_split(root, split, **fields)

    return open_split, fails


def features(names=ANIMALS, image="image", label="label"):
    """The metadata that `datasets` writes into a schema."""
    kinds = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    return {"huggingface": json.dumps({"info": {"features": kinds}})}


def parquet(path, columns, metadata=None):
    """A parquet file of {name: pyarrow array}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def images(values):
    cells = [v if isinstance(v, bytes) or v is None else png(v) for v in values]
    return pa.array([{"bytes": cell, "path": None} for cell in cells], IMAGE)


def rows(path, values, metadata=None):
    labels = [v % 3 if isinstance(v, int) else 0 for v in values]
    return parquet(path, {"image": images(values), "label": pa.array(labels)}, metadata)


def animals(folder):
    """A folder of parquet files with 15 training images and 4 others."""
    rows(folder / "train-00000-of-00002.parquet", range(6), features())
    rows(folder / "train-00001-of-00002.parquet", range(6, 15), features())
    rows(folder / "val-00000-of-00001.parquet", range(100, 104), features())
    return folder


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(values):
    """Of images by their values, or of bytes, numbered and of class 0."""
    found = [(n, v, b"0") if isinstance(v, bytes) else (v, png(v), b"%d" % (v % 3)) for n, v in enumerate(values)]
    return [m for name, image, label in found for m in ((f"{name:04}.png", image), (f"{name:04}.cls", label))]


def shards_of(folder):
    """The same images in .tar shards."""
    tar(folder / "x-train-000.tar", samples(range(6)))
    tar(folder / "x-train-001.tar", samples(range(6, 15)))
    tar(folder / "x-val-000.tar", samples(range(100, 104)))
    return folder
