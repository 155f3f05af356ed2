"""Tokenizer `diffusers`: any image autoencoder of the diffusers library, from a folder or a hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from dmvae.config import Values
from dmvae.models.artifact import load_strictly
from dmvae.models.base import Model
from dmvae.registry import register
from dmvae.runtime.files import read_json
from dmvae.runtime.hub import hub
from dmvae.spelling import close, nearest
from dmvae.tokenizers.files import FileSource

# Those for images. Classes for videos and sound fail when their latents are measured.
IMAGE_CLASSES = (
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanImage",
    "AutoencoderRAE",
    "AutoencoderTiny",
    "VQModel",
)


OURS = ("Autoencoder", "AdaptedTokenizer")
"""Names, not classes: `adapted.ARTIFACTS` has the classes, and imports this module."""


@register("diffusers")
@dataclass(frozen=True, kw_only=True)
class DiffusersTokenizer(FileSource):
    """What `from_pretrained` of a class in diffusers loads, such as stabilityai/sd-vae-ft-ema.

    Latents are raw: the statistics that the stage `latents` measures are used in place of the config's scaling_factor,
    unless `latents.statistics: own` asks for that.
    """

    path: str
    """A folder that holds config.json and weights, or the id of a model on a hub."""
    subfolder: str | None = None
    """The model's folder below `path`: "vae" where that is a pipeline."""
    model: str | None = None
    """Name of the class in diffusers; what config.json says unless given."""

    @property
    def place(self) -> Path:
        return super().place / (self.subfolder or "")

    def read_config(self) -> Values:
        path, place = self._origin()
        here = Path(path)
        if here.is_file():
            raise ValueError(
                f"pretrained.path: {path} is a file; name the folder that holds it, or of a checkpoint of latent "
                "diffusion {type: vavae, path: FILE}"
            )
        if not here.is_dir() and (here.is_absolute() or "/" not in path):  # a hub's models are called owner/name
            known = [folder.name for folder in here.parent.glob("*/")]
            like = nearest(here.name, known) if close(here.name, known) else ""
            raise ValueError(f"pretrained.path: no such folder: {path}{like}")
        if (file := here / "config.json").is_file():
            read_json(file, dict)  # names what is damaged
        try:
            with hub(here):
                config = Model.load_config(path, **place)
        except (OSError, ValueError) as error:
            of = f" (subfolder {self.subfolder})" if self.subfolder else ""
            raise ValueError(
                f"pretrained.path: {self.path}{of} is neither a folder with a config.json nor "
                f"a model that the hub gave ({error}). Of a pipeline, name the model's folder as `subfolder`; for a "
                "hub's model, run once where the network is reachable and carry the cache over (HF_HUB_CACHE, by "
                "default ~/.cache/huggingface/hub)"
            ) from error
        assert isinstance(config, dict)  # diffusers gives a pair where it is asked for one
        return config

    def read_model(self) -> nn.Module:
        path, place = self._origin()
        with hub(path):
            return load_strictly(self.model_class(), path, **place)

    def _origin(self) -> tuple[str, dict[str, str | None]]:
        """What from_pretrained is to read: a folder here, or a hub's model and its subfolder."""
        local = self.place.is_dir() or self.place.is_absolute()
        return (str(self.place), {}) if local else (self.path, {"subfolder": self.subfolder})

    def model_class(self) -> type[ModelMixin]:
        import diffusers

        assert self.config is not None
        name = self.model or self.config.get("_class_name", "")
        if name in OURS:
            raise ValueError(f"pretrained: {self.path} is a tokenizer of dmvae; write {{type: dmvae, path: ...}}")
        cls = getattr(diffusers, name, None)
        if not (isinstance(cls, type) and issubclass(cls, ModelMixin) and hasattr(cls, "encode")):
            where = (
                "pretrained.model: " if self.model else f"pretrained: {self.path}: of the _class_name in config.json: "
            )
            raise ValueError(
                f"{where}diffusers {diffusers.__version__} has no autoencoder {name!r}{nearest(name, IMAGE_CLASSES)}"
            )
        if name == "AutoencoderRAE" and importlib.util.find_spec("transformers") is None:
            raise ValueError('AutoencoderRAE needs the package transformers: pip install "dmvae[rae]"')
        return cls
