"""Every objective on two ranks: the gradients at the latents are those of the whole batch on one."""

import pytest
import torch

import processes
from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.pull import held
from dmvae.matching import Context, Matching
from dmvae.references.gaussian import Gaussian
from dmvae.registry import find, names
from dmvae.runtime import distributed
from dmvae.runtime.random import Random
from dmvae.stages.encoder import standardized

SHAPE, CLASSES, N = (4, 3, 3), 3, 12
REFERENCE = Gaussian(SHAPE, CLASSES, 1.0)
OPTIONS = {
    **{name: {} for name in names(Matching)},
    "dmd, forward_kl": {"divergence": "forward_kl"},
    "transport, labels": {"labels": True},
    "transport, queue": {"queue": 6, "views": ("whole", "convolution")},
}
LABELS = torch.arange(N) % CLASSES


def gradient(way, part):
    """At the latents of `part`, of an objective whose loss is a mean over them."""
    objective = find(Matching, way.partition(",")[0])(**OPTIONS[way])
    torch.manual_seed(0)
    model = FlowModelConfig(width=16, depth=1, heads=2)
    student = objective.new_student(SHAPE, CLASSES, REFERENCE.velocity, model) if objective.has_student else None
    for p in student.parameters() if student is not None else ():
        if not p.any():  # zeros would let no gradient through
            torch.nn.init.normal_(p, std=0.1)
    recent = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(5)), torch.arange(6) % CLASSES
    context = Context(Random(1), CLASSES, reference=REFERENCE, recent=recent, distance=2.0)
    z = (0.5 + 0.7 * torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(2)))[part].requires_grad_()
    loss, _ = objective.loss(z, LABELS[part], REFERENCE.velocity, student, context)
    return torch.autograd.grad(loss, z)[0]


def others(part):
    """What else looks at the images of all ranks."""
    z, edit = (torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(seed))[part] for seed in (3, 4))
    return {"held": held(z, edit, 0.3, torch.eye(SHAPE[0])), "standardized": standardized(2 * z + 1)}


def on_rank(rank, folder):
    distributed.start()
    part = slice(rank * N // 2, (rank + 1) * N // 2)
    torch.save(({way: gradient(way, part) for way in OPTIONS}, others(part)), f"{folder}/{rank}")
    distributed.stop()


@pytest.mark.slow
def test_the_gradients_are_those_of_the_whole_batch(tmp_path):
    assert processes.on_ranks(on_rank, str(tmp_path)) == [0, 0]
    gradients, rest = zip(*(torch.load(tmp_path / str(rank)) for rank in range(2)), strict=True)
    for way in OPTIONS:
        whole = gradient(way, slice(None))
        found = torch.cat([of[way] for of in gradients]) / 2  # of a mean over half of the images each
        assert whole.any(), way
        assert (found - whole).norm() <= 1e-3 * whole.norm(), way
    for name, whole in others(slice(None)).items():
        assert torch.allclose(torch.cat([of[name] for of in rest]), whole, atol=1e-5), name
