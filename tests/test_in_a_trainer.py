"""What a trainer of one's own has around our functions: autocast, inference mode, train(), other defaults of torch."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dmvae.datasets.memory import MemoryDataset
from dmvae.datasets.pixels import to_uint8
from dmvae.evaluation.features import Extractor
from dmvae.evaluation.neighbours import nearest
from dmvae.flow.samplers import time_grid
from dmvae.generators.flow import FlowModelConfig
from dmvae.latents.store import encode_dataset
from dmvae.losses.perceptual import LPIPSDistance
from dmvae.matching import Context, Matching, copy_of
from dmvae.matching.adversarial import Adversarial
from dmvae.matching.dmd import DMD
from dmvae.matching.transport import Transport
from dmvae.models.drawing import noise
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.registry import find
from dmvae.runtime.random import Random
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.transport import two_sample
from dmvae.transport.arrival import details, measure, multiples


def far_from_it():
    """Latents whose components are as large as the reference's, and of one size each: by slices they are near."""
    y = Random("y").normal(640, 4, 2, 2)
    return Random("z").normal(256, 4, 2, 2).sign() * 0.8, y


def figures(z, y):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "STEPS", 60)
        known = multiples(z, y[:600], torch.Generator().manual_seed(0)) | details(z, y)
        return known | {k: v for k, v in vars(measure(z, y)).items() if k != "mixing"}


@pytest.fixture(scope="module")
def plain():
    return figures(*far_from_it())


@pytest.mark.slow
def test_arrival_of_latents_of_half_precision_is_measured_in_full(plain):
    z, y = far_from_it()
    assert figures(z.bfloat16(), y) == figures(z.bfloat16().float(), y) != plain


@pytest.mark.parametrize(
    "around", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode], ids=["autocast", "inference"]
)
def test_arrival_is_measured_alike_under_autocast_and_inference_mode(around, plain):
    with around():
        assert figures(*far_from_it()) == plain
    assert plain["told"] > 4


def test_neighbours_are_the_same_under_autocast():
    x = Random("x").normal(300, 40)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(x, k=3)
    assert all(torch.equal(a, b) for a, b in zip(found, nearest(x, k=3), strict=True))


def test_pixels_of_half_precision_are_rounded_to_their_own_grey_level():
    levels = torch.arange(256)
    for kind in (torch.bfloat16, torch.float16):
        exact = (levels / 127.5 - 1).to(kind)
        assert torch.equal(to_uint8(exact), to_uint8(exact.float()))
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))


def test_what_judges_stays_in_evaluation_mode_within_a_module_that_trains():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 5))
    judge = Extractor(network, 5, None, (0.5,) * 3, (0.5,) * 3)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    before, weights = judge(images), copy.deepcopy(judge.state_dict())
    within = nn.ModuleList([judge, LPIPSDistance(1.0, nn.Dropout(0.5))]).train()
    assert torch.equal(judge(images), before)
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), weights.values(), strict=True))
    assert not within[1].network.training


@pytest.mark.parametrize("name", ["velocity_gap", "teacher_loss"])
def test_a_pull_in_half_precision_is_not_lost_before_the_trainer_scales_it(name):
    objective = find(Matching, name)()
    network, student = (FlowModelConfig(width=16, depth=1, heads=2).build((4, 8, 8), 3) for _ in range(2))
    with torch.no_grad():
        for i, weight in enumerate([*network.parameters(), *student.parameters()]):
            weight.add_(0.1 * Random("w", i).normal(*weight.shape))
    latents, labels, scale = Random("z").normal(64, 4, 8, 8).half(), torch.arange(64) % 3, 1024.0
    pulls = []
    for kind in (torch.float32, torch.float16):
        z = latents.to(kind, copy=True).requires_grad_()
        loss, _ = objective.loss(z, labels, network, student, Context(Random(0), 3))
        (scale * loss).backward()
        pulls.append(z.grad.float() / scale)
    assert pulls[0].abs().max() < 1e-3, "or it would not be lost"
    assert (pulls[1] - pulls[0]).norm() < 0.001 * pulls[0].norm()


@pytest.mark.parametrize("name", ["velocity_gap", "loss_difference"])
def test_a_pull_through_networks_under_autocast_to_float16_is_not_lost(name):
    weights = Random("w").normal(4, 4, 1, 1), Random("w").normal(4, 4, 1, 1) + 0.01

    def velocity(weight):
        return lambda z_t, t, labels: torch.nn.functional.conv2d(z_t, weight)

    pulls = []
    for half in (False, True):
        z = Random("z").normal(64, 4, 32, 32).requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=half):
            objective, context = find(Matching, name)(), Context(Random(0), 3)
            loss, _ = objective.loss(z, torch.arange(64) % 3, *map(velocity, weights), context)
        pulls.append(torch.autograd.grad(loss, z)[0])
    assert (pulls[1] - pulls[0]).norm() < 0.05 * pulls[0].norm()


