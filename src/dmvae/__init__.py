"""Distribution-Matching VAE: tokenizers whose latents follow a distribution that you choose."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmvae.models import Autoencoder, LightningDiT

__version__ = "0.1.0"
__all__ = ["Autoencoder", "LightningDiT"]


def __getattr__(name: str) -> Any:
    """Models import torch and diffusers, which take seconds: on first use, so that `dmvae --help` does not wait."""
    if name in __all__:
        from dmvae import models

        return getattr(models, name)
    raise AttributeError(f"module 'dmvae' has no attribute {name!r}")
