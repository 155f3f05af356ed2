"""Finished tokenizers small enough to build in a moment, each saved as its own project saves it."""

from pathlib import Path

import torch
from ldm import random_checkpoint

import tiny


def diffusers_model(name: str, **over):
    """A random autoencoder of diffusers: 3 channels, stride 2 (RAE: 4x4 latents). over: arguments of its own."""
    import diffusers

    conv = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    tiny_blocks = {"encoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}
    dc = {
        f"{side}_{field}": value
        for side in ("encoder", "decoder")
        for field, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), (5,)),
        }.items()
    }
    rae = {
        "encoder_hidden_size": 64,
        "encoder_num_hidden_layers": 1,
        "encoder_input_size": 56,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "patch_size": 4,
    }
    arguments = {
        "AutoencoderKL": conv,
        "VQModel": conv | {"num_vq_embeddings": 16},
        "AutoencoderTiny": tiny_blocks | {"decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)},
        "AutoencoderDC": dc | {"latent_channels": 8, "attention_head_dim": 4},
        "AutoencoderRAE": rae,
        "AutoencoderKLWan": {
            "base_dim": 8,
            "z_dim": 4,
            "dim_mult": [1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False],
        },
    }
    torch.manual_seed(0)
    return getattr(diffusers, name)(**arguments[name] | over).eval()


def own_model():
    from dmvae import Autoencoder

    torch.manual_seed(0)
    return Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12})


def source(kind: str, folder: Path) -> dict:
    """The recipe's section for a tokenizer of this kind, whose files lie in the folder: a class of diffusers, or a
    `type` of ours."""
    if kind == "identity":
        return {"type": "identity", "patch": 2}
    if kind == "vavae":
        torch.save({"state_dict": random_checkpoint(), "epoch": 3}, folder / "vavae.pt")
        return {"type": "vavae", "path": str(folder / "vavae.pt")}
    (own_model() if kind == "dmvae" else diffusers_model(kind)).save_pretrained(folder / "model")
    return {"type": "dmvae" if kind == "dmvae" else "diffusers", "path": str(folder / "model")}
