"""Adversarial matching: the critic tells two Gaussians apart, and latents follow it to the reference."""

import pytest
import torch
from small import Halves
from torch.nn import DataParallel

from dmvae import config as configs
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import Context
from dmvae.matching.adversarial import Adversarial, Critic
from dmvae.matching.dmd import DMD
from dmvae.references.gaussian import Gaussian
from dmvae.runtime.random import Random

SHAPE, CLASSES = (2, 3, 3), 3


def play(latents, reference, *, steps, learning_rate=0.0, labels=None, penalty=1.0):
    """`steps` turns of the critic, each followed by one of the latents; returns the critic, its last figures and the
    latents."""
    torch.manual_seed(0)
    matching = Adversarial(width=32, depth=1, penalty=penalty)
    critic = matching.new_student(SHAPE, CLASSES, None, FlowModelConfig())
    z = latents.clone().requires_grad_()
    labels = torch.zeros(len(z), dtype=torch.int64) if labels is None else labels
    optimizers = [
        torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.9, 0.95)),
        torch.optim.Adam([z], learning_rate, betas=(0.9, 0.95)),
    ]
    for step in range(steps):
        context = Context(Random(1, step), CLASSES, reference=reference)
        student_loss, log = matching.student_loss(critic, z.detach(), labels, context)
        loss, _ = matching.loss(z, labels, None, critic, context)
        for optimizer, value, over in zip(
            optimizers, (student_loss, loss), (list(critic.parameters()), [z]), strict=True
        ):
            optimizer.zero_grad()
            value.backward(inputs=over, retain_graph=True)
        for optimizer in optimizers:
            optimizer.step()
    return critic, log, z.detach()


def test_it_brings_its_student_and_dmd_copies_the_teacher():
    model = FlowModelConfig(width=16, depth=1, heads=2)
    teacher = model.build(SHAPE, CLASSES)
    assert isinstance(Adversarial().new_student(SHAPE, CLASSES, teacher, model), Critic)
    student = DMD().new_student(SHAPE, CLASSES, teacher, model)
    assert student is not teacher
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


@pytest.mark.slow
def test_the_critic_separates_two_gaussians():
    latents = 2 + 0.5 * Random(0).normal(64, *SHAPE)
    _, log, _ = play(latents, Gaussian(SHAPE, CLASSES, 1.0), steps=60)
    assert log["critic/accuracy"] > 0.95
    assert log["critic/reference"] > 1 > -1 > log["critic/latents"]


@pytest.mark.slow
def test_latents_follow_the_critic_to_the_reference():
    latents = 3 + 0.3 * Random(0).normal(64, *SHAPE)
    _, _, z = play(latents, Gaussian(SHAPE, CLASSES, 1.0), steps=200, learning_rate=3e-2)
    assert z.mean().abs() < 0.3
    assert 0.6 < z.std() < 1.5


@pytest.mark.slow
def test_the_critic_listens_to_labels():
    """Latents that lie where the reference does, under the wrong labels, are found out."""
    labels = torch.arange(64) % 2
    wrong = (2 - 4.0 * labels).view(-1, 1, 1, 1) + 0.3 * Random(0).normal(64, *SHAPE)
    _, log, _ = play(wrong, Halves(SHAPE), steps=80, labels=labels)
    assert log["critic/accuracy"] > 0.95


@pytest.mark.slow
def test_the_penalty_flattens_the_critic():
    latents = 4 + 0.3 * Random(0).normal(64, *SHAPE)
    reference = Gaussian(SHAPE, CLASSES, 0.3)
    slopes = [play(latents, reference, steps=60, penalty=penalty)[1]["critic/slope"] for penalty in (1e-6, 10.0)]
    assert slopes[1] < 0.5 * slopes[0]
    assert "critic/slope" not in play(latents, reference, steps=1, penalty=0.0)[1]


def test_the_pull_is_on_latents_alone():
    critic, _, z = play(Random(0).normal(8, *SHAPE), Gaussian(SHAPE, CLASSES, 1.0), steps=1)
    matching = Adversarial()
    z.requires_grad_()
    labels = torch.zeros(8, dtype=torch.int64)
    loss, _ = matching.loss(z, labels, None, critic, Context(Random(0), CLASSES))
    critic.zero_grad()
    loss.backward()
    assert torch.equal(loss, torch.nn.functional.softplus(-critic(z, labels)).mean())
    assert z.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())


