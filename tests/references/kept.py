"""What a reference made from data keeps."""

import torch


def stored(reference):
    """All its latents, and their labels."""
    latents = reference.latents
    return latents.__getitems__(torch.arange(len(latents)))
