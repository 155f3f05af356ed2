"""docs/own_trainer.md on ranks and under gradient accumulation: gradients, random numbers and queues."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import processes
from dmvae.generators.flow import FlowModelConfig
from dmvae.matching import Context, Matching
from dmvae.references.gaussian import Gaussian
from dmvae.registry import find, names
from dmvae.runtime import distributed
from dmvae.runtime.random import Random

PAGE = (Path(__file__).parents[2] / "docs/own_trainer.md").read_text()
THERE = {}
exec(next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def remembered" in block), THERE)
SHAPE, CLASSES, N, PARTS = (4, 2, 2), 3, 16, 2
REFERENCE = Gaussian(SHAPE, CLASSES, 1.0)
X = 0.5 + 0.7 * Random("x").normal(N, *SHAPE)
LABELS = torch.arange(N) % CLASSES
WAYS = {
    **{name: {} for name in names(Matching)},
    "dmd, forward_kl": {"divergence": "forward_kl"},
    "transport, queue": {"queue": 12},
}


def step(way, wrapped=lambda network: network, ranks=1, rank=0):
    """One step of the page's loop with accumulation: (gradients of tokenizer and student, the generator's next)."""
    objective = find(Matching, way.partition(",")[0])(**WAYS[way])
    torch.manual_seed(0)
    encoder = nn.Conv2d(SHAPE[0], SHAPE[0], 1)
    student = objective.new_student(SHAPE, CLASSES, REFERENCE.velocity, FlowModelConfig(width=16, depth=1, heads=2))
    for p in student.parameters() if student is not None else ():
        torch.nn.init.normal_(p, std=0.2) if p.requires_grad else None
    tokenizer = wrapped(encoder)
    student = student if student is None else wrapped(student)
    generator, recent = torch.Generator().manual_seed(3), (X[:0], LABELS[:0])
    for i, (part, labels) in enumerate(zip(X.chunk(PARTS), LABELS.chunk(PARTS), strict=True)):
        x, y = part.chunk(ranks)[rank], labels.chunk(ranks)[rank]
        hold = [n.no_sync() for n in (tokenizer, student) if isinstance(n, DDP) and i < PARTS - 1]
        with hold[0] if hold else nullcontext(), hold[1] if hold[1:] else nullcontext():
            context = Context(generator, CLASSES, reference=REFERENCE, recent=recent, distance=1.0)
            z = tokenizer(x)
            loss, _ = objective.loss(z, y, REFERENCE.velocity, student, context)
            (loss / PARTS).backward()
            if student is not None:
                loss, _ = objective.student_loss(student, z.detach(), y, context)
                (loss / PARTS).backward()
            recent = THERE["remembered"](recent, z, y, objective)
    trained = [*encoder.parameters(), *(student.parameters() if student is not None else ())]
    return [p.grad for p in trained if p.requires_grad], torch.randint(1000, (), generator=generator)


def on_rank(rank, folder):
    distributed.start()
    torch.save({way: step(way, DDP, 2, rank) for way in WAYS}, folder / str(rank))
    distributed.stop()


@pytest.mark.slow
def test_parts_on_ranks_have_the_gradients_of_parts_in_one_process(tmp_path):
    assert processes.on_ranks(on_rank, tmp_path) == [0, 0]
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    for way in WAYS:
        gradients, drawn = step(way)
        for found, alike in (rank[way] for rank in ranks):
            assert alike == drawn, way
            for a, b in zip(found, gradients, strict=True):
                assert b.any(), way
                assert (a - b).norm() <= 1e-4 * b.norm(), way
