"""REPA-E's flow model on two ranks, whole and sharded: the gradients are those of the whole batch on one."""

from dataclasses import replace

import pytest
import torch

import processes
from dmvae.generators.flow import FlowModelConfig
from dmvae.generators.sit import SiTConfig
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.losses.pull import Pull
from dmvae.runtime import distributed, sharding
from dmvae.runtime.random import Random

CONFIG = RepaE(model=FlowModelConfig(width=16, depth=2, heads=2), width=8, depth=1)
WAYS = {"whole": CONFIG, "sharded": CONFIG, "sit": replace(CONFIG, model=SiTConfig(width=16, depth=2, heads=2))}


class Given(Random):
    """Randomness that is the same for an image on whatever rank it is."""

    def __init__(self, part):
        super().__init__("given")
        self.part = part

    def uniform(self, n):
        return torch.linspace(0.05, 0.95, 4)[self.part]

    def normal(self, *shape):
        return numbers(2)[self.part]


def numbers(seed, channels=4):
    return torch.randn(4, channels, 4, 4, generator=torch.Generator().manual_seed(seed))


def network(way):
    torch.manual_seed(0)
    projection = WAYS[way].projection((4, 4, 4), 3, 6)
    for parameter in projection.parameters():  # zeros would let no gradient through
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return projection


def gradients(projection, part):
    """(at the latents; at the projection's parameters, averaged over ranks; the norm of the first that is told)."""
    z, labels = numbers(0)[part].requires_grad_(), torch.tensor([0, 1, 2, 1])[part]
    alignment, own, _ = CONFIG.losses(projection, z, labels, numbers(1, 6)[part], Given(part))
    (pull,) = torch.autograd.grad(alignment, z, retain_graph=True)
    own.backward()
    late: dict = {}
    Pull.apply(z, pull, 1.5, False, late, "alignment").square().mean().backward()
    parameters = {name: p for name, p in projection.named_parameters() if p.requires_grad}
    whole = {name: sharding.whole_tensor(p.grad) for name, p in parameters.items()}
    if not sharding.is_sharded(next(iter(parameters.values()))):
        whole = {name: distributed.average(gradient) for name, gradient in whole.items()}
    return pull, whole, late["health/gradient_alignment"]


def on_rank(rank, folder):
    distributed.start()
    for way in WAYS:
        projection = network(way)
        if way != "whole":
            assert sharding.shard(projection)
        found = gradients(projection, slice(2 * rank, 2 * rank + 2))
        weights = sharding.whole_module(projection).state_dict()
        torch.save((*found, weights), f"{folder}/{way}-{rank}")
    distributed.stop()


@pytest.mark.slow
def test_the_gradients_are_those_of_the_whole_batch(tmp_path):
    assert processes.on_ranks(on_rank, str(tmp_path)) == [0, 0]
    for way in WAYS:
        projection = network(way)
        pull, whole, norm = gradients(projection, slice(None))
        assert norm.item() == pytest.approx(1.5 * pull.norm().item())
        found = [torch.load(tmp_path / f"{way}-{rank}") for rank in range(2)]
        # of a mean over two images each, and not over four
        assert torch.allclose(torch.cat([f[0] for f in found]) / 2, pull, atol=1e-6)
        for _, of_rank, told, weights in found:
            assert told.item() == pytest.approx(norm.item(), rel=1e-4)
            assert set(of_rank) == set(whole)
            assert all(torch.allclose(of_rank[name], gradient, atol=1e-5) for name, gradient in whole.items())
            assert set(weights) == set(projection.state_dict())
            assert torch.allclose(weights["norm.running_var"], projection.norm.running_var)
