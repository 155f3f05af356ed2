"""The loop that the benchmark sets beside ours computes what ours computes."""

import pytest
import torch
from benchmarks.models import training_step
from benchmarks.peers.lightningdit import PlainLightningDiT
from benchmarks.published import Published, trainer_of

import tiny
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.training.stage import Batch


def weights(networks, name):
    return torch.cat([p.detach().flatten() for p in networks.trains[name]])


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "adaptive"), [(True, True), (False, True), (True, False)])
def test_both_loops_have_the_same_losses_gradients_and_steps(tmp_path, whole, adaptive):
    """Over six steps, of which two are the tokenizer's; each from the same weights."""
    over = {
        "run__precision": "float32",
        "losses__l2": 0.5,
        "losses__perceptual": {"type": "effnet-lite0", "resolution": 32, "stages": 2},
        "losses__adversarial__consistency": 0.5,
        "losses__adversarial__adaptive": adaptive,
    }
    ours = trainer_of(load(tiny.write(tmp_path, **over))["matched"], torch.device("cpu"))
    torch.manual_seed(0)
    for network in (ours.networks.teacher, ours.networks.student):
        for parameter in network.parameters():  # zeros would say the same at every point
            torch.nn.init.normal_(parameter, std=0.1)
    theirs = Published(ours, whole)
    x, labels = torch.rand(8, 3, 12, 12) * 2 - 1, torch.arange(8) % 3
    names = set()
    for step in range(6):
        theirs.networks.load_state_dict(ours.networks.state_dict())
        before = {name: weights(ours.networks, name) for name in ours.networks.trains}
        ours.step, expected = step, {}
        for figures in ours.train_step(Batch(x, labels, step, 6)):
            expected |= figures
        found = {name: value.item() for name, value in theirs.step(x, labels, step).items()}
        assert found == pytest.approx({name: expected[name].item() for name in found}, rel=2e-4)
        names |= set(found)
        for name, start in before.items():
            after = weights(ours.networks, name)
            assert torch.equal(after, start) == (name != "student" and step != 0 and step != 5)
            # Adam makes a full step of a gradient that is rounding alone, as that of a last bias under a hinge.
            assert (after - weights(theirs.networks, name)).norm() <= 0.2 * (after - start).norm()
    assert found["matching/loss"] > 0
    assert names == {
        *(f"{name}/loss" for name in ("tokenizer", "matching", "discriminator", "student")),
        *(f"{name}/gradient_norm" for name in ("tokenizer", "discriminator", "student")),
        "adversarial/weight",
    }


@pytest.mark.parametrize("patch", [1, 2])
def test_the_network_written_as_its_paper_reads_is_ours(patch):
    torch.manual_seed(0)
    ours = LightningDiT(in_channels=5, input_size=4, width=32, depth=2, heads=2, num_classes=3, patch_size=patch)
    for parameter in ours.parameters():  # zeros would let no gradient through
        torch.nn.init.normal_(parameter, std=0.3)
    plain = PlainLightningDiT(ours)
    inputs = (torch.randn(6, 5, 4, 4), torch.rand(6), torch.arange(6) % 4)
    assert ours(*inputs).std() > 0.1
    torch.testing.assert_close(plain(*inputs), ours(*inputs), rtol=1e-4, atol=1e-5)
    for network in (ours, plain):
        training_step(network, *inputs)()
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
