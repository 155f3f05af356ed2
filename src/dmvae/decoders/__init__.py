"""Decoders: latents [n, C, H, W] -> images."""
