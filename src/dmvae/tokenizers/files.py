"""What the sources that read files have in common: a class, its config, its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dmvae.config import Values
from dmvae.runtime.hashing import sha256_of
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.network import Adapter


@dataclass(frozen=True, kw_only=True)
class FileSource(TokenizerSource):
    """A model that files hold."""

    path: str
    """Where the model lies."""
    config: Values | None = None
    """The model's config, as an artifact keeps it; read from the files, so leave it out."""

    def read_config(self) -> Values:
        """The model's config as its files say. Raises ValueError where there are none."""
        raise NotImplementedError

    def read_model(self) -> nn.Module:
        """The model with its weights, float32. Raises ValueError where they do not fit."""
        raise NotImplementedError

    def model_class(self) -> Any:
        """The diffusers class of a resolved source."""
        raise NotImplementedError

    def resolve(self) -> FileSource:
        return dataclasses.replace(self, config=self.read_config())

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Adapter:
        source = self if self.config is not None else self.resolve()
        model = source.read_model() if pretrained else source.model_class().from_config(source.config)
        return Adapter(model, size=size, channels=channels)

    def fingerprint(self) -> str:
        """sha256 of the names and contents of the file or the folder's files; "" for a model on a hub, whose id
        stands for it."""
        sha = hashlib.sha256()
        path = self.place
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                sha.update(f"{file.name} {sha256_of(file)}\n".encode())
        return sha.hexdigest()[:16] if path.exists() else ""

    @property
    def place(self) -> Path:
        """The file or folder that `path` means."""
        return Path(self.path).expanduser()
