"""Ways to shard a network over two ranks give the gradient of the whole one."""

import os

import pytest
import torch

import processes
from dmvae.models.dit import LightningDiT
from dmvae.runtime import distributed
from dmvae.runtime.precision import autocast
from dmvae.training.preparing import compile_networks

WAYS = {
    "plain": {},
    "bf16": {"bf16": True},
    "in_node": {"in_node": True},
    "kept": {"reshard": False},
    "compiled": {},
}
CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    model = LightningDiT(in_channels=4, input_size=4, width=16, depth=2, heads=2, num_classes=3)
    for parameter in model.parameters():  # zeros would let no gradient through
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def trained(model):
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def backward(model, part, precision="float32"):
    z = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))[part]
    t, labels = torch.linspace(0.1, 0.9, 4)[part], torch.tensor([0, 1, 2, 3])[part]
    with autocast(CPU, precision):
        out = model(z, t, labels)
    out.float().square().mean().backward()


def sharded(rank, folder):
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # each rank as if on a node of its own
    distributed.start()
    for name, options in WAYS.items():
        model = network()
        torch._dynamo.utils.counters.clear()
        if name == "compiled":  # before it is sharded, as the trainer does; inductor would take a minute
            compile_networks(torch.nn.ModuleList([model]), backend="aot_eager")
        assert len(distributed.shard(model, **options)) == len(list(model.parameters()))
        backward(model, slice(2 * rank, 2 * rank + 2), "bfloat16" if "bf16" in options else "float32")
        local = sum(p.to_local().numel() for p in model.parameters())
        whole = sum(p.numel() for p in model.parameters())
        gradients = {n: distributed.whole_tensor(p.grad) for n, p in trained(model)}
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.save((local / whole, gradients, graphs), f"{folder}/{name}-{rank}")
    distributed.stop()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    assert processes.on_ranks(sharded, str(folder)) == [0, 0]
    return {name: [torch.load(folder / f"{name}-{rank}") for rank in range(2)] for name in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_that_of_the_whole_network(found, way):
    model = network()
    backward(model, slice(None), "bfloat16" if way == "bf16" else "float32")
    whole = torch.cat([p.grad.flatten() for _, p in trained(model)])
    for share, gradients, graphs in found[way]:
        assert (graphs > 0) == (way == "compiled")
        assert all(g.dtype is torch.float32 for g in gradients.values())
        here = torch.cat([gradients[name].flatten() for name, _ in trained(model)])
        assert (here - whole).norm() < (0.02 if way == "bf16" else 1e-5) * whole.norm()
        assert share == 1 if way == "in_node" else 0.45 < share < 0.55
