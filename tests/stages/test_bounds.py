"""Figures of how latents lie, of batches of one image too."""

import pytest
import torch

from dmvae.runtime.transfer import made
from dmvae.stages.bounds import shape_of, spread


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 1, 1), (1, 4, 2, 2), (2, 4, 1, 1), (2, 1, 1, 1)])
def test_they_are_numbers_however_few_latents_there_are(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    figures = {name: float(made(value)) for name, value in shape_of(z).items()}
    assert all(torch.tensor([*figures.values(), float(spread(z))]).isfinite())
    assert ("health/std" in figures) == ("health/effective_rank" in figures) == (z[:, 0].numel() > 1)