def test_a_new_critic_says_the_same_under_every_label():
    critic, z = Critic(2, CLASSES, 8, 1), Random(0).normal(1, *SHAPE).expand(CLASSES + 1, -1, -1, -1)
    assert len(critic(z, torch.arange(CLASSES + 1)).unique()) == 1


def test_the_penalty_is_half_the_square_of_the_slope():
    critic, _, z = play(Random(0).normal(8, *SHAPE), Gaussian(SHAPE, CLASSES, 1.0), steps=1)
    found = []
    for penalty in (0.0, 1.0, 3.0):
        context = Context(Random(2), CLASSES, reference=Gaussian(SHAPE, CLASSES, 1.0))
        labels = torch.zeros(8, dtype=torch.int64)
        found.append(Adversarial(penalty=penalty).student_loss(critic, z, labels, context))
    slope = float(found[1][1]["critic/slope"])
    assert float(found[1][0] - found[0][0]) == pytest.approx(0.5 * slope, rel=1e-4)
    assert float(found[2][0] - found[0][0]) == pytest.approx(1.5 * slope, rel=1e-4)


def test_a_perfect_critic_s_gradient_descends_the_softened_reverse_divergence():
    """p = N(0, 1) and q = N(shift, 1): d / d shift of 2 KL((p + q) / 2 || p), by quadrature, is the mean over latents
    of n times the gradient."""
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = lambda mean: (-0.5 * (x - mean).square()).exp() / (2 * torch.pi) ** 0.5

    def divergence(shift):
        both = density(0.0) + density(shift)
        return float(torch.trapezoid(both * (both / 2 / density(0.0)).log(), x))

    shift = 1.5
    z = (shift + Random(0).normal(40000, 1, 1, 1)).requires_grad_()
    critic = lambda z, labels: (shift**2 / 2 - shift * z).flatten()
    loss, _ = Adversarial().loss(z, torch.zeros(len(z), dtype=torch.int64), None, critic)
    (gradient,) = torch.autograd.grad(loss, z)
    slope = (divergence(shift + 1e-3) - divergence(shift - 1e-3)) / 2e-3
    assert float(gradient.sum()) == pytest.approx(slope, rel=0.02)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="width: expected a whole number, 1 to"):
        configs.read(Adversarial, {"width": 0})


def test_under_autocast_its_slopes_have_all_their_digits():
    """So has the gradient at latents: a product of a backward pass within autocast would be rounded to bf16."""
    torch.manual_seed(0)
    critic, z, labels = Critic(SHAPE[0], CLASSES, 32, 1), Random(0).normal(8, *SHAPE), torch.arange(8) % CLASSES
    found = []
    for bf16 in (False, True):
        context = Context(Random(1), CLASSES, reference=Gaussian(SHAPE, CLASSES, 1.0))
        at = z.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, log = Adversarial().student_loss(critic, z, labels, context)
            pull = torch.autograd.grad(Adversarial().loss(at, labels, None, critic, context)[0], at)
        found.append([log["critic/slope"], *pull, *torch.autograd.grad(loss, list(critic.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def compiled(critic):
    return torch.compile(critic, backend="aot_eager")


def compiled_in_place(critic):
    critic.compile(backend="aot_eager")
    return critic


@pytest.mark.parametrize(
    "way", [compiled, compiled_in_place, lambda c: DataParallel(compiled(c)), lambda c: compiled(DataParallel(c))]
)
def test_a_critic_in_torch_compile_has_its_penalty_too(way):
    losses = []
    for wrapped in (lambda critic: critic, way):
        torch.manual_seed(0)
        critic = Adversarial(width=8, depth=1).new_student(SHAPE, CLASSES, None, FlowModelConfig())
        context = Context(Random(0), CLASSES, reference=Gaussian(SHAPE, CLASSES, 1.0))
        z, labels = Random("z").normal(8, *SHAPE), torch.arange(8) % CLASSES
        loss, _ = Adversarial(width=8, depth=1).student_loss(wrapped(critic), z, labels, context)
        loss.backward()
        losses.append(torch.stack([loss.detach(), critic.embed.weight.grad.norm()]))
    assert torch.equal(*losses)
