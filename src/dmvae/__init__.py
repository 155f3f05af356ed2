"""Distribution-Matching VAE: tokenizers whose latents follow a distribution that you choose."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmvae.interop.pipeline import DMVAEPipeline
    from dmvae.library import Run, run
    from dmvae.models.dit import LightningDiT
    from dmvae.models.dit_dh import DiTDH
    from dmvae.models.sit import SiT
    from dmvae.tokenizers.adapted import AdaptedTokenizer
    from dmvae.tokenizers.autoencoder import Autoencoder

__version__ = "0.2.0"
"""Also in CITATION.cff, and at the head of CHANGELOG.md; pyproject.toml reads it here."""

__all__ = ["AdaptedTokenizer", "Autoencoder", "DMVAEPipeline", "DiTDH", "LightningDiT", "Run", "SiT", "run"]

_HOMES = {
    "run": "dmvae.library",
    "Run": "dmvae.library",
    "Autoencoder": "dmvae.tokenizers.autoencoder",
    "LightningDiT": "dmvae.models.dit",
    "SiT": "dmvae.models.sit",
    "DiTDH": "dmvae.models.dit_dh",
    "AdaptedTokenizer": "dmvae.tokenizers.adapted",
    "DMVAEPipeline": "dmvae.interop.pipeline",
    # Pipelines on disk name their parts as members of `dmvae`, and diffusers looks for the base class beside them.
    "ModelMixin": "diffusers.models.modeling_utils",
}


def __getattr__(name: str) -> Any:
    """Models import torch and diffusers, which take seconds: on first use, so that `dmvae --help` does not wait."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dmvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a notebook offers after `dmvae.`: before their first use these names are not in the module."""
    return sorted({*globals(), *__all__})
