"""Which columns of a table of `datasets` hold the images and the labels, and what the classes are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.datasets.image_file import BrokenImage, require_disk
from dmvae.spelling import nearest

if TYPE_CHECKING:
    import pyarrow

    import datasets

LABELS = ("label", "labels", "class", "target", "cls", "category")
NONE = "none"


class Columns:
    """Rows of a `datasets.Dataset`: encoded images one by one, labels all at once. Nothing else is read or decoded.

    image: the column of images; rows: the numbers of the rows to use; where: names a row in errors.
    """

    def __init__(self, table: datasets.Dataset, image: str, rows: range | list[int], where: Callable[[int], str]):
        self.table, self.image, self.rows, self._where = table, image, rows, where
        self.labels = torch.zeros(len(rows), dtype=torch.int64)
        self.outside = False
        """Whether an image was read from a file that the table names."""
        self._cells: pyarrow.ChunkedArray | None = None

    def __getstate__(self) -> Values:
        return self.__dict__ | {"_cells": None}  # they point into a memory map, which a worker opens again

    def read(self, index: int) -> bytes:
        if self._cells is None:
            self._cells = self.table.data.column(self.image)
        cell = self._cells[self.rows[index]].as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None and path:
            self.outside = True
            try:
                if Path(path).exists() and not Path(path).is_file():  # reading a pipe would block
                    raise OSError(f"{path} is no file")
                return Path(path).read_bytes()
            except OSError as error:
                require_disk(error, path)
                raise BrokenImage(
                    f"the row names a file instead of its bytes, which cannot be read: {error}"
                ) from error
        if data is None:
            raise BrokenImage("there is no image in this row")
        return data

    def all(self) -> Iterator[bytes]:
        """Every encoded image in turn; b"" where it cannot be read."""
        for index in range(len(self.rows)):
            try:
                yield self.read(index)
            except BrokenImage:
                yield b""

    def where(self, index: int, column: str | None = None) -> str:
        return f"{self._where(self.rows[index])}, column {column or self.image}"


def image_column(table: datasets.Dataset, given: str | None, where: str) -> str:
    """The name of the column of images: `given`, or the only one. Raises ValueError where there is none, or several."""
    kinds = {name: _holds(table, name) for name in table.column_names}
    if given is not None:
        _there(table, given, where, "image_column")
        if kinds[given] != "image":
            raise ValueError(
                f"{where}, column {given}: holds {_type(table, given)}, not encoded images{_nested(kinds[given])}: "
                "write it with datasets.Image(), or as the bytes of PNG or JPEG files"
            )
        return given
    found = [name for name, kind in kinds.items() if kind == "image"]
    if len(found) > 1:
        raise ValueError(f"{where}: several columns hold images, {', '.join(found)}: name one in data.image_column")
    if not found:
        raise ValueError(
            f"{where}: no column holds encoded images; there are {_all(table)}: write one with datasets.Image(), or as "
            "the bytes of PNG or JPEG files"
        )
    return found[0]


def label_column(table: datasets.Dataset, given: str | None, where: str) -> str | None:
    """The name of the column of labels: `given`, or the only ClassLabel, or one with a name in LABELS; None where
    `given` is "none". Raises ValueError where there is none, or several, or it holds no labels."""
    from datasets import ClassLabel

    if given == NONE:
        return None
    fix = 'name one in data.label_column, or set it to "none" for images without classes'
    if given is None:
        found = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
        if len(found) > 1:
            raise ValueError(f"{where}: several columns hold classes, {', '.join(found)}: {fix}")
        found = found or [name for name in LABELS if name in table.column_names]
        if not found:
            raise ValueError(f"{where}: no column holds labels; there are {_all(table)}: {fix}")
        given = found[0]
    _there(table, given, where, "label_column")
    if (kind := _holds(table, given)) not in ("number", "text"):
        raise ValueError(
            f"{where}, column {given}: holds {_type(table, given)}, not one whole number or name an image"
            f"{_nested(kind)}: {fix}"
        )
    return given


def names_of(table: datasets.Dataset, column: str, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The class names of a column's labels: those of a ClassLabel; for a column of texts those `given`, else its texts,
    sorted; None for plain numbers."""
    if _holds(table, column) == "text":
        texts = table.data.column(column).unique().to_pylist()
        return given or tuple(sorted(text for text in texts if text is not None))
    names = getattr(table.features[column], "names", None)
    return None if names is None else tuple(names)