class Learned:
    """A reference whose samples come out of a network that trains, and are kept."""

    mean, std, velocity = torch.zeros(4), torch.ones(4), None

    def __init__(self):
        self.weight = nn.Parameter(torch.ones(()))
        self.kept = Random("kept").normal(32, 4, 2, 2)

    def sample(self, n, rng):
        return self.weight * self.kept[:n], torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_no_gradient_reaches_what_samples_a_reference_nor_is_a_sample_changed(penalty):
    reference, z = Learned(), Random("z").normal(32, 4, 2, 2).requires_grad_()
    context, labels = Context(Random(0), 1, reference=reference), torch.zeros(32, dtype=torch.int64)
    Transport().loss(z, labels, context=context)[0].backward()
    assert z.grad is not None
    objective = Adversarial(penalty=penalty)
    critic = objective.new_student((4, 2, 2), 1, None, FlowModelConfig())
    objective.student_loss(critic, z.detach(), labels, context)[0].backward()
    assert reference.weight.grad is None
    assert not reference.kept.requires_grad


def test_measuring_leaves_the_modes_of_a_tokenizer_as_they_were(tmp_path):
    conv = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "stride": 4, "out_channels": 8}
    decoder = {"type": "conv", "width": 8, "multipliers": [1, 1], "blocks": 0, "attention": False}
    tokenizer = Autoencoder(encoder=conv, image_size=8, latent_channels=4, bottleneck_width=0, decoder=decoder).train()
    tokenizer.encoder.eval()
    modes = [module.training for module in tokenizer.modules()]
    images = MemoryDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ["one"])
    encode_dataset(tokenizer, images, tmp_path / "latents", title="", device=torch.device("cpu"))
    assert [module.training for module in tokenizer.modules()] == modes


def test_a_student_trains_though_its_teacher_does_not():
    assert copy_of(nn.Sequential(nn.Dropout(0.5)).eval()).training


def test_a_copy_has_the_precision_of_its_network():
    network = FlowModelConfig(width=16, depth=1, heads=2).build((4, 2, 2), 3).bfloat16()
    assert {weight.dtype for weight in copy_of(network).parameters()} == {torch.bfloat16}


def test_students_are_on_their_teacher_s_device():
    with torch.device("meta"):
        teacher = FlowModelConfig(width=16, depth=1, heads=2).build((4, 2, 2), 3)
    for objective in (DMD(divergence="forward_kl"), Adversarial()):
        student = objective.new_student((4, 2, 2), 3, teacher, FlowModelConfig())
        assert {weight.device.type for weight in student.parameters()} == {"meta"}


def test_another_default_device_changes_nothing_that_is_drawn(plain):
    z, y = far_from_it()
    before = plain, time_grid(4).tolist(), noise(torch.zeros(2, 3, 4, 4), (2,))

    def elsewhere():
        torch.set_default_device("meta")
        return figures(z, y), time_grid(4).tolist(), noise(z[:2].new_zeros(2, 3, 4, 4), (2,))

    with ThreadPoolExecutor(1) as thread:  # a default device is a thread's own, and what compiles later would meet it
        again = thread.submit(elsewhere).result()
    assert again[:2] == before[:2]
    assert torch.equal(again[2], before[2])


def test_the_state_of_a_step_s_randomness_is_all_of_it():
    rng = Random("seed", 3)
    kept = rng.get_state()
    drawn = rng.normal(3), torch.rand(2, generator=rng)
    copies = copy.deepcopy(rng), pickle.loads(pickle.dumps(rng))
    for other in (rng.set_state(kept), Random("another", 1).set_state(kept)):
        assert torch.equal(other.normal(3), drawn[0])
        assert torch.equal(torch.rand(2, generator=other), drawn[1])
    first, second = ((c.integers(1000, 3), torch.rand(2, generator=c)) for c in copies)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    seeded = [(generator.manual_seed(7).normal(2), torch.rand(2, generator=generator)) for generator in (rng, *copies)]
    assert all(torch.equal(a, b) for other in seeded for a, b in zip(seeded[0], other, strict=True))


def test_a_mixture_asked_under_inference_mode_has_a_gradient_afterwards():
    shape, joint = (2, 4, 2, 2), joint_weights(torch.ones(2), None, 1)
    mixture = GaussianMixture(Random(1).normal(*shape), torch.ones(shape), joint, torch.zeros(4), torch.ones(4))
    z, t, labels = Random(0).normal(3, 4, 2, 2), torch.full((3,), 0.5), torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        mixture.velocity(z.double(), t.double(), labels)
    at = z.double().requires_grad_()
    mixture.velocity(at, t.double().requires_grad_(), labels).sum().backward()
    assert at.grad.isfinite().all()
