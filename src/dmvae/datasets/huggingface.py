"""Image data sets of the Hugging Face hub, and parquet files as the package `datasets` writes them."""

from __future__ import annotations

import errno
import re
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dmvae.datasets import Dataset, Split
from dmvae.datasets.columns import Columns, check_same_names, image_column, label_column, labels_of, names_of
from dmvae.datasets.download import cache_folder
from dmvae.datasets.encoded import EncodedConfig, check_labels, choose, ends, numbered, open_images
from dmvae.datasets.skipped import OnBroken
from dmvae.registry import register
from dmvae.runtime.files import read_json, write_json
from dmvae.runtime.hashing import bytes_hash, digest
from dmvae.runtime.hub import hub
from dmvae.runtime.words import counted, few

if TYPE_CHECKING:
    import datasets

HASHES = 2  # goes up when the kept hash of a table is made otherwise
TESTS = ("test", "validation", "val", "valid")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_FILE = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")  # id, commit, path


@register("huggingface")
@dataclass(frozen=True, kw_only=True)
class HuggingFace(EncodedConfig):
    """A data set that the package `datasets` reads: from the hub, or a local folder or file of parquet.

    Needs the extra `huggingface`. Only the columns of images and labels are read. Nothing is streamed: the order of
    rows is a function of (seed, step), so that a run resumes bit for bit. Tables are memory-mapped, not held in memory:
    `datasets` copies them, local ones too, to ~/.cache/huggingface, or to the folder that HF_HOME names.
    """

    PLACES: ClassVar[tuple[str, ...]] = (*EncodedConfig.PLACES, "revision")

    root: str
    """An id on the hub (owner/name), a folder of parquet files (train*.parquet, test*.parquet or validation*.parquet),
    or one parquet file. A local path is preferred to a hub id of the same name."""
    subset: str | None = None
    """Which configuration (subset), where the data set has several."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null is the newest."""
    train_split: str = "train"
    """Name of the split to train on, also with a slice, such as train[:90%]."""
    test_split: str | None = None
    """Name of the split to measure on, or a slice, such as train[90%:]. null finds test, validation, val, valid."""
    image_column: str | None = None
    """Column of the images; null finds it by its type."""
    label_column: str | None = None
    """Column of the labels, numbers or names; null finds it by its type or name. "none": images without classes."""
    on_broken: OnBroken = "error"
    """Unreadable images: stop with an error, since a program writes tables; or skip them with one warning."""

    def build(self, split: Split) -> Dataset:
        prepared = Prepared(self.root, self.subset, self.revision)
        name, first = self._split(split, prepared), self._split("train", prepared)
        if split != "train" and (both := prepared.shared(name, first)):
            raise ValueError(
                f"{self.root}: {counted(both, 'row')} of the test split {name} are of the train split {first} too; cut "
                f"both: train_split: train[:90%], test_split: train[90%:]"
            )
        table, where = prepared.table(name), prepared.where(name)
        image = image_column(table, self.image_column, where())
        label = label_column(table, self.label_column, where())
        source = Columns(table, image, choose(len(table), self.limit), where)
        classes: tuple[str, ...] = ("all",)
        if label is not None:
            # from the train split, so that both splits have the same classes
            train, there = (table, where) if first == name else (prepared.table(first), prepared.where(first))
            label_column(train, label, there())
            check_same_names(prepared.files_of(f"{first}+{name}"), label)
            given = self.given_classes()
            own = names_of(train, label, given)
            if given and own and len(given) != len(own):
                raise ValueError(
                    f"{there()}, column {label}: has {counted(len(own), 'class', 'classes')}, {few(own)}, but "
                    f"data.classes names {len(given)}, {few(given)}: name every class, in the column's order, or "
                    "leave data.classes out"
                )
            if given and own and set(given) == set(own) and tuple(given) != tuple(own):
                raise ValueError(
                    f"{there()}, column {label}: its classes are {few(own)}, in this order, and data.classes names "
                    "the same in another: leave it out, or give the column's order"
                )
            source.labels = labels_of(table, label, own, where)[list(source.rows)]
            classes = given or own or numbered(labels_of(train, label, None, there), f"{there()}, column {label}")
            of = "data.classes" if given else f"column {label} of the train split"
            check_labels(source.labels, classes, of, lambda index: source.where(index, label))
        content = _content(source, [name, image, self.limit])
        return self.cropped(open_images(source, self, classes, content))

    def _split(self, split: Split, prepared: Prepared) -> str:
        """The name of a split, perhaps with slices. Raises ValueError if a part of it does not exist."""
        there = prepared.splits
        given = self.train_split if split == "train" else self.test_split
        if given is None:
            given = next((name for name in TESTS if name in there), None)
            if given is None:
                raise ValueError(
                    f"{self.root}: has no split called {', '.join(TESTS[:-1])} or {TESTS[-1]}, only {', '.join(there)}"
                    ": name one in data.test_split, or cut one off, where the rows are shuffled: train_split: "
                    "train[:90%], test_split: train[90%:]"
                )
        for part in given.split("+"):
            if _whole(part) not in there:
                raise ValueError(
                    f"{self.root}: has no split {part!r}, only {', '.join(there)}: set data.{split}_split to one of "
                    "these"
                )
        return given


