"""Data set `latents`: latents that are encoded already in place of training images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dmvae.datasets import Dataset, DatasetConfig, Split, open_dataset
from dmvae.datasets.encoded import numbered
from dmvae.datasets.latent_files import ENCODED, MIRRORS, LatentFiles
from dmvae.registry import register
from dmvae.runtime.hashing import digest
from dmvae.runtime.words import counted, few


@register("latents")
@dataclass(frozen=True, kw_only=True)
class LatentsData(DatasetConfig):
    """Latents that `pretrained` has encoded elsewhere, for generators, `latents.whitening` and a `reshaped` tokenizer.
    There are no training images: what needs them is refused.

    The fingerprint covers the files' names, sizes and parts of their content, and the labels.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("root", "labels", "test")
    are_latents: ClassVar[bool] = True

    root: str
    """Folder of .safetensors shards, as `dmvae encode`, `dmvae export lightningdit-latents` and LightningDiT's
    extract_features.py write, of .npz, or of .npy, many latents in a file or one (class folders are labels); or one
    such file. latents_stats.pt or statistics.safetensors in it, if it is there, normalises them."""
    labels: str | None = None
    """A .npy file of the labels, int [n], of .npy files in the order of their names; null: labels.npy in `root`."""
    test: DatasetConfig | None = None
    """Test images, by `type`: the test split of that data set, whose class names are those of the labels; null: none,
    so nothing is evaluated (`evaluate: null`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flip or self.limit is not None:
            name = "flip" if self.flip else "limit"
            raise ValueError(f"data.{name}: latents are taken as they lie; leave it out" + FLIP * self.flip)
        if not self.root.strip():
            raise ValueError(f"data.root: {self.root!r} names no folder; give the one that holds the latents")
        if self.test is None:
            return
        if self.test.are_latents:
            raise ValueError("data.test: test images are needed; give a data set of images")
        if self.test.flip:
            raise ValueError("data.test.flip: test images are never mirrored; leave it out")
        for name in ("size", "channels"):
            usual = next(f.default for f in fields(self.test) if f.name == name)
            if (given := getattr(self.test, name)) not in (usual, ours := getattr(self, name)):
                raise ValueError(f"data.test.{name}: {given}, and data.{name} is {ours}; give it there alone")
        object.__setattr__(self, "test", replace(self.test, size=self.size, channels=self.channels))

    def build(self, split: Split) -> Dataset:
        images = self._images()
        if split == "test":
            if images is None:
                raise ValueError(
                    "data.test: there are no test images; give them, or leave out what looks at "
                    "them (evaluate: null, run.measure_every: 0)"
                )
            return images
        given = None if self.labels is None else Path(self.labels).expanduser()
        files = LatentFiles(Path(self.root).expanduser(), given)
        labels, classes = _labelled(files, None if images is None else tuple(images.classes))
        return Latents(files, labels, classes, digest(files.fingerprint, labels, len(classes)))

    def image_folders(self) -> list[Path]:
        return [] if self.test is None else self.test.image_folders()

    def held_out(self) -> str:
        return "" if self.test is None else self._here(self.test.held_out())

    def _images(self) -> Dataset | None:
        """The test images. Raises ValueError as their data set does."""
        try:
            return None if self.test is None else open_dataset(self.test, "test")
        except ValueError as error:
            raise ValueError(self._here(str(error))).with_traceback(error.__traceback__) from error

    def _here(self, text: str) -> str:
        """What the data set of the test images says, with its fields where they stand here: data.test.root."""
        names = ("type", *(field.name for field in fields(self.test))) if self.test is not None else ()
        return re.sub(rf"(?<![\w./-])data\.(?=(?:{'|'.join(names)})\b)", "data.test.", text)


FLIP = "; files that hold latents_flip give the generator mirror images too"


def _labelled(files: LatentFiles, known: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    """(labels, class names): the test images' names where there are any."""
    labels = files.labels
    if labels is None:
        if known is None or len(known) != 1:
            raise ValueError(
                f"data.root: {files.paths[0]} has no labels; give them as data.labels, a .npy of {len(files)} integers "
                "(zeros for data without classes)"
            )
        return torch.zeros(len(files), dtype=torch.int64), known
    classes = files.names or known or numbered(labels, f"data.root: {files.root}")
    bad = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(bad):
        whose, mend = "data.test", "give test images of all classes, in class folders"
        if files.names:
            whose, mend = ENCODED, "name all classes there"
        raise ValueError(
            f"data.root: {files.where(int(bad[0]))} has the label {int(labels[bad[0]])}, and {whose} has "
            f"{counted(len(classes), 'class', 'classes')} ({few(classes)}): {mend}, or correct the labels"
        )
    if files.names is not None and known is not None and max(len(files.names), len(known)) > 1:
        unknown = [name for name in files.names if name not in known]
        if unknown or (files.linkable and files.names != known):  # labels in shards stay as they are
            raise ValueError(
                f"data.root: the latents in {files.root} are of the classes {few(files.names)}, and data.test has the "
                f"classes {few(known)}; give test images in class folders of the same names"
            )
        return torch.tensor([known.index(name) for name in files.names])[labels], known
    return labels, known or classes


class Latents:
    """Item i is (raw latent float32 [C, H, W], label). `tensor`: which of the files' tensors is read."""

    def __init__(
        self, files: LatentFiles, labels: Tensor, classes: tuple[str, ...], fingerprint: str, tensor: str = "latents"
    ) -> None:
        self.files, self.labels, self.classes, self.fingerprint = files, labels, classes, fingerprint
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        z, labels = self.__getitems__([index])
        return z[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.files.read(indices, self.tensor).float(), self.labels[torch.as_tensor(indices)]

    def mirrors(self) -> Latents | None:
        """The latents of the mirror images, in the same order; None where the files hold none."""
        if not self.files.mirrored:
            return None
        return Latents(self.files, self.labels, self.classes, self.fingerprint, MIRRORS)
