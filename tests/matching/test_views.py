"""What transport looks at: tokens, pairs of them, whole latents, random convolutions."""

import pytest
import torch

from dmvae.matching import Context, Matching
from dmvae.references.gaussian import Gaussian
from dmvae.registry import find
from dmvae.runtime.random import Random


class Texture:
    """Tokens that are normal, as white noise's are, each with a correlation of 1/2 to its right neighbour."""

    def sample(self, n, rng):
        x = rng.normal(n, 1, 8, 9)
        return (x[..., 1:] + x[..., :-1]) / 2**0.5, torch.zeros(n, dtype=torch.int64)


def of_texture(z, *views, step=0, reference=None):
    """Transport along few random directions, from latents z to a texture."""
    objective = find(Matching, "transport")(views=views, slices=4, along=("random",), samples=64)
    context = Context(Random(1, step), 1, reference=reference or Texture())
    return objective.loss(z, torch.zeros(len(z), dtype=torch.int64), context=context)


def correlation(z):
    return float((z[..., 1:] * z[..., :-1]).mean() / z.square().mean())


@pytest.mark.parametrize(("view", "expected"), [("token", 0.0), ("whole", 0.0), ("convolution", 0.5)])
def test_random_convolutions_see_a_texture_that_tokens_and_few_whole_slices_do_not(view, expected):
    z = Random(0).normal(32, 1, 8, 8).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        of_texture(z, view, step=step)[0].backward()
        optimizer.step()
    assert correlation(z.detach()) == pytest.approx(expected, abs=0.08)


def test_a_convolution_is_one_for_both_sets_and_a_new_one_in_each_update():
    z = Random(0).normal(32, 1, 8, 8).requires_grad_()

    class Same:
        def sample(self, n, rng):
            return z.detach(), torch.zeros(n, dtype=torch.int64)

    distances = [float(of_texture(z, "convolution", step=step)[0].detach()) for step in (0, 0, 1)]
    assert distances[0] == distances[1] != distances[2]
    loss, log = of_texture(z, "convolution", reference=Same())
    assert float(loss.detach()) == pytest.approx(0, abs=1e-8)
    assert set(log) == {"transport/convolution"}


def test_a_single_token_has_no_pairs():
    z = Random(0).normal(8, 1, 1, 1).requires_grad_()
    point = Gaussian((1, 1, 1), 1, 1.0)
    assert set(of_texture(z, "token", "pair", "convolution", reference=point)[1]) == {
        "transport/token",
        "transport/convolution",
    }
    with pytest.raises(ValueError, match=r"views: latents with a single token have no pairs .* give whole or token"):
        of_texture(z, "pair", reference=point)
