"""What cannot be compared is said with its value and the fix."""

import pytest
import torch

from dmvae.transport.arrival import measure
from dmvae.transport.classes import by_class
from dmvae.transport.drift import kernel_drift
from dmvae.transport.energy import energy_distance
from dmvae.transport.mmd import mmd
from dmvae.transport.moments import moment_matching
from dmvae.transport.normality import normality
from dmvae.transport.sinkhorn import plan, sinkhorn_divergence
from dmvae.transport.sliced import sliced_wasserstein
from dmvae.transport.two_sample import two_sample_accuracy
from dmvae.transport.views import pairs, tokens

G = torch.Generator().manual_seed(0)
TWO_SETS = {
    "sliced": lambda z, y: sliced_wasserstein(z, y, G),
    "energy": energy_distance,
    "mmd": mmd,
    "sinkhorn": sinkhorn_divergence,
    "moments": moment_matching,
    "drift": kernel_drift,
}


@pytest.mark.parametrize("name", TWO_SETS)
def test_sets_of_other_shapes(name):
    with pytest.raises(ValueError, match=r"3 components and y of 4.*same view"):
        TWO_SETS[name](torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"z has shape \[5, 3, 2, 2\]; give vectors"):
        TWO_SETS[name](torch.zeros(5, 3, 2, 2), torch.zeros(5, 3, 2, 2))


@pytest.mark.parametrize("name", ["sliced", "energy", "mmd", "moments", "drift"])
def test_a_batch_too_small(name):
    least = 3 if name == "moments" else 2
    with pytest.raises(ValueError, match=f"z has 1 vectors; at least {least}.*larger batch"):
        TWO_SETS[name](torch.zeros(1, 3), torch.zeros(5, 3))


x = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliced_wasserstein(x, x, G, slices=2), "slices is 2 for 3 kinds"),
        (lambda: sliced_wasserstein(x, x, G, along=("sideways",)), "no kind 'sideways'.*choose"),
        (lambda: plan(x, 0.0), "eps is 0.0; give a number above 0"),
        (lambda: sinkhorn_divergence(x, x + 1, iterations=0), "iterations is 0"),
        (lambda: mmd(x, x, bandwidths=()), "bandwidths is empty"),
        (lambda: mmd(x, x, bandwidths=(1.0, -2.0)), "bandwidths is -2.0"),
        (lambda: kernel_drift(x, x, progress=1.5), "progress is 1.5"),
        (lambda: kernel_drift(x, x, bandwidths=(1.0, 0.0)), "bandwidths is 0.0"),
        (lambda: normality(x[0], G), r"z has shape \[3\]"),
        (lambda: normality(x, G, std=0.0), "std is 0.0"),
        (lambda: tokens(x), r"shape \[5, 3\]; this view needs"),
        (lambda: pairs(torch.zeros(2, 3, 1, 1)), "single token"),
        (
            lambda: by_class(energy_distance, x, torch.zeros(4).long(), x, torch.zeros(5).long()),
            r"labels has shape \[4\]",
        ),
        (lambda: by_class(energy_distance, x, torch.arange(5), x, torch.arange(5)), "no class has 2 latents"),
        (lambda: two_sample_accuracy(x, x), r"\[5, 3\].*give \[n, k, d\]"),
        (lambda: two_sample_accuracy(x[:, None], x[:, None]), "at least 8 items"),
        (lambda: measure(x, x), "must be"),
        (lambda: measure(torch.zeros(20, 1, 1, 1), torch.zeros(99, 1, 1, 1)), "20 latents.*at least 32"),
        (
            lambda: measure(torch.full((40, 1, 1, 1), torch.nan), torch.zeros(99, 1, 1, 1)),
            "NaN.*lower the learning rate",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()