def _content(source: Columns, what: list[object]) -> str:
    """A hash of the images' ends. It takes a pass over all images, so it is kept and used while the table's files stay
    the same; it is not kept where the table only names image files."""
    files = [Path(file["filename"]) for file in source.table.cache_files]
    stats = [file.stat() for file in files]
    key = digest(HASHES, *what, [(str(f), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)])
    kept = cache_folder() / "table_hash" / f"{key}.json"
    if files and kept.is_file():
        with suppress(ValueError, KeyError):
            return str(read_json(kept, dict)["content"])
    content = bytes_hash(ends(BytesIO(data), len(data)) for data in source.all())
    if files and not source.outside:
        with suppress(OSError):  # a full or foreign folder only costs the next start a pass
            write_json(kept, {"content": content})
    return content


def _whole(part: str) -> str:
    """The split of a slice: "train" of "train[:90%]"."""
    return part.split("[")[0]


class Prepared:
    """A data set that `datasets` has fetched and converted, ready to be opened. Raises ValueError with the fix."""

    def __init__(self, root: str, subset: str | None, revision: str | None):
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                "data of type huggingface need the package datasets: pip install 'dmvae[huggingface]'"
            ) from error
        import pyarrow

        self.root = root
        path = Path(root).expanduser()
        if not path.exists() and (path.suffix == ".parquet" or not HUB_ID.fullmatch(root)):
            raise ValueError(f"data.root: {path} does not exist (looked from {Path.cwd()}), nor is it a hub id")
        errors = (OSError, ValueError, pyarrow.ArrowException, datasets.exceptions.DatasetsError)
        try:
            if path.is_file():
                builder = datasets.load_dataset_builder("parquet", data_files={"train": [str(path.resolve())]})
            elif path.is_dir():
                builder = datasets.load_dataset_builder(str(path.resolve()), subset)
            else:
                with hub():
                    builder = datasets.load_dataset_builder(root, subset, revision=revision)
        except errors as error:
            raise ValueError(_failed(root, path, subset, error)) from error
        if path.is_dir() and subset is None:
            _require_tables(path, builder.config.data_files or {})
        self._look(builder.config.data_files)  # before `datasets` reads them: it does not name a damaged file
        try:
            builder.download_and_prepare()
        except errors as error:
            raise ValueError(_failed(root, path, subset, error)) from error
        if not path.exists():  # files of the hub are here only now
            self._look(builder.config.data_files)
        self.builder = builder
        self.splits = list(builder.info.splits)

    def _look(self, named: Mapping[object, list[str]] | None) -> None:
        self.files = {str(split): _local(files) for split, files in (named or {}).items()}
        self.rows = _check_parquet([file for files in self.files.values() for file in files])

    def files_of(self, split: str) -> list[Path]:
        """The local files that a split, or a sum of slices, is read from; [] where they are not known."""
        names = dict.fromkeys(_whole(part) for part in split.split("+"))
        return [file for name in names for file in self.files.get(name, [])]

    def table(self, split: str) -> datasets.Dataset:
        """A split, or a slice of one, as a `datasets.Dataset`. Raises ValueError for an invalid slice, or one without a
        row."""
        try:
            table = self.builder.as_dataset(split=split)
        except (ValueError, AssertionError) as error:
            raise ValueError(f"{self.root}: split {split!r} cannot be read: {error}") from error
        if not len(table):
            raise ValueError(f"{self.root}: split {split} has no row")
        return table

    def shared(self, a: str, b: str) -> int:
        """How many rows two splits, or sums of slices, share. 0 for invalid slices: `table` raises for them."""
        import datasets

        lengths = {name: info.num_examples for name, info in self.builder.info.splits.items()}

        def rows(split: str) -> list[tuple[str, int, int]]:
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
            return [(part.splitname, part.from_, part.to) for part in parts]

        try:
            pairs = [(x, y) for x in rows(a) for y in rows(b) if x[0] == y[0]]
        except (ValueError, AssertionError):
            return 0
        return sum(max(0, min(x[2], y[2]) - max(x[1], y[1])) for x, y in pairs)

    def where(self, split: str) -> Place:
        rows = [self.rows[file] for file in self.files.get(split, [])]  # none for a slice: its row 0 is elsewhere
        return Place(self.root, split, self.files_of(split), rows)