def check_same_names(files: Sequence[Path], column: str) -> None:
    """Raise ValueError where parquet files name classes differently: `datasets` takes the names of the first file for
    all, and leaves the numbers as they are."""
    named = [(file, names) for file in files if (names := _names_in(file, column))]
    for file, names in named[1:]:
        first, expected = named[0]
        if names != expected:
            both = enumerate(zip_longest(names, expected, fillvalue="missing"))
            number, (here, there) = next((n, pair) for n, pair in both if pair[0] != pair[1])
            raise ValueError(
                f"{file}, column {column}: class {number} is {here}, but {there} in {first}: number the classes alike "
                "in all files, as Dataset.align_labels_with_mapping of the package datasets does"
            )


def _names_in(file: Path, column: str) -> list[str] | None:
    """The names of a column's ClassLabel, from the file itself; None for another type."""
    import pyarrow.parquet as pq

    from datasets import Features

    try:
        return getattr(Features.from_arrow_schema(pq.read_schema(file)).get(column), "names", None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # metadata that is no JSON, or has another form
        raise ValueError(f"{file}: what it says of its columns for `datasets` cannot be read ({error})") from error


def labels_of(
    table: datasets.Dataset, column: str, names: tuple[str, ...] | None, where: Callable[[int], str]
) -> Tensor:
    """int64 labels [n] of all rows; a text becomes its index in `names`. Raises ValueError for a row without a label,
    or with a text that is no class."""
    cells = table.data.column(column).to_pylist()
    if None in cells:
        raise ValueError(f"{where(cells.index(None))}, column {column}: no label; fill it or leave the row out")
    if _holds(table, column) == "text":
        places = {name: number for number, name in enumerate(names or ())}
        if unknown := set(cells) - set(places):
            text = min(unknown)
            raise ValueError(
                f"{where(cells.index(text))}, column {column}: {text!r} is none of the {len(places)} classes"
                f"{nearest(text, list(places)[:20])}"
            )
        cells = [places[text] for text in cells]
    if (high := max(cells)) > torch.iinfo(torch.int64).max:
        raise ValueError(
            f"{where(cells.index(high))}, column {column}: label {high} is no class: number them from 0 on"
        )
    return torch.tensor(cells, dtype=torch.int64)


def _holds(table: datasets.Dataset, name: str) -> str:
    """The kind of a column's values: image, number, text, nested or other."""
    import pyarrow.types as t

    import datasets

    feature, arrow = table.features[name], table.data.schema.field(name).type
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, dict):  # a plain struct; audio and video have features of their own
        bytes_of = arrow.field("bytes").type if arrow.get_field_index("bytes") >= 0 else None
        return "image" if bytes_of is not None and _binary(bytes_of) else "nested"
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        return "nested" if t.is_nested(arrow) or hasattr(feature, "shape") else "other"
    if _binary(arrow):
        return "image"
    if t.is_integer(arrow):
        return "number"
    return "text" if t.is_string(arrow) or t.is_large_string(arrow) else "other"


def _binary(arrow: pyarrow.DataType) -> bool:
    import pyarrow.types as t

    return t.is_binary(arrow) or t.is_large_binary(arrow)


def _nested(kind: str) -> str:
    return " (nested and array columns are not read)" if kind == "nested" else ""


def _there(table: datasets.Dataset, name: str, where: str, field: str) -> None:
    if name not in table.column_names:
        raise ValueError(
            f"{where}: has no column {name!r}, which data.{field} names{nearest(name, table.column_names)}"
        )


def _type(table: datasets.Dataset, name: str) -> str:
    feature = table.features[name]
    text = type(feature).__name__ if not isinstance(feature, dict) else "a struct"
    return str(feature.dtype) if text == "Value" else text


def _all(table: datasets.Dataset) -> str:
    return ", ".join(f"{name} ({_type(table, name)})" for name in table.column_names)
