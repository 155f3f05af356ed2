"""Ways to shard a network over two ranks give the gradient of the whole one."""

import os
from dataclasses import replace

import pytest
import torch

import processes
import tiny
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.matching import Context
from dmvae.matching.dmd import DMD
from dmvae.models.dit import LightningDiT
from dmvae.models.dit_dh import DiTDH
from dmvae.models.sit import SiT
from dmvae.recipe import load
from dmvae.references.gaussian import Gaussian
from dmvae.runtime import distributed, sharding
from dmvae.runtime.precision import autocast
from dmvae.runtime.random import Random
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

WAYS = {
    "plain": {},
    "bf16": {"bf16": True},
    "in_node": {"in_node": True},
    "kept": {"reshard": False},
    "compiled": {},
    "sit": {},
    "dit_dh": {},
}
CPU = torch.device("cpu")


def network(way="plain"):
    torch.manual_seed(0)
    kind, more = {"sit": (SiT, {}), "dit_dh": (DiTDH, {"head_width": 16, "head_heads": 2})}.get(way, (LightningDiT, {}))
    model = kind(in_channels=4, input_size=4, width=16, depth=2, heads=2, num_classes=3, **more)
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
        model = network(name)
        torch._dynamo.utils.counters.clear()
        if name == "compiled":  # before it is sharded, as the trainer does; inductor would take a minute
            compile_networks(torch.nn.ModuleList([model]), backend="aot_eager")
        assert len(sharding.shard(model, **options)) == len(list(model.parameters()))
        backward(model, slice(2 * rank, 2 * rank + 2), "bfloat16" if "bf16" in options else "float32")
        local = sum(p.to_local().numel() for p in model.parameters())
        whole = sum(p.numel() for p in model.parameters())
        gradients = {n: sharding.whole_tensor(p.grad) for n, p in trained(model)}
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
    model = network(way)
    backward(model, slice(None), "bfloat16" if way == "bf16" else "float32")
    whole = torch.cat([p.grad.flatten() for _, p in trained(model)])
    for share, gradients, graphs in found[way]:
        assert (graphs > 0) == (way == "compiled")
        assert all(g.dtype is torch.float32 for g in gradients.values())
        here = torch.cat([gradients[name].flatten() for name, _ in trained(model)])
        assert (here - whole).norm() < (0.02 if way == "bf16" else 1e-5) * whole.norm()
        assert share == 1 if way == "in_node" else 0.45 < share < 0.55


def with_ratio():
    """The student of a divergence other than the reverse one."""
    torch.manual_seed(1)
    objective = DMD(divergence="forward_kl", ratio_width=8, ratio_depth=1)
    student = objective.new_student((4, 4, 4), 3, network(), FlowModelConfig())
    for parameter in student.critic.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return objective, student


def learned(objective, student, part=slice(None), precision="float32"):
    """Its gradients, where a loss of the tokenizer has asked it before."""
    context = Context(Random(0), 3, reference=Gaussian((4, 4, 4), 3, 1.0))
    z, labels = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])
    with autocast(CPU, precision):
        objective.loss(z[part].requires_grad_(), labels[part], Gaussian((4, 4, 4), 3, 1.0).velocity, student, context)
        loss, _ = objective.student_loss(student, z[part], labels[part], context)
    loss.backward()
    return {name: sharding.whole_tensor(p.grad) for name, p in student.named_parameters() if p.requires_grad}


def sharded_with_ratio(rank, folder):
    distributed.start()
    for precision in ("float32", "bfloat16"):
        objective, student = with_ratio()
        student.to(memory_format=torch.channels_last)  # as the trainer places it
        assert len(sharding.shard(student, bf16=precision == "bfloat16")) == len(list(student.parameters()))
        found = learned(objective, student, slice(2 * rank, 2 * rank + 2), precision)
        share = sum(p.to_local().numel() for p in student.parameters()) / sum(p.numel() for p in student.parameters())
        weights = sharding.whole_module(student).state_dict()
        torch.save((found, share, weights), f"{folder}/{precision}-{rank}")
    distributed.stop()


@pytest.mark.slow
def test_a_student_with_a_density_ratio_is_sharded_too(tmp_path):
    """The flow, and the critic beside it, which one optimizer moves."""
    assert processes.on_ranks(sharded_with_ratio, str(tmp_path)) == [0, 0]
    objective, student = with_ratio()
    whole = learned(objective, student)
    for precision, near in (("float32", 1e-5), ("bfloat16", 0.05)):
        for rank in range(2):
            gradients, share, weights = torch.load(tmp_path / f"{precision}-{rank}")
            for part in ("flow", "critic"):
                a, b = (torch.cat([g[n].flatten() for n in whole if n.startswith(part)]) for g in (gradients, whole))
                assert (a - b).norm() < near * b.norm()
            assert share < 0.6
            assert all(torch.equal(weights[name], value) for name, value in student.state_dict().items())


def stepped(job, rank=0, world=1, **run):
    """The generator's whole weights after three steps on this rank's share of eight latents."""
    recipe = replace(job.recipe, run=replace(job.recipe.run, **run))
    inputs = Inputs(recipe, job.variant, job.folder.parent / "unused", job.reads, CPU)
    trainer = Trainer(job.stage(recipe.section(job.stage), inputs))
    share = 8 // world
    z, labels = trainer.stage.data().__getitems__(range(rank * share, (rank + 1) * share))
    for step in range(3):
        for _ in trainer.train_step(Batch(z, labels, step, 3)):
            pass
        trainer.step += 1
    return [sharding.whole_tensor(p.detach()) for p in trainer.networks.trains["generator"]]


def generator_of(path):
    jobs = plan({"kl": load(path)["kl"]}, path.parent / "run")
    return next(job for job in jobs if job.stage.name == "generator")


PARTS = [(1, True), (2, True), (2, False), (4, False)]
"""run.accumulate, and run.reshard."""


def sharded_in_parts(rank, path, folder):
    distributed.start()
    name = "reduce_scatter_single" if hasattr(torch.distributed, "reduce_scatter_single") else "reduce_scatter_tensor"
    send, sent = getattr(torch.distributed, name), []
    setattr(torch.distributed, name, lambda *x, **options: sent.append(x) or send(*x, **options))
    found = []
    for accumulate, reshard in PARTS:
        sent.clear()
        weights = stepped(generator_of(path), rank, 2, shard=True, accumulate=accumulate, reshard=reshard)
        found.append((weights, len(sent)))
    torch.save(found, f"{folder}/{rank}")
    distributed.stop()


@pytest.mark.slow
def test_parts_of_a_sharded_batch_end_at_the_weights_of_the_whole(tmp_path):
    """And where gathered weights are kept for less traffic, gradients are sent once for all parts."""
    path = tiny.write(tmp_path, generator__learning_rate=1e-4, run__precision="float32")
    tiny.run(path, "kl", until="latents")
    whole = stepped(generator_of(path))
    assert processes.on_ranks(sharded_in_parts, path, str(tmp_path)) == [0, 0]
    for rank in range(2):
        found = torch.load(tmp_path / str(rank))
        for weights, _ in found:
            assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(weights, whole, strict=True))
        once = found[0][1]
        assert once > 0
        assert [sent for _, sent in found] == [once, 2 * once, once, once]
