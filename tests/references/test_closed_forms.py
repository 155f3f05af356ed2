"""Closed-form velocities and scores against autograd of the exact log-density."""

import math

import pytest
import torch

from dmvae.flow.guidance import guided
from dmvae.flow.path import score
from dmvae.flow.samplers import Sampling
from dmvae.flow.solver import sample
from dmvae.references.gaussian import Gaussian
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.references.noise_states import NoiseStates, NoiseStatesReference
from dmvae.runtime.random import Random

SHAPE = (2, 1, 2)
CLASSES = 3


def mixture(labels=(0, 0, 1, 2, 2), seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(5, *SHAPE, generator=generator, dtype=torch.float64)
    variances = 0.05 + torch.rand(5, *SHAPE, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])
    joint = joint_weights(weights, None if labels is None else torch.tensor(labels), CLASSES)
    return GaussianMixture(means, variances, joint, torch.zeros(2), torch.ones(2))


def density(parts, z_t, t):
    """log p_t of one state by torch.distributions; parts are (weight, mean, variance) of the clean components."""
    terms = []
    for weight, m, v in parts:
        normal = torch.distributions.Normal(t * m, (t**2 * v + (1 - t) ** 2).sqrt())
        terms.append(math.log(weight) + normal.log_prob(z_t).sum())
    return torch.stack(terms).logsumexp(0)


def parts_of(reference, label):
    """The components that a label names, of p(z | label) or, for no label, of p(z)."""
    joint = reference.joint if label == CLASSES else reference.joint[label : label + 1]
    weights = joint.sum(0) / joint.sum()
    return [(float(w), m, v) for w, m, v in zip(weights, reference.means, reference.variances, strict=True) if w > 0]


def gaussian_parts(variance):
    return [(1.0, torch.zeros(SHAPE, dtype=torch.float64), torch.full(SHAPE, variance, dtype=torch.float64))]


def noised_parts(parts, time):
    return [(w, time * m, time**2 * v + (1 - time) ** 2) for w, m, v in parts]