class Place:
    """Names a row of a split by its file, where that is known; called without one, the split by its first file."""

    def __init__(self, root: str, split: str, files: list[Path], rows: list[int]):
        self.root, self.split, self.files = root, split, files
        self.starts = list(accumulate(rows, initial=0))

    def __call__(self, row: int | None = None) -> str:
        if row is None and len(self.files) > 1:
            return f"{self.files[0]} (first of {len(self.files)} files of split {self.split})"
        if row is None:
            return str(self.files[0]) if self.files else f"{self.root}, split {self.split}"
        if row < self.starts[-1]:
            number = bisect_right(self.starts, row) - 1
            return f"{self.files[number]}, row {row - self.starts[number]}"
        return f"{self.root}, split {self.split}, row {row}"


def _require_tables(folder: Path, named: Mapping[object, list[str]]) -> None:
    """Raise ValueError if `datasets` reads none of a folder's parquet files: it takes the most frequent file type."""
    read = [Path(file) for files in named.values() for file in files]
    if not read or any(file.suffix == ".parquet" for file in read):
        return
    for file in folder.rglob("*.parquet"):
        if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts):
            raise ValueError(
                f"data.root: {folder} holds {file.relative_to(folder)}, but the package datasets reads files such as "
                f"{read[0]} there: move the parquet files into a folder of their own, or set data.type to image_folder"
            )


def _local(files: list[str]) -> list[Path]:
    """The parquet files of a split, those of the hub from its cache; [] unless all are here."""
    found = [path for file in files if (path := _here(file)).suffix == ".parquet" and path.is_file()]
    return found if len(found) == len(files) else []


def _here(file: str) -> Path:
    if not (address := HUB_FILE.fullmatch(file)):
        return Path(file)
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(address[1], address[3], revision=address[2], repo_type="dataset")
    return Path(kept if isinstance(kept, str) else file)


def _check_parquet(files: list[Path]) -> dict[Path, int]:
    """The number of rows of each local file. Raises ValueError naming one that is damaged or unlike the first."""
    import pyarrow
    import pyarrow.parquet as pq

    rows: dict[Path, int] = {}
    columns: list[str] = []
    for file in files:
        try:
            footer = pq.read_metadata(file)
            names = pq.read_schema(file).names
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not a readable parquet file ({_line(error)}); fetch it again") from error
        if rows and sorted(names) != sorted(columns):
            raise ValueError(
                f"{file}: has columns {', '.join(names)}, but {files[0]} has {', '.join(columns)}: give all files the "
                "same ones"
            )
        if footer.num_row_groups and not footer.row_group(0).num_rows:  # `datasets` reads batches of its length
            raise ValueError(f"{file}: has no row, or none in its first group: delete it, or write it again")
        columns = columns or names
        rows[file] = footer.num_rows
    return rows


def _failed(root: str, path: Path, subset: str | None, error: Exception) -> str:
    """The error message where `datasets` cannot find or convert the data."""
    why = _line(error)
    if (cache := _unwritable(error)) is not None:
        return (
            f"data.root: {root}: the package datasets keeps a copy of its tables in {cache}, which cannot be written "
            f"({why}); set HF_HOME to a folder with room for it"
        )
    if "onfig" in why and isinstance(error, ValueError):  # "Config name is missing", "BuilderConfig 'x' not found"
        return f"{root}: has no such subset as data.subset says ({subset}): {str(error)[:600]}"
    if path.exists():
        return f"data.root: {path} cannot be read ({why}); give a folder of parquet files or one such file"
    here = f"data.root: {root} is no folder here (looked from {Path.cwd()})"
    if isinstance(error, FileNotFoundError):
        return (
            f"{here}, nor a data set on the hub that can be read: {why}. Correct the id; for a private or gated one "
            "log in with `hf auth login`"
        )
    return (
        f"{here}, and could not be had from the hub: {why}. Without a network, fetch it elsewhere (`hf download "
        f"--repo-type dataset {root} --local-dir DIR`) and set data.root to DIR"
    )


def _unwritable(error: Exception) -> Path | None:
    """The folder in which `datasets` keeps tables, where the error is of that folder and not of the data."""
    import datasets

    cache, deepest = Path(datasets.config.HF_DATASETS_CACHE), _deepest(error)
    if not isinstance(deepest, OSError):
        return None
    named = Path(str(deepest.filename or ""))
    of_it = named.is_relative_to(cache) or cache.is_relative_to(named)
    return cache if of_it or deepest.errno in (errno.ENOSPC, errno.EDQUOT) else None


def _deepest(error: BaseException) -> BaseException:
    """An error's innermost cause, which says more than the error itself."""
    return error if error.__cause__ is None else _deepest(error.__cause__)


def _line(error: Exception) -> str:
    """The first line of the innermost cause."""
    deepest = _deepest(error)
    return (str(deepest).strip() or type(deepest).__name__).splitlines()[0][:300]
