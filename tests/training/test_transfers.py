"""Between two rows of the log nothing waits for the device: a step reads no value of a tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from dmvae.inputs import Blueprint
from dmvae.recipe import load
from dmvae.runtime.transfer import covariance
from dmvae.training.loop import Trainer
from dmvae.training.stage import Batch, TrainingStage

READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero, torch.ops.aten.equal}
"""Operations whose result depends on values, so that a device must be waited for: item, float(x), if x, x[mask]."""


class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func._overloadpacket is torch.ops.aten.index and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if masks or func._overloadpacket in READS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_covariance_is_torch_s_bit_for_bit():
    x = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(covariance(x), torch.cov(x.T))
    assert torch.equal(covariance(x[:, :1].float()), torch.cov(x[:, :1].float().T).reshape(1, 1))


def test_the_count_sees_what_waits():
    with Reads() as reads:
        x = torch.ones(3)
        float(x.sum()), bool(x[0]), x[x > 0], x.mean()
    assert len(reads.found) == 3


@pytest.mark.parametrize("stage", ["encoder", "tokenizer", "reference", "matching", "decoder", "generator"])
def test_no_step_waits(tmp_path, stage):
    # figures of latents' health and proxies at every turn
    recipe = load(tiny.write(tmp_path, matching__health_every=1, matching__proxy_every=1))["matched"]
    kind = next(s for s in recipe.stages() if s.name == stage)
    assert issubclass(kind, TrainingStage)
    reads = {name: recipe.section(name) for name in kind.reads if recipe.section(name) is not None}
    trainer = Trainer(kind(recipe.section(kind), Blueprint(recipe, "", reads, 3, fake=False)))
    data = torch.randn(8, *trainer.stage.item_shape) if not kind.draws else torch.zeros(8)
    with Reads() as found:
        for step in range(3):
            trainer.step = step
            for figures in trainer.train_step(Batch(data, torch.arange(8) % 3, step, 3)):
                assert figures
            assert not trainer.stage.done(trainer.networks)
    assert found.found == []
