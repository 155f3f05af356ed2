"""What a loop of one's own passes: a plain generator as randomness, its own samples as a reference; and mistakes."""

from types import SimpleNamespace

import pytest
import torch

from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.matching import DMD, Context, Transport
from dmvae.references import draw
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random
from dmvae.transport.arrival import multiples

SHAPE, CLASSES = (4, 4, 4), 3
MODEL = FlowModelConfig(width=16, depth=1, heads=2)
LABELS = torch.arange(8) % CLASSES


def latents(n=8):
    return Random("z").normal(n, *SHAPE)


def aligned(rng):
    torch.manual_seed(0)
    alignment = RepaE(model=MODEL, width=16)
    return alignment.losses(alignment.projection(SHAPE, CLASSES, 6), latents(), LABELS, torch.ones(8, 6, 4, 4), rng)[1]


def trained(rng):
    torch.manual_seed(0)
    return MODEL.build(SHAPE, CLASSES).loss(latents(), LABELS, rng)


def drawn(rng):
    return draw(Gaussian(SHAPE, CLASSES, 1.0), 8, rng, "cpu")[0]


@pytest.mark.parametrize("what", [aligned, trained, drawn])
def test_a_plain_generator_is_enough_for_generators_references_and_alignments(what):
    first, again, other = (what(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("given", [latents(), Gaussian, lambda n, rng: latents(n)], ids=["tensor", "class", "function"])
def test_a_reference_that_gives_no_samples_is_told(given):
    with pytest.raises(ValueError, match=r"reference: give an object with sample\(n, rng\)"):
        Context(Random(0), CLASSES, reference=given)


@pytest.mark.parametrize("sample", [latents, lambda n: (latents(n), None), lambda n: (latents(n), LABELS, 1)])
def test_samples_that_are_not_what_was_asked_for_are_told(sample):
    reference = SimpleNamespace(sample=lambda n, rng: sample(n))
    with pytest.raises(ValueError, match=r"reference: sample\(n, rng\) of .* give two tensors"):
        Transport(samples=64).loss(latents(), LABELS, context=Context(Random(0), CLASSES, reference=reference))


def test_a_reference_in_the_place_of_its_velocity_is_told():
    student = MODEL.build(SHAPE, CLASSES)
    with pytest.raises(ValueError, match=r"teacher: a Gaussian cannot be called.*velocity"):
        DMD().loss(latents(), LABELS, Gaussian(SHAPE, CLASSES, 1.0), student)


def test_arrival_of_latents_of_another_shape_is_told():
    with pytest.raises(ValueError, match="both must be"):
        multiples(latents(40), torch.zeros(90, 4, 8, 8), Random(0))
