"""Where the samples of a .tar shard lie: read once, member by member, without extracting anything.

The members of a sample share their path up to the file name's first dot, as in webdataset: a/b.jpg and a/b.cls.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dmvae.datasets.encoded import ends
from dmvae.datasets.image_file import SUFFIXES
from dmvae.runtime.hashing import bytes_hash

NAME = re.compile(r"((?:.*/|)[^./][^./]*)[.]([^/]*)", re.DOTALL)
HIDDEN = re.compile(r"(^|/)(\.[^./]|__[^/]*__($|[/.]))")  # hidden files, and names that webdataset reserves
LONGEST_LABEL = 4096  # bytes
LARGEST_IMAGE = 2**28


@dataclass
class Samples:
    """The samples of one shard, in order."""

    names: list[str] = field(default_factory=list)
    """Name of the image's member."""
    offsets: list[int] = field(default_factory=list)
    """Where the encoded image begins, bytes from the start of the shard."""
    sizes: list[int] = field(default_factory=list)
    """Its size, bytes."""
    labels: list[str] = field(default_factory=list)
    """The text of its label; "" if labels are not asked for."""
    broken: list[str] = field(default_factory=list)
    """What was left out, and why."""
    content: str = ""
    """A hash of sizes and ends of the images, and of the names."""


def read_index(shard: Path, image: str | None, label: str | None) -> Samples:
    """The samples of a shard. image: the extension of images, None for any image's; label: the extension of labels,
    None for images without labels.

    Raises ValueError for a file that is no .tar, cannot be read, holds no sample, or has two images in a sample.
    """
    samples, hashed = Samples(), []
    try:
        with shard.open("rb") as file:
            for name, members in _grouped(_members(shard, file, samples.broken)):
                found = _image(shard, name, members, image)
                problem, text = "no image" if found is None else "", ""
                if found is not None and members[found].size > LARGEST_IMAGE:
                    problem = f".{found} has {members[found].size} bytes, more than {LARGEST_IMAGE}: no image"
                if not problem and label is not None:
                    text, problem = _label(file, members.get(label), label)
                if problem or found is None:
                    samples.broken.append(f"{shard}, sample {name}: {problem}")
                    continue
                member = members[found]
                samples.names.append(member.name)
                samples.offsets.append(member.offset_data)
                samples.sizes.append(member.size)
                samples.labels.append(text)
                file.seek(member.offset_data)
                hashed += [member.name.encode(errors="surrogateescape"), ends(file, member.size)]
    except OSError as error:
        raise ValueError(f"{shard}: cannot be read ({error})") from error
    if not samples.names:
        why = f": {samples.broken[0]}" if samples.broken else ""
        if label is None:
            raise ValueError(f"{shard}: holds no image{why}. Fetch the shard again, or leave it out")
        raise ValueError(
            f"{shard}: holds no sample{why}; a sample is an image and NAME.{label}. Give data.label_extension the "
            'ending of its labels, "none" for images without classes; or fetch the shard again, or leave it out'
        )
    samples.content = bytes_hash(hashed)
    return samples


def _members(shard: Path, file: BinaryIO, broken: list[str]) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar. `broken` gets a message for what is cut off, or lies behind a damaged header. Raises
    ValueError for a file that is no uncompressed .tar."""
    end = file.seek(0, 2)
    file.seek(0)
    if file.read(2) == b"\x1f\x8b" or end == 0:
        what = (
            "is compressed, so that images cannot be read out of order; gunzip it"
            if end
            else "is empty; fetch it again"
        )
        raise ValueError(f"{shard}: {what}")
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # the file is the caller's
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not a .tar file ({error}); fetch it again") from error
    last = -1
    while True:
        try:
            member = tar.next()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # tarfile raises almost any type on damaged bytes
            broken.append(f"{shard}: damaged after byte {max(last, 0)} ({error}); the rest of it is left out")
            return
        if member is None:
            break
        tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps a million of them in memory
        if member.size < 0 or member.offset_data <= last:  # a header that points back would never end
            broken.append(f"{shard}: member {member.name!r} has a damaged header; the rest is left out")
            return
        last = member.offset_data
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            broken.append(f"{shard}, member {member.name!r}: a link, device or sparse file, which is not read")
        elif member.offset_data + member.size > end:
            broken.append(f"{shard}, member {member.name!r}: cut off, the file ends before it; the rest is left out")
            return
        else:
            yield member
    # tarfile takes a damaged header, or one of zeros, for the end: after the true end there are only zeros
    file.seek(tar.offset)
    if tar.offset >= end:
        broken.append(f"{shard}: has no end: cut off at byte {end}, or still being written")
    elif any(block.strip(b"\0") for block in iter(partial(file.read, 2**20), b"")):
        broken.append(f"{shard}: damaged after byte {tar.offset}, or tars put together; the rest of it is left out")


def _grouped(members: Iterator[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name, {extension in lower case: member}) of each sample: neighbouring members of one name."""
    current = ""
    group: dict[str, tarfile.TarInfo] = {}
    for member in members:
        match = NAME.fullmatch(member.name)
        if match is None or HIDDEN.search(member.name):
            continue
        name, extension = match[1], match[2].lower()
        if group and (name != current or extension in group):
            yield current, group
            group = {}
        current = name
        group[extension] = member
    if group:
        yield current, group


def _image(shard: Path, name: str, members: dict[str, tarfile.TarInfo], wanted: str | None) -> str | None:
    """The extension of a sample's image, None without one. Raises ValueError for several."""
    if wanted is not None:
        return wanted if wanted in members else None
    found = [extension for extension in members if "." + extension.rsplit(".", 1)[-1] in SUFFIXES]
    if len(found) > 1:
        raise ValueError(f"{shard}, sample {name}: has images {', '.join(found)}: name one in data.image_extension")
    return found[0] if found else None


def _label(file: BinaryIO, member: tarfile.TarInfo | None, extension: str) -> tuple[str, str]:
    """(text of the label, what is wrong with it or "")."""
    if member is None:
        return "", f"no .{extension} beside the image"
    if member.size > LONGEST_LABEL:
        return "", f".{extension} has {member.size} bytes, more than {LONGEST_LABEL}: no label"
    file.seek(member.offset_data)
    try:
        text = file.read(member.size).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", f".{extension} holds no text"
    return text, "" if text else f".{extension} is empty"
