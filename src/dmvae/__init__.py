"""Distribution-Matching VAE: tokenizers whose latents follow a distribution that you choose."""
