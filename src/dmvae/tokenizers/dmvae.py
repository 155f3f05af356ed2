"""Tokenizer `dmvae`: one that this package trained, from its artifact's folder."""

from __future__ import annotations

from dataclasses import dataclass

from dmvae.config import Values
from dmvae.models.base import Tokenizer
from dmvae.registry import register
from dmvae.tokenizers.adapted import ARTIFACTS, load_tokenizer, tokenizer_class
from dmvae.tokenizers.files import FileSource


@register("dmvae")
@dataclass(frozen=True, kw_only=True)
class DmvaeTokenizer(FileSource):
    """The tokenizer of an earlier run, to be shared by many generators or trained further."""

    path: str
    """The artifact's folder, such as runs/demo/matched/latents/autoencoder."""

    def read_config(self) -> Values:
        config = tokenizer_class(self.place).load_config(self.place)
        assert isinstance(config, dict)  # diffusers gives a pair where it is asked for one
        return config

    def read_model(self) -> Tokenizer:
        return load_tokenizer(self.place)

    def model_class(self) -> type[Tokenizer]:
        assert self.config is not None
        return next(cls for cls in ARTIFACTS if cls.__name__ == self.config["_class_name"])
