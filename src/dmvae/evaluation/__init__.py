"""Measuring: feature extractors, Frechet distances, image metrics, statistics of latents."""
