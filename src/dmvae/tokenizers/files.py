"""What the sources that read files have in common: a class, its config, its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from dmvae.config import Values
from dmvae.runtime.hashing import sha256_of
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.network import Adapter

M = TypeVar("M", bound=ModelMixin)


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


def load_strictly(cls: type[M], path: str | Path, **kwargs: object) -> M:
    """`cls.from_pretrained` in float32, with a ValueError where diffusers warns: weights too many or too few."""
    model: M
    read: Callable[..., Any] = cls.from_pretrained  # gives a pair where it is asked for what did not fit
    try:
        model, info = read(
            path,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # see Model.from_pretrained
            ignore_mismatched_sizes=True,  # they are reported below, with the rest
            output_loading_info=True,
            **kwargs,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: the weights do not load as {cls.__name__}: {error}") from error
    kinds = {"missing": "missing_keys", "unknown": "unexpected_keys", "of another shape": "mismatched_keys"}
    wrong = [f"{len(info[key])} {kind}, such as {min(map(str, info[key]))}" for kind, key in kinds.items() if info[key]]
    if wrong:
        raise ValueError(f"{path}: these are not the weights of this {cls.__name__}: {'; '.join(wrong)}")
    return model
