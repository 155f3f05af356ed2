"""Figures of how latents lie, of batches of one image too."""

import pytest
import torch

from dmvae.runtime.transfer import made
from dmvae.stages.bounds import shape_of, spread


def test_a_spread_is_about_the_mean_of_each_element():
    z = torch.tensor([[-1.0, 5.0], [1.0, 11.0]]).view(2, 1, 1, 2)  # variances 2 and 18
    assert float(spread(z)) == pytest.approx(10**0.5)
    assert float(spread(z[:1].expand(3, -1, -1, -1))) == 0
    assert float(spread(2 * z + 7)) == pytest.approx(2 * 10**0.5)
    assert float(spread(z[:1])) == pytest.approx(18**0.5), "of one latent that over its elements"


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 1, 1), (1, 4, 2, 2), (2, 4, 1, 1), (2, 1, 1, 1)])
def test_they_are_numbers_however_few_latents_there_are(shape):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    figures = {name: float(made(value)) for name, value in shape_of(z).items()}
    assert all(torch.tensor([*figures.values(), float(spread(z))]).isfinite())
    assert ("health/std" in figures) == ("health/effective_rank" in figures) == (z[:, 0].numel() > 1)
