"""Reading of users' files for references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmvae.spelling import nearest


def parquet_files(path: Path) -> list[Path]:
    """The file, or the .parquet files of the folder. Raises ValueError where there are none."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"no such file, nor a folder of parquet files: {path}")
    return files


def read_column(files: list[Path], name: str) -> list[Any]:
    """The values of a column, of all files in order. Raises ValueError where it is missing, and for a file that cannot
    be read."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError("a .parquet file needs pyarrow: pip install 'dmvae[parquet]'") from error
    values = []
    for file in files:
        try:
            columns = pq.read_schema(file).names
            if name not in columns:
                raise ValueError(f"{file} has no column {name!r}{nearest(name, columns)}")
            values += pq.read_table(file, columns=[name])[name].to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable parquet file ({error}); write it again") from error
    return values
