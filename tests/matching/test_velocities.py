"""Objectives that ask teacher and student for velocities: their gradients are the equations in their docstrings."""

from types import SimpleNamespace

import pytest
import torch
from small import CLASSES, LABELS, SHAPE, STUDENT, TEACHER, N, drawn
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dmvae.flow.loss import flow_matching_loss
from dmvae.flow.path import interpolate
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import Context, Matching, as_promised
from dmvae.matching.dmd import DMD
from dmvae.matching.velocities import binned
from dmvae.references.gaussian import Gaussian
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.registry import find
from dmvae.runtime.random import Random

STOPS = ("none", "target", "network")


def slope(reference, t):
    """a of the Gaussian's velocity a z_t: its Jacobian is a times the identity."""
    return (t * reference.variance - (1 - t)) / (t.square() * reference.variance + (1 - t).square())


def flow_loss(stop, **signs):
    """The docstring's gradient times numel."""

    def formula(z, t, noise):
        total = 0
        for name, sign in signs.items():
            a = slope({"teacher": TEACHER, "student": STUDENT}[name], t)
            r = a * interpolate(noise=noise, z=z, t=t.flatten()) - (z - noise)
            total = total + sign * {"none": t * a * r - r, "target": t * a * r, "network": -r}[stop]
        return total

    return formula


def velocity_gap(stop):
    def formula(z, t, noise):
        a, b = slope(TEACHER, t), slope(STUDENT, t)
        d = (a - b) * interpolate(noise=noise, z=z, t=t.flatten())
        return t * {"none": a - b, "teacher": -b, "student": a}[stop] * d

    return formula


Z = torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Z.mean(), r"'mine' gives a tensor of shape \[\]; give a pair"),
        (None, "gives a NoneType; give a pair"),
        ((0.5, {}), "gives a loss that is a float; give a scalar tensor"),
        ((Z, {}), r"gives a loss that is a tensor of shape \[2\]; give a scalar tensor"),
        ((Z.detach().mean(), {}), "depends on nothing that is trained; is it detached"),
        ((Z.mean(), None), "figures that are a NoneType; give a dict"),
        ((Z.mean(), {"a": torch.zeros(3)}), r"a figure 'a' that is a tensor of shape \[3\]; give a scalar"),
        ((Z.mean(), {"a": "b"}), "a figure 'a' that is a str"),
    ],
)
def test_what_an_objective_gives_is_what_it_promises(given, message):
    with pytest.raises(ValueError, match=message):
        as_promised("mine", given)
    loss, log = as_promised("mine", (Z.mean(), {"a": torch.zeros(2), "b": 1.0, "c": torch.zeros(())}))
    assert (loss.item(), list(log)) == (0.0, ["a", "b", "c"])


def test_labels_and_their_number_are_those_of_the_networks():
    """A wrong one would train the wrong class as "no label", or end in torch's own words."""
    network = FlowModelConfig(width=16, depth=1, heads=2).build(SHAPE, CLASSES)
    z = torch.zeros(N, *SHAPE)
    for objective_loss in (DMD().student_loss, DMD().teacher_loss):
        objective_loss(network, z, LABELS, Context(Random(1), CLASSES))
        for wrong in (CLASSES - 1, CLASSES + 2):
            with pytest.raises(ValueError, match=rf"null_label: {wrong} is not the network's number of classes, 3"):
                objective_loss(network, z, LABELS, Context(Random(1), wrong))
        for labels, told in ((LABELS - 1, "-1 to -1"), (LABELS + CLASSES + 1, "4 to 4")):
            for context in (Context(Random(1), CLASSES), None):
                with pytest.raises(ValueError, match=f"labels: they go from {told}; the classes are 0 to 2, and 3 is"):
                    objective_loss(network, z, labels, context)


