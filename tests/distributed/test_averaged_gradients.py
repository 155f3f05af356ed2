"""Gradients are averaged over the ranks while the backward pass goes on."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import processes
from dmvae.runtime import distributed, gradients


class Net(nn.Module):
    """Parts that a loss uses several times, once, on one rank alone, and never."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict(
            {name: nn.Linear(3, 3, dtype=torch.float64) for name in ("never", "often", "one", "once")}
        )
        self.parts["image"] = nn.Conv2d(2, 2, 3, padding=1).double().to(memory_format=torch.channels_last)

    def loss(self, x, rank):
        _, often, one, once, image = self.parts.values()
        hidden = often(often(x).tanh())
        pictures = image(x.reshape(-1, 1, 1, 3).expand(-1, 2, 3, 3)).mean((1, 2))
        return (once(hidden) + pictures + (one(x) if rank == 0 else 0)).square().mean()


def rows_of_three(rank, folder):
    distributed.start()
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    mine = x[rank].clone().requires_grad_()
    whole = distributed.gather(mine)
    (whole.float() * torch.arange(30.0).view(6, 5)).sum().backward()
    torch.save((whole.detach(), mine.grad), folder / f"{rank}.pt")
    distributed.stop()


def test_gathered_rows_are_the_same_on_every_rank_to_the_last_digit(tmp_path):
    """In bf16 too, of which a product with three ranks has no digits to spare."""
    assert processes.on_ranks(rows_of_three, tmp_path, count=3) == [0, 0, 0]
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for rank in range(3):
        whole, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(whole, x.flatten(0, 1))
        # three times, for gradients are averaged over the ranks afterwards
        assert torch.equal(gradient, 3 * torch.arange(30.0).view(3, 2, 5)[rank].to(torch.bfloat16))


X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_first_buckets_are_sent_before_the_backward_pass_ends(monkeypatch):
    """One process that plays two alike ranks: a sum over both doubles what is sent."""
    happened = []

    def all_reduce(x, op=None, async_op=False):
        happened.append("counted" if op else "sent")
        return SimpleNamespace(wait=lambda timeout=None: x.mul_(2))

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(gradients, "BUCKET", 50)
    net, alone = Net(), Net()
    alone.loss(X, 0).backward()
    parameters = list(net.parameters())
    for i, part in enumerate(X.split(4)):
        with gradients.averaged(parameters, last=i == 1):
            (net.loss(part, 0) / 2).backward(inputs=parameters)
            happened.append("end of a pass")
    first = happened.index("end of a pass")
    second = happened.index("end of a pass", first + 1)
    assert first == 0
    assert 3 <= happened[first:second].count("sent") < happened.count("sent")
    for a, b in zip(net.parameters(), alone.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert b.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-12)
        assert b.grad is None or a.grad.stride() == b.grad.stride() == a.stride()
    assert net.parts["never"].weight.grad is None
    assert not net.parts["once"].weight._post_accumulate_grad_hooks


def found(rank, folder):
    distributed.start()
    gradients.BUCKET = 50
    net = Net()
    parameters = list(net.parameters())
    for i, part in enumerate(X.chunk(2)[rank].split(2)):
        with gradients.averaged(parameters, last=i == 1):
            (net.loss(part, rank) / 2).backward(inputs=parameters)
    torch.save([p.grad for p in parameters], f"{folder}/{rank}")
    distributed.stop()


@pytest.mark.slow
def test_both_ranks_have_the_mean_and_none_where_neither_has_a_gradient(tmp_path):
    assert processes.on_ranks(found, str(tmp_path)) == [0, 0]
    whole = Net()
    halves = [copy.deepcopy(whole) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.loss(X.chunk(2)[rank], rank).backward()
    one, two = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for a, b, p, q in zip(one, two, *(half.parameters() for half in halves), strict=True):
        if p.grad is None and q.grad is None:
            assert a is None
            assert b is None
        else:
            mean = sum(g for g in (p.grad, q.grad) if g is not None) / 2
            assert torch.equal(a, b)
            assert torch.allclose(a, mean, rtol=1e-12)
