"""Random tensors by a seed of their own, whatever was drawn before."""

import torch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed))


def rotation(d: int) -> torch.Tensor:
    """[d, d], always the same."""
    return torch.linalg.qr(normal(d, d, seed=9).double())[0].float()
