"""Alignment losses: their zeros, their margins, what they do not see."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from dmvae import config as configs
from dmvae.losses.alignment import AlignmentConfig, as_promised
from dmvae.losses.alignment.pointwise import Pointwise, cosines, marginal_cosine, marginal_distance
from dmvae.runtime.random import Random


def features(channels: int = 6, seed: int = 0):
    return torch.randn(3, channels, 2, 4, generator=torch.Generator().manual_seed(seed))


def rotated(x, seed: int = 5):
    q, _ = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(seed)))
    return torch.einsum("dc,nchw->ndhw", q, x)


def test_the_cosine_loss_is_zero_for_any_length_of_an_aligned_vector():
    f = features()
    assert marginal_cosine(7 * f, f, margin=0.0) == pytest.approx(0, abs=1e-6)
    assert marginal_cosine(-f, f, margin=0.0) == pytest.approx(2, abs=1e-6)


def test_the_cosine_loss_forgives_its_margin():
    f = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    z = torch.tensor([0.6, 0.8]).view(1, 2, 1, 1)  # cosine 0.6
    assert marginal_cosine(z, f, margin=0.3) == pytest.approx(0.1, abs=1e-6)
    assert marginal_cosine(z, f, margin=0.5) == 0


def test_the_distance_loss_sees_geometry_only():
    """A rotation of the features, a scale of the latents and another width change nothing."""
    z, f = features(4, 1), features()
    loss = marginal_distance(z, f, margin=0.1)
    assert loss > 0.1
    assert marginal_distance(z, rotated(f), margin=0.1) == pytest.approx(loss.item(), rel=1e-5)
    assert marginal_distance(3 * z, f, margin=0.1) == pytest.approx(loss.item(), rel=1e-5)
    assert marginal_distance(rotated(f), f, margin=0.0) == pytest.approx(0, abs=1e-5)


def test_the_distance_loss_compares_pairs_within_an_image():
    """Two places at right angles in f and at 60 degrees in z: two of four pairs differ, by 0.5."""
    f = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    z = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]]).view(1, 2, 1, 2)
    assert marginal_distance(z, f, margin=0.25) == pytest.approx(2 * 0.25 / 4, abs=1e-6)
    assert torch.allclose(cosines(z)[0], torch.tensor([[1.0, 0.5], [0.5, 1.0]]), atol=1e-6)


def test_the_squared_difference_is_zero_at_equality():
    f = features()
    of = lambda z: Pointwise(kind="l2").losses(nn.Identity(), z, torch.zeros(3).long(), f, Random(0))[0]
    assert of(f) == 0
    assert of(f + 2) == pytest.approx(4, rel=1e-5)


def test_each_loss_has_its_own_margin():
    z, f, projection = features(4, 1), features(), nn.Conv2d(4, 6, 1, bias=False)
    config = Pointwise(m1=0.1, m2=0.3)
    _, _, log = config.losses(projection, z, torch.zeros(3).long(), f, Random(0))
    assert log["alignment/cosine"] == marginal_cosine(projection(z), f, 0.1)
    assert log["alignment/distance"] == marginal_distance(z, f, 0.3)
    _, _, log = replace(config, pairs="projected").losses(projection, z, torch.zeros(3).long(), f, Random(0))
    assert log["alignment/distance"] == marginal_distance(projection(z), f, 0.3) != marginal_distance(z, f, 0.3)


def test_a_margin_of_2_turns_a_loss_off():
    f = features()
    loss = Pointwise(m1=2, m2=2).losses(nn.Identity(), -f, torch.zeros(3).long(), f, Random(0))[0]
    assert loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("kind", "terms"), [("vf", {"cosine", "distance"}), ("l2", {"l2"})])
def test_gradients_reach_latents_and_projection(kind, terms):
    config = Pointwise(kind=kind, m1=0.0, m2=0.0)
    projection = config.projection((4, 2, 4), 3, 6)
    assert isinstance(projection, nn.Conv2d)
    assert (projection.bias is not None) == (kind == "l2")
    z = features(4, 1).requires_grad_()
    loss, own, log = config.losses(projection, z, torch.zeros(3).long(), features(), Random(0))
    assert own is loss
    loss.backward()
    assert z.grad.abs().sum() > 0
    assert projection.weight.grad.abs().sum() > 0
    assert set(log) == {f"alignment/{term}" for term in terms}


def test_a_section_without_type_is_pointwise_and_counts_as_it_did_before_there_were_others():
    read = configs.read(AlignmentConfig, {"kind": "l2"})
    assert read == configs.read(AlignmentConfig, {"type": "pointwise", "kind": "l2"}) == Pointwise(kind="l2")
    kept = {"weight": 0.1, "balance": "gradient", "kind": "l2", "m1": 0.5, "m2": 0.25}
    assert configs.identity(read) == kept
    with pytest.raises(ValueError, match="no AlignmentConfig is called 'repa'; did you mean 'repa_e'"):
        configs.read(AlignmentConfig, {"type": "repa"})


Z = torch.zeros(3, requires_grad=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Z.sum(), "gives a Tensor; give three: loss for the latents, loss for the projection, figures to log"),
        ((Z.sum(), {}), "gives 2 values; give three"),
        ((Z, Z.sum(), {}), r"a loss for the latents that is of shape \[3\]; give a scalar tensor"),
        ((Z.sum(), None, {}), "a loss for the projection that is a NoneType; give a scalar"),
        ((Z.sum().detach(), Z.sum(), {}), "does not depend on them; is it detached"),
        ((Z.sum(), Z.sum(), None), r"figures that are a NoneType; give a dict, \{\} for none"),
    ],
)
def test_what_an_alignment_returns_is_checked(given, message):
    assert as_promised("mine", (Z.sum(), torch.zeros(()), {}))[2] == {}
    with pytest.raises(ValueError, match=f"tokenizer.alignment: 'mine' gives.*{message}|{message}"):
        as_promised("mine", given)


PLACES = """
from dataclasses import dataclass
from torch import nn
from dmvae.losses.alignment import AlignmentConfig
from dmvae.losses.alignment.pointwise import cosines
from dmvae.registry import register


@register("places")
@dataclass(frozen=True, kw_only=True)
class Places(AlignmentConfig):
    def projection(self, latent_shape, num_classes, width):
        return nn.Identity()

    def losses(self, projection, z, labels, features, rng):
        loss = (cosines(z) - cosines(features)).square().mean()
        return loss, loss.new_zeros(()), {"places/gap": loss.detach()}
"""


@pytest.mark.slow
def test_an_alignment_may_have_nothing_to_learn(tmp_path):
    (tmp_path / "places.py").write_text(PLACES)
    over = {"plugins": [str(tmp_path / "places.py")], "tokenizer__alignment": {"type": "places"}}
    tiny.run(tiny.write(tmp_path, **over), "matched", until="tokenizer")
    log = (tmp_path / "run/matched/tokenizer/log.jsonl").read_text()
    assert "places/gap" in log
    assert "projection/loss" not in log


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match=r"m1: expected a number, 0 to 2, got -0\.1"):
        configs.read(AlignmentConfig, {"m1": -0.1})