@pytest.mark.parametrize(
    ("name", "stop", "formula"),
    [
        *(("teacher_loss", stop, flow_loss(stop, teacher=1)) for stop in STOPS),
        *(("student_loss", stop, flow_loss(stop, student=1)) for stop in STOPS),
        *(("loss_difference", stop, flow_loss(stop, teacher=1, student=-1)) for stop in STOPS),
        *(("velocity_gap", stop, velocity_gap(stop)) for stop in ("none", "teacher", "student")),
    ],
)
def test_the_gradient_is_the_equation(name, stop, formula):
    z = Random(0).normal(N, *SHAPE).requires_grad_()
    objective = find(Matching, name)(stop=stop)
    loss, log = objective.loss(z, LABELS, TEACHER.velocity, STUDENT.velocity, Context(Random(1), CLASSES))
    (pull,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(pull * z.numel(), formula(z.detach(), *drawn(1)), rtol=1e-4, atol=1e-5)
    assert log


def test_what_is_logged_is_each_network_s_flow_matching_loss():
    z, (t, noise) = Random(0).normal(N, *SHAPE), drawn(1)
    objective = find(Matching, "loss_difference")()
    with torch.no_grad():
        _, log = objective.loss(z, LABELS, TEACHER.velocity, STUDENT.velocity, Context(Random(1), CLASSES))
    for name, of in (("teacher", TEACHER), ("student", STUDENT)):
        whole = flow_matching_loss(of.velocity, z=z, labels=LABELS, t=t.flatten(), noise=noise)
        assert float(log[f"flow_loss/{name}"]) == pytest.approx(float(whole), rel=1e-5)


def test_gaps_are_summed_and_counted_by_quarters_of_the_time():
    found = binned(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.1, 0.24, 0.6, 1.0]))
    assert {name: pair.tolist() for name, pair in found.items()} == {
        "gap/t0.12": [3.0, 2.0],
        "gap/t0.38": [0.0, 0.0],
        "gap/t0.62": [3.0, 1.0],
        "gap/t0.88": [4.0, 1.0],
    }


@pytest.mark.parametrize(
    ("name", "stop"),
    [("teacher_loss", "none"), ("student_loss", "none"), ("loss_difference", "none"), ("velocity_gap", "none")],
)
def test_with_nothing_stopped_it_is_the_gradient_of_the_value(name, stop):
    """By finite differences, on velocities whose Jacobian is no multiple of the identity."""
    means = Random(3).normal(4, *SHAPE)
    joint = joint_weights(torch.ones(4), None, CLASSES)
    teacher, student = (
        GaussianMixture(sign * means, torch.full_like(means, 0.3), joint, torch.zeros(2), torch.ones(2)).velocity
        for sign in (1, -1)
    )
    objective = find(Matching, name)(stop=stop)

    def value(z):
        return objective.loss(z, LABELS, teacher, student, Context(Random(2), CLASSES))[0]

    z, u = Random(0).normal(N, *SHAPE).requires_grad_(), Random(1).normal(N, *SHAPE)
    (pull,) = torch.autograd.grad(value(z), z)
    with torch.no_grad():
        slope = (value(z + 2e-2 * u) - value(z - 2e-2 * u)) / 4e-2
    assert float((pull * u).sum()) == pytest.approx(float(slope), rel=2e-2)


@pytest.mark.parametrize("name", ["dmd", "teacher_loss", "student_loss", "loss_difference", "velocity_gap"])
def test_gradients_reach_latents_alone_and_what_is_missing_is_named(name):
    torch.manual_seed(0)
    objective, model = find(Matching, name)(), FlowModelConfig(width=16, depth=1, heads=2)
    networks = [model.build(SHAPE, CLASSES) for _ in range(2)]
    for network in networks:
        for p in network.parameters():  # its last layer begins at zero
            p.requires_grad_(True).data.add_(0.1 * torch.randn_like(p))
    before = [p.clone() for network in networks for p in network.parameters()]
    z = Random(0).normal(N, *SHAPE).requires_grad_()
    loss, _ = objective.loss(z, LABELS, *networks, Context(Random(1), CLASSES))
    loss.backward()
    assert z.grad.abs().sum() > 0
    after = [p for network in networks for p in network.parameters()]
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(after, before, strict=True))
    needed = [*["teacher"] * objective.needs_teacher, *["student"] * objective.has_student]
    with pytest.raises(ValueError, match=f"{name} asks for velocities: give it a {' and a '.join(needed)}"):
        objective.loss(z, LABELS)


FLOW = FlowModelConfig(width=16, depth=1, heads=2)


@pytest.mark.parametrize("kind", [nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel])
def test_a_teacher_in_ddp_is_known_as_the_network_itself(kind):
    network = FlowModelConfig(width=16, depth=1, heads=2).build(SHAPE, CLASSES)
    wrapped = kind.__new__(kind)  # without its processes
    nn.Module.__init__(wrapped)
    wrapped.module = network
    student = DMD().new_student(SHAPE, CLASSES, wrapped, None)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), network.parameters(), strict=True))
    assert Context.default(torch.zeros(N, *SHAPE), wrapped).null_label == CLASSES


def test_a_network_of_one_s_own_may_have_a_from_config_and_a_config_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.config = SimpleNamespace(num_classes=None)

        @classmethod
        def from_config(cls, path):
            raise AssertionError("that is not ours to call")

        def forward(self, z_t, t, labels):
            return self.weight * z_t

    teacher = Own().requires_grad_(False)
    student = DMD().new_student(SHAPE, CLASSES, teacher, None)
    assert student is not teacher
    assert student.weight.requires_grad
    context = Context(torch.Generator(), null_label=CLASSES)
    z = torch.ones(N, *SHAPE, requires_grad=True)
    loss, _ = find(Matching, "teacher_loss")().loss(z, LABELS, teacher, None, context)
    assert loss.isfinite()


