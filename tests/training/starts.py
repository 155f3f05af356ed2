"""Weights to start from."""

import torch

import tiny
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT

FILE = "diffusion_pytorch_model.safetensors"
FITS = {"in_channels": 4, "input_size": 3, "num_classes": 3, **tiny.DIT}


def saved(folder, **over):
    """A network of that form in a folder, with weights that no initialization gives."""
    torch.manual_seed(5)
    model = LightningDiT(**(FITS | over))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    save_network(model, folder)
    return folder
