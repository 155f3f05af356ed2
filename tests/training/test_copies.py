"""In a step nothing goes to the device by a copy that waits."""

import traceback
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from steps import EDITED, STAGES, batch_of, place, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from dmvae.decoders.vit import ViTDecoder
from dmvae.matching import Matching
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.registry import names
from dmvae.runtime.random import Random, seed_of
from dmvae.training.logging import Figures

META = torch.device("meta")
WAIT = ("sinkhorn", "hand_over")
"""Objectives of which each turn, or each tenth, waits."""


class There(Random):
    """Random numbers on the device "meta"."""

    device = property(lambda self: META)

    def __new__(cls, *key, device="cpu", part=(0, 1)):
        return torch.Generator.__new__(cls)

    def __init__(self, *key, device="cpu", part=(0, 1)):
        super().__init__(*key, device="cpu", part=part)
        self.shared = Plain().manual_seed(seed_of(*key))


class Plain(torch.Generator):
    device = property(lambda self: META)


class Copies(TorchDispatchMode):
    """Finds what goes from the CPU to a device by a copy that waits: all but `send`'s."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.numbers = patch.object(torch, "tensor", self.tensor)
        self.make = torch.tensor

    def __enter__(self):
        self.numbers.start()
        return super().__enter__()

    def __exit__(self, *error):
        self.numbers.stop()
        return super().__exit__(*error)

    def tensor(self, data, *args, device=None, **kwargs):
        if device is not None and torch.device(device).type != "cpu":
            self.found.append(f"numbers, {place()}")
        return self.make(data, *args, device=device, **kwargs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        kinds = {x.device.type for x in tensors if x.ndim}  # a scalar on the CPU goes along with the operation
        if name == "_to_copy" and kwargs.get("device") is not None:
            kinds = {torch.device(kwargs["device"]).type, tensors[0].device.type}
        elif name == "copy_":
            kinds = {x.device.type for x in tensors}
        if len(kinds) > 1 and not any(f.name == "send" for f in traceback.extract_stack(limit=12)):
            self.found.append(f"{name}, {place()}")
        return func(*args, **kwargs)


def copies(folder, monkeypatch, stage, steps=3, **over):
    """What a stage on the device "meta", which has no values, copies to it in so many steps."""
    monkeypatch.setattr("dmvae.training.trainer.Random", There)
    monkeypatch.setattr("dmvae.training.trainer.adamw", plain_optimizer)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device
    trainer = trainer_of(folder, stage, META, **over)
    found = []
    for step in range(steps):
        batch = batch_of(trainer, step, steps)
        with Copies() as seen:
            trainer.advance(batch, Figures(folder, "none", 0, ""))
        found += seen.found
    return found


def plain_optimizer(parameters, config, learning_rate):
    """In place of a fused one, which the device does not have."""
    optimizer = torch.optim.SGD(parameters, learning_rate)
    optimizer.param_groups[0]["base_lr"] = learning_rate
    return optimizer


def test_the_count_sees_what_is_copied():
    with Copies() as seen:
        x = torch.ones(3).to(META)
        x + x * torch.tensor(2.0)
        torch.ones(3, device=META).copy_(torch.ones(3))
        torch.einsum("ij,j->i", torch.ones(3, 3), x)
        torch.tensor(2.0, device=META)
    assert [what.split(",")[0] for what in seen.found] == ["_to_copy", "copy_", "bmm", "numbers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "over"),
    [
        *((stage, {}) for stage in STAGES),
        ("matching", EDITED | {"matching__noise": "reference"}),
        ("matching", EDITED | {"matching__noise": "fixed", "matching__noise_std": 0.5, "matching__anchor": None}),
        ("tokenizer", {"tokenizer__alignment": {"kind": "l2"}, "tokenizer__noise": 0.8}),
        ("tokenizer", {"tokenizer__alignment": {"type": "repa_e", "width": 8, "model": tiny.DIT}}),
        ("tokenizer", {"autoencoder__variational": True, "tokenizer__kl_weight": 0.01}),
        ("tokenizer", {"autoencoder__detail_width": 8, "tokenizer__train_detail": True}),
        ("decoder", {"decoder__noise": 0.8}),
    ],
    ids=str,
)
def test_no_copy_to_the_device_waits(tmp_path, monkeypatch, stage, over):
    assert copies(tmp_path, monkeypatch, stage, **over) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        *({"type": name} for name in names(Matching) if name not in WAIT),
        {"type": "dmd", "divergence": "forward_kl"},
        {"type": "transport", "queue": 16, "views": ["whole", "convolution"]},
    ],
    ids=str,
)
def test_no_copy_of_an_objective_waits(tmp_path, monkeypatch, objective):
    """Beside as little else as there can be."""
    little = {"matching__student_steps": 1, "matching__proxy_every": 0, "losses__adversarial__weight": 0.0}
    assert copies(tmp_path, monkeypatch, "matching", steps=2, matching__objective=objective, **little) == []


def test_a_mixture_moves_to_the_device_once():
    means, one = torch.randn(3, 4, 2, 2), torch.ones(4)
    mixture = GaussianMixture(means, torch.ones_like(means), joint_weights(torch.ones(3), None, 2), one, one)
    state = torch.zeros(5, 4, 2, 2, device=META), torch.zeros(5, device=META), torch.zeros(5, device=META).long()
    for count in (3, 0):
        with Copies() as seen:
            assert mixture.velocity(*state).shape == (5, 4, 2, 2)
            assert mixture.sample(2, Random(0))[0].device.type == "cpu"
        assert len(seen.found) == count


def test_positions_of_a_transformer_decoder_are_sent():
    decoder = ViTDecoder(width=16, depth=1, heads=2).build(latent_channels=4, channels=3, stride=4).to(META)
    with Copies() as seen:
        assert decoder(torch.zeros(2, 4, 3, 3, device=META)).shape == (2, 3, 12, 12)
    assert seen.found == []
