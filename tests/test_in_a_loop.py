"""What a loop of one's own passes: a plain generator as randomness, its own samples as a reference; and mistakes."""

from types import SimpleNamespace

import pytest
import torch

from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.matching import DMD, Context, Matching, Transport
from dmvae.references import draw
from dmvae.references.gaussian import Gaussian
from dmvae.registry import find, names
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
    z, context = latents().requires_grad_(), Context(Random(0), CLASSES, reference=reference)
    with pytest.raises(ValueError, match=r"reference: sample\(n, rng\) of .* give two tensors"):
        Transport(samples=64).loss(z, LABELS, context=context)


def test_a_reference_in_the_place_of_its_velocity_is_told():
    student = MODEL.build(SHAPE, CLASSES)
    with pytest.raises(ValueError, match=r"teacher: a Gaussian cannot be called.*velocity"):
        DMD().loss(latents(), LABELS, Gaussian(SHAPE, CLASSES, 1.0), student)


@pytest.mark.parametrize("name", names(Matching))
def test_latents_without_a_gradient_are_told_unless_their_value_alone_is_wanted(name):
    objective, reference = find(Matching, name)(), Gaussian(SHAPE, CLASSES, 1.0)
    student = objective.new_student(SHAPE, CLASSES, reference.velocity, MODEL)
    for distance in (1.0, 9.0):  # hand_over asks either of its two
        context = Context(Random(0), CLASSES, reference=reference, distance=distance)
        with pytest.raises(ValueError, match=r"z: it has no gradient.* give what the encoder returned, not z\.detach"):
            objective.loss(latents(), LABELS, reference.velocity, student, context)
        with torch.no_grad():
            loss, _ = objective.loss(latents(), LABELS, reference.velocity, student, context)
        assert loss.isfinite()


def test_arrival_of_latents_of_another_shape_is_told():
    with pytest.raises(ValueError, match="both must be"):
        multiples(latents(40), torch.zeros(90, 4, 8, 8), Random(0))
