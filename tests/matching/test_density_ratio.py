"""DMD for other divergences: each latent weighs by a density ratio, which a classifier learns."""

import pytest
import torch
from small import CLASSES, LABELS, SHAPE, STUDENT, TEACHER, N, drawn
from torch import nn

from dmvae.flow.path import expand, interpolate
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import Context
from dmvae.matching.dmd import DMD, WithRatio, gradient
from dmvae.runtime import sharding
from dmvae.runtime.random import Random
from dmvae.training.preparing import checkpoint_activations
from dmvae.training.stage import Networks


class Flow(nn.Module):
    def forward(self, z_t, t, labels):
        return STUDENT.velocity(z_t, t, labels)


class Exact(nn.Module):
    """log p_t - log q_t of the two Gaussians, which a trained classifier approaches."""

    def forward(self, x, labels):
        z_t, t = x[:, :-1], x[:, -1:]
        p, q = (t.square() * of.variance + (1 - t).square() for of in (TEACHER, STUDENT))
        return (0.5 * (z_t.square() * (1 / q - 1 / p) + (q / p).log())).sum(dim=(1, 2, 3))


@pytest.mark.parametrize(("divergence", "h"), [("forward_kl", lambda r: r), ("jensen_shannon", lambda r: r / (1 + r))])
def test_other_divergences_weigh_by_the_density_ratio(divergence, h):
    z = (0.4 * Random(0).normal(N, *SHAPE)).requires_grad_()
    objective, student = DMD(guidance=1.0, divergence=divergence), WithRatio(Flow(), Exact())
    loss, log = objective.loss(z, LABELS, TEACHER.velocity, student, Context(Random(1), CLASSES))
    (pull,) = torch.autograd.grad(loss, z)
    t, noise = drawn(1)
    z = z.detach()
    g, _ = gradient(z, noise, t.flatten(), LABELS, TEACHER.velocity, STUDENT.velocity, 1.0, CLASSES)
    z_t = interpolate(noise=noise, z=z, t=t.flatten())
    p, q = ((t.square() * of.variance + (1 - t).square()).sqrt() for of in (TEACHER, STUDENT))
    densities = [torch.distributions.Normal(0, s.expand_as(z)).log_prob(z_t).sum((1, 2, 3)) for s in (p, q)]
    weight = h((densities[0] - densities[1]).clamp(-4, 4).exp())
    torch.testing.assert_close(pull * z.numel(), expand(weight / weight.mean(), g) * g, rtol=1e-4, atol=1e-5)
    assert log["ratio/weight_std"] > 0


def test_one_image_s_weight_has_no_spread():
    given = TEACHER.velocity, WithRatio(Flow(), Exact()), Context(Random(1), CLASSES)
    z = Random(0).normal(1, *SHAPE).requires_grad_()
    _, log = DMD(guidance=1.0, divergence="forward_kl").loss(z, LABELS[:1], *given)
    assert all(value.isfinite().all() for value in log.values())


@pytest.mark.slow
def test_the_ratio_is_learned_beside_the_student():
    torch.manual_seed(0)
    objective = DMD(divergence="jensen_shannon", ratio_width=16, ratio_depth=1)
    model = FlowModelConfig(width=16, depth=1, heads=2)
    student = objective.new_student(SHAPE, CLASSES, model.build(SHAPE, CLASSES), model)
    assert student.config.num_classes == CLASSES
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    labels = torch.zeros(64, dtype=torch.int64)
    for step in range(40):
        z = 2 + 0.5 * Random(0, step).normal(64, *SHAPE)
        context = Context(Random(1, step), CLASSES, reference=TEACHER)
        loss, log = objective.student_loss(student, z, labels, context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert log["ratio/accuracy"] > 0.65
    late = torch.full((64,), 0.9)
    wrapped, at = torch.compile(student, backend="eager"), z.clone().requires_grad_()
    for loss in (
        lambda of: objective.student_loss(of, z, labels, Context(Random(0), CLASSES, reference=TEACHER)),
        lambda of: objective.loss(at, labels, TEACHER.velocity, of, Context(Random(0), CLASSES)),
    ):
        torch.testing.assert_close(loss(wrapped)[0], loss(student)[0])
    assert student.log_ratio(0.9 * z, late, labels).mean() < -1 < 1 < student.log_ratio(0 * z, late, labels).mean()
    with pytest.raises(ValueError, match=r"jensen_shannon compares latents with samples: give context="):
        objective.student_loss(student, z, labels, Context(Random(0), CLASSES))
    with pytest.raises(ValueError, match="jensen_shannon needs a student that `new_student` made"):
        objective.loss(at, labels, TEACHER.velocity, STUDENT.velocity, Context(Random(0), CLASSES))


def test_the_student_with_a_ratio_can_be_sharded_and_compute_activations_again():
    objective = DMD(divergence="forward_kl", ratio_width=8, ratio_depth=1)
    model = FlowModelConfig(width=16, depth=2, heads=2)
    student, labels = objective.new_student(SHAPE, CLASSES, None, model), torch.zeros(8, dtype=torch.int64)
    for parameter in student.flow.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert sharding.shardable(student) == [student.flow, student.critic]
    assert sharding.shardable(WithRatio(Flow(), Exact())) == []
    assert sharding.shard(student) == {}
    assert sharding.whole_module(student) is student
    found = []
    for again in (False, True):
        if again:
            networks = Networks()
            networks.student = student
            checkpoint_activations(networks, ["student"])
        assert student.flow.gradient_checkpointing == again
        student.zero_grad()
        context = Context(Random(1), CLASSES, reference=TEACHER)
        objective.student_loss(student, Random(0).normal(8, *SHAPE), labels, context)[0].backward()
        found.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    networks.student = WithRatio(Flow(), Exact())
    with pytest.raises(ValueError, match="'student', a WithRatio, has no blocks that can be computed again"):
        checkpoint_activations(networks, ["student"])


def test_the_plain_divergence_asks_for_nothing_new():
    assert not DMD().needs_reference
    assert DMD(divergence="forward_kl").needs_reference
    model = FlowModelConfig(width=16, depth=1, heads=2)
    assert not isinstance(DMD().new_student(SHAPE, CLASSES, None, model), WithRatio)
