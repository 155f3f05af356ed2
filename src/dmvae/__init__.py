"""Distribution-Matching VAE: tokenizers whose latents follow a distribution that you choose."""

from dmvae.models import Autoencoder, LightningDiT

__version__ = "0.1.0"
__all__ = ["Autoencoder", "LightningDiT"]
