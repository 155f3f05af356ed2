"""Networks are the same on all ranks, whatever the layout of their tensors."""

import torch
from torch import nn

from dmvae.models.coupling import CouplingFlow
from dmvae.runtime import distributed


def test_what_is_sent_lies_in_rows(monkeypatch):
    """As NCCL wants it, unlike gloo: a coupling's rotations, which torch.linalg.qr makes, lie in columns."""

    def broadcast(x, src):
        assert x.is_contiguous()
        x.copy_(x.round())

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "broadcast", broadcast)
    module = nn.ModuleList([CouplingFlow(4, 2, 8), nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)])
    before = {name: (x.clone(), x.stride()) for name, x in module.state_dict().items()}
    assert not module[0].layers[0].rotation.is_contiguous()
    distributed.replicate(module)
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name][0].round())
        assert x.stride() == before[name][1]
