"""The base of sources that read files: a class, its config, its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dmvae.config import Values
from dmvae.models.artifact import require_weights
from dmvae.models.base import Model
from dmvae.runtime.hashing import sha256_of
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.network import Adapter


@dataclass(frozen=True, kw_only=True)
class FileSource(TokenizerSource):
    """A model in files."""

    path: str
    """The model's file or folder."""
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
        found = dataclasses.replace(self, config=self.read_config())
        if self.place.is_dir():
            found.model_class()  # raises for an unknown class, before weights are looked for
            require_weights(self.place)
        return found

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Adapter:
        source = self if self.config is not None else self.resolve()
        model = source.read_model() if pretrained else _blank(source.model_class(), source.config or {})
        return Adapter(model, size=size, channels=channels, scaled=self.scaled)

    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of the names and contents of the file or the folder's files; "" for a model on a
        hub, which its id identifies."""
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


def _blank(cls: Any, config: Values) -> nn.Module:
    """A model with random weights. Entries of the config that its class does not take are left out: some classes of
    diffusers write such entries, and diffusers then warns of them."""
    if issubclass(cls, Model):  # our classes also read fields of earlier versions
        return cls.from_config(config)
    takes = inspect.signature(cls.__init__).parameters
    return cls.from_config({name: value for name, value in config.items() if name in takes or name.startswith("_")})
