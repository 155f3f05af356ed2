"""A transformer of timm's that is small enough for tests."""

from dmvae.encoders.timm import TimmEncoder


def tiny_vit(**changes) -> TimmEncoder:
    return TimmEncoder(model="vit_tiny_patch16_224", patch_size=4, kwargs={"depth": 1}, **changes)