@pytest.mark.slow
def test_a_student_of_a_compiled_teacher_is_a_copy_of_the_network_itself():
    network = FLOW.build(SHAPE, CLASSES)
    compiled = torch.compile(network, backend="eager")
    student = DMD().new_student(SHAPE, CLASSES, compiled, None)
    assert type(student) is type(network)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), network.parameters(), strict=True))
    loss, _ = DMD().loss(torch.randn(N, *SHAPE, requires_grad=True), LABELS, compiled, student)
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["dmd", "student_loss", "velocity_gap", "loss_difference"])
@pytest.mark.parametrize("shift", [-1, 9])
def test_labels_that_no_network_has_are_told(name, shift):
    objective, network = find(Matching, name)(), FLOW.build(SHAPE, CLASSES)
    with pytest.raises(ValueError, match=f"labels: they go from {shift} to {shift}; the classes are 0 to 2"):
        objective.loss(torch.zeros(N, *SHAPE, requires_grad=True), LABELS + shift, network, FLOW.build(SHAPE, CLASSES))


def test_latents_that_are_not_square_are_told():
    with pytest.raises(ValueError, match=r"latents \[2, 4, 2\]: this network takes square ones"):
        FLOW.build((2, 4, 2), CLASSES)


@pytest.mark.parametrize("name", ["dmd", "student_loss", "adversarial", "sinkhorn"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": LABELS.float()}, rf"labels: give a tensor int64 \[{N}\], .* got torch.float32 \[{N}\]"),
        ({"labels": LABELS[:1]}, "labels: .* got torch.int64"),
        ({"labels": LABELS.to(torch.uint8)}, "labels: .* got torch.uint8"),
        ({"labels": LABELS.tolist()}, "labels: .* got list"),
        ({"labels": None}, "labels: .* got NoneType"),
        ({"z": torch.zeros(0, *SHAPE), "labels": LABELS[:0]}, "z: give latents .* n at least 1"),
        ({"z": torch.zeros(N, 3)}, rf"z: give latents .* got torch.float32 \[{N}, 3\]"),
        ({"context": torch.Generator()}, "context.*Context\\(rng, null_label"),
    ],
)
def test_what_a_trainer_may_get_wrong_is_told_by_every_objective(name, wrong, message):
    objective = find(Matching, name)()
    student = objective.new_student(SHAPE, CLASSES, TEACHER.velocity, FLOW)
    context = Context(Random(1), CLASSES, reference=TEACHER)
    given = {"z": torch.zeros(N, *SHAPE), "labels": LABELS, "context": context} | wrong
    if not (name == "adversarial" and "context" in wrong):  # its critic is all that it asks
        with pytest.raises(ValueError, match=message):
            objective.loss(teacher=TEACHER.velocity, student=student, **given)
    if objective.has_student:
        with pytest.raises(ValueError, match=message):
            objective.student_loss(student, **given)


def test_a_velocity_that_is_no_tensor_and_a_student_of_nothing_are_told():
    z, context = torch.zeros(N, *SHAPE, requires_grad=True), Context(Random(1), CLASSES)
    pair = lambda z_t, t, labels: (z_t, None)
    with pytest.raises(ValueError, match="a velocity that is a tuple for latents"):
        DMD(guidance=1.0).loss(z, LABELS, pair, pair, context)
    with pytest.raises(ValueError, match="model: the teacher is no network to copy; give a FlowModelConfig, got None"):
        DMD().new_student(SHAPE, CLASSES, TEACHER.velocity, None)


def test_latents_in_float64_are_taken():
    z = Random(0).normal(N, *SHAPE).double().requires_grad_()
    loss, _ = DMD().loss(z, LABELS, TEACHER.velocity, TEACHER.velocity, Context(Random(1), CLASSES))
    loss.backward()
    assert z.grad.dtype is torch.float64


@pytest.mark.parametrize("name", ["dmd", "loss_difference"])
def test_an_exact_student_leads_to_the_references_spread(name):
    objective = find(Matching, name)(guidance=1.0)
    for std, grows in ((3.0, -1), (0.3, 1)):
        z = (std * Random(0).normal(256, *SHAPE)).requires_grad_()
        labels = torch.zeros(256, dtype=torch.int64)
        exact = Gaussian(SHAPE, CLASSES, std).velocity
        loss, _ = objective.loss(z, labels, TEACHER.velocity, exact, Context(Random(1), CLASSES))
        (pull,) = torch.autograd.grad(loss, z)
        assert float((-pull * z.detach()).sum()) * grows > 0