CASES = {
    "gaussian": (Gaussian(SHAPE, CLASSES, 1.7), lambda label: gaussian_parts(1.7**2)),
    "mixture": (mixture(), lambda label: parts_of(mixture(), label)),
    "mixture without classes": (mixture(None), lambda label: parts_of(mixture(None), label)),
    "noised gaussian": (
        NoiseStates(Gaussian(SHAPE, CLASSES, 1.7), 0.4),
        lambda label: noised_parts(gaussian_parts(1.7**2), 0.4),
    ),
    "noised mixture": (NoiseStates(mixture(), 0.7), lambda label: noised_parts(parts_of(mixture(), label), 0.7)),
    "twice noised mixture": (
        NoiseStates(NoiseStates(mixture(), 0.7), 0.5),
        lambda label: noised_parts(noised_parts(parts_of(mixture(), label), 0.7), 0.5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_score_and_velocity_are_those_of_the_log_density(name):
    """score = grad log p_t, and v from it: v = (z_t + (1 - t) score) / t, the inverse of the path's equation."""
    reference, parts = CASES[name]
    generator = torch.Generator().manual_seed(1)
    for label in range(CLASSES + 1):
        for time in (0.03, 0.3, 0.5, 0.8, 0.98):
            z_t = 1.5 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
            t = torch.tensor([time], dtype=torch.float64)
            x = z_t.clone().requires_grad_()
            (exact,) = torch.autograd.grad(density(parts(label), x, t[0]), x)
            velocity = reference.velocity(z_t[None], t, torch.tensor([label]))
            assert torch.allclose(score(z_t=z_t[None], velocity=velocity, t=t)[0], exact, atol=1e-5, rtol=1e-5)
            assert torch.allclose(velocity[0], (z_t + (1 - time) * exact) / time, atol=1e-5, rtol=1e-5)


def test_log_density_of_the_mixture():
    reference = mixture()
    z = torch.randn(4, *SHAPE, dtype=torch.float64)
    labels, t = torch.tensor([0, 1, 2, 3]), torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    exact = [density(parts_of(reference, int(c)), x, time) for x, c, time in zip(z, labels, t, strict=True)]
    assert torch.allclose(reference.log_prob(z, t, labels), torch.stack(exact))


@pytest.mark.parametrize("name", CASES)
def test_velocity_at_the_ends_is_finite(name):
    reference, _ = CASES[name]
    z = torch.randn(2, *SHAPE)
    v = reference.velocity(z, torch.tensor([0.0, 1.0]), torch.tensor([0, CLASSES]))
    assert v.isfinite().all()
    assert v.dtype is torch.float32


def test_no_label_is_the_mixture_over_classes_and_guidance_takes_it():
    """p(z) = sum_c p(c) p(z | c), and the guided velocity is v(p) + w (v(p_c) - v(p))."""
    reference = mixture()
    z_t, t = torch.randn(3, *SHAPE, dtype=torch.float64), torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
    prior = reference.joint.sum(1)
    each = torch.stack([reference.log_prob(z_t, t, torch.full((3,), c)) for c in range(CLASSES)], 1)
    null = torch.full((3,), CLASSES)
    assert torch.allclose((each + prior.log()).logsumexp(1), reference.log_prob(z_t, t, null))
    labels = torch.tensor([0, 1, 2])
    cond, uncond = reference.velocity(z_t, t, labels), reference.velocity(z_t, t, null)
    assert torch.allclose(guided(reference.velocity, 3.0, CLASSES)(z_t, t, labels), uncond + 3 * (cond - uncond))


def test_work_in_parts_changes_nothing(monkeypatch):
    reference = mixture()
    z_t, t, labels = torch.randn(7, *SHAPE), torch.rand(7), torch.arange(7) % (CLASSES + 1)
    whole = reference.velocity(z_t, t, labels)
    monkeypatch.setattr("dmvae.references.gaussian_mixture.ELEMENTS", 40)
    assert torch.allclose(reference.velocity(z_t, t, labels), whole, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_exact_moments(name):
    reference, parts = CASES[name]
    z, labels = reference.sample(40000, Random("moments"))
    assert z.dtype is torch.float32
    for label in range(CLASSES + 1):
        chosen = z if label == CLASSES else z[labels == label]
        mean, variance = moments(parts(label))
        assert torch.allclose(chosen.double().mean(0), mean, atol=0.05)
        assert torch.allclose(chosen.double().var(0), variance, atol=0.1, rtol=0.05)


def moments(parts):
    mean = sum(w * m for w, m, _ in parts)
    return mean, sum(w * (v + m**2) for w, m, v in parts) - mean**2


@pytest.mark.parametrize("name", ["gaussian", "mixture", "noised mixture"])
@pytest.mark.parametrize("label", [0, CLASSES])
def test_the_ode_carries_noise_to_the_reference(name, label):
    reference, parts = CASES[name]
    noise = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(2))
    z = sample(reference.velocity, noise, torch.full((4000,), label), Sampling(method="heun", steps=40)).double()
    mean, variance = moments(parts(label))
    assert torch.allclose(z.mean(0), mean, atol=0.08)
    assert torch.allclose(z.var(0), variance, atol=0.1, rtol=0.08)


def test_a_class_without_components_stands_for_the_whole_mixture():
    joint = joint_weights(torch.tensor([1.0, 3.0]), torch.tensor([0, 2]), 4)
    assert torch.allclose(joint.sum(0), torch.tensor([0.25, 0.75], dtype=torch.float64))
    assert torch.allclose(joint[1], joint.sum(0) / 4)
    assert torch.allclose(joint[3], joint.sum(0) / 4)
    assert (joint.sum(1) > 0).all()


def test_labels_of_noise_alone_say_nothing():
    of = NoiseStatesReference().of
    for time in (0.0, 0.01, 1.0):
        assert NoiseStatesReference(of=of, time=time).labelled == (time > 0)
        assert NoiseStatesReference(of=of, time=time).labelled_for(None) == (time > 0)


def test_the_ends_of_noise_states():
    """time = 1 leaves the reference alone; time = 0 leaves a standard normal."""
    inner = mixture()
    z_t, labels = torch.randn(3, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, CLASSES])
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.allclose(NoiseStates(inner, 1.0).velocity(z_t, t, labels), inner.velocity(z_t, t, labels))
    normal = Gaussian(SHAPE, CLASSES, 1.0).velocity(z_t, t, labels)
    assert torch.allclose(NoiseStates(inner, 0.0).velocity(z_t, t, labels), normal)
