"""Which sample of the reference an image edits: each alone by optimal transport, or one of a group's."""

import pytest
import torch

import tiny
from dmvae import Autoencoder
from dmvae.models.artifact import load_strictly
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.dmvae import DmvaeTokenizer
from dmvae.tokenizers.editor import Editor


def test_before_training_a_latent_is_its_sample_and_a_tenth_of_the_way_to_its_image():
    editor = Editor(features=2, channels=3, grid=2, width=4, bank=4)
    mean, std = torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1), torch.tensor([2.0, 0.5, 1.0]).view(3, 1, 1)
    editor.mean.copy_(mean.flatten())
    editor.std.copy_(std.flatten())
    features, latents, y = (torch.randn(5, c, 2, 2, generator=torch.Generator().manual_seed(c)) for c in (2, 3, 3))
    expected = (y + 0.1 * ((latents - mean) / std - y)) * std + mean
    torch.testing.assert_close(editor(features, latents, y), expected)


def assigned(editor, mu):
    return editor.draw(mu, torch.Generator().manual_seed(0)).flatten()


def test_assigned_samples_are_taken_alike_and_suit_the_image():
    """Images on a line near the bank's middle: without prices a few samples would serve all of them."""
    editor = Editor(features=2, channels=1, grid=1, width=4, bank=64, assigned=True)
    editor.bank.copy_(torch.linspace(-3, 3, 64).view(-1, 1, 1, 1))
    mu = 0.1 * torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    assert assigned(editor, mu).unique().numel() < 12
    editor.settle(mu[:2048])
    fresh = assigned(editor, mu[2048:])
    counts = torch.histc(fresh, bins=64, min=-3.05, max=3.05)
    assert counts.min() > 8, "32 each, if all are taken alike"
    assert counts.max() < 96
    assert torch.equal(fresh[mu[2048:].flatten().argsort()], fresh.sort().values), "on a line the plan is monotone"


def grouped(groups: int, spread: float) -> tuple[Editor, torch.Tensor, torch.Tensor]:
    """Images of two kinds, far apart in one of eight directions, in unequal number; a bank of white noise."""
    rng = torch.Generator().manual_seed(0)
    editor = Editor(features=2, channels=8, grid=1, width=4, bank=1024, assigned=True, groups=groups)
    editor.bank.copy_(torch.randn(1024, 8, 1, 1, generator=rng))
    kind = (torch.rand(4096, generator=rng) < 0.25).float()
    mu = spread * torch.randn(4096, 8, 1, 1, generator=rng)
    mu[:, 0, 0, 0] += 6 * spread * kind
    return editor, mu, kind


@pytest.mark.parametrize("spread", [0.05, 1.0, 20.0])
def test_groups_take_images_and_samples_alike_wherever_latents_start(spread):
    editor, mu, _ = grouped(16, spread)
    for _ in range(3):
        editor.settle(mu[:2048])
    assert sorted(editor.members.flatten().tolist()) == list(range(1024)), "each sample is in one group"
    counts = editor.assign(mu[2048:]).bincount(minlength=16)
    assert counts.min() > 80, "128 each, if all are taken alike"
    assert counts.max() < 190
    y = editor.draw(mu[2048:], torch.Generator().manual_seed(1)).flatten(1)
    assert y.mean(0).abs().max() < 0.1
    assert y.std(0) == pytest.approx(editor.bank.flatten(1).std(0), abs=0.04)


def test_a_group_tells_the_kind_of_image_and_leaves_its_samples_random():
    found = {}
    for groups in (2, 4, 16):
        editor, mu, kind = grouped(groups, 1.0)
        for _ in range(5):
            editor.settle(mu[:2048])
        y = editor.draw(mu[2048:], torch.Generator().manual_seed(1)).flatten(1)
        of = kind[2048:].bool()
        found[groups] = float(y[of, 0].mean() - y[~of, 0].mean())
        again = editor.draw(mu[2048:], torch.Generator().manual_seed(2)).flatten(1)
        assert (y != again).any(1).float().mean() == pytest.approx(1 - groups / 1024, abs=0.01)
    assert found[4] > 1.0, "the quarter that differs has its own part of the bank"
    assert found[16] > 1.0


def test_a_batch_in_training_is_shared_out_evenly():
    editor, mu, _ = grouped(16, 1.0)
    editor.settle(mu[:2048])
    group = torch.empty(1024, dtype=torch.int64)
    group[editor.members.flatten()] = torch.arange(16).repeat_interleave(64)
    rng = torch.Generator().manual_seed(1)
    y = editor.draw(mu[2048:2096], rng, even=True)
    at = torch.cdist(y.flatten(1), editor.bank.flatten(1)).argmin(1)
    assert group[at].bincount().tolist() == [3] * 16
    assert editor.assign(mu[2048:2096]).bincount(minlength=16).max() > 4, "each alone they would not be"


def test_groups_divide_the_bank():
    with pytest.raises(ValueError, match="5 groups of a bank of 16 samples: give a number that divides it"):
        Editor(features=2, channels=1, grid=1, width=4, bank=16, assigned=True, groups=5)


def own_model(**choice) -> Autoencoder:
    encoder = {"type": "conv", "width": 8, "multipliers": [1, 1], "stride": 4, "out_channels": 8}
    editor = {"width": 4, "bank": 16, **choice}
    decoder = {"type": "conv", "width": 4, "multipliers": [1, 1], "blocks": 1, "attention": False}
    parts = {"encoder": encoder, "decoder": decoder, "editor": editor}
    return Autoencoder(image_size=8, latent_channels=2, bottleneck_width=4, **parts)


@pytest.mark.parametrize("choice", [{}, {"assigned": True}, {"assigned": True, "groups": 4}])
def test_such_a_tokenizer_is_another_recipe_s_as_it_is(tmp_path, choice):
    model = own_model(**choice).eval()
    torch.nn.init.normal_(model.editor.bank, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    again = adapt(DmvaeTokenizer(path=str(tmp_path)), size=8, channels=3, pretrained=True).eval()
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(again.encode(x).latents, model.encode(x).latents)


@pytest.mark.parametrize("wrong", [-1, 16])
def test_weights_that_name_a_sample_which_is_not_there_are_refused(tmp_path, wrong):
    model = own_model(assigned=True, groups=4)
    model.save_pretrained(tmp_path)
    assert load_strictly(Autoencoder, tmp_path).editor.members.max() == 15
    model.editor.members[1, 2] = wrong
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*editor.members: samples .*{wrong}.* of 16, which begin at 0"):
        load_strictly(Autoencoder, tmp_path)


@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tokenizer_that_assigns_samples_encodes_in_half_precision(tmp_path, groups, dtype):
    torch.manual_seed(0)
    model = Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12}).eval()
    bank = torch.randn(16, 4, 3, 3)
    edited = model.with_editor(bank, torch.zeros(4), torch.ones(4), width=8, assigned=True, groups=groups)
    edited.save_pretrained(tmp_path)
    half = Autoencoder.from_pretrained(tmp_path, torch_dtype=dtype).eval()
    x = torch.rand(2, 3, 12, 12) * 2 - 1
    with torch.no_grad():
        z = half.encode(x.to(dtype)).latents
    assert z.dtype == dtype
    assert z.isfinite().all()


def test_images_of_another_size_are_told_where_samples_are_edited():
    model = Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12}).eval()
    edited = model.with_editor(torch.randn(16, 4, 3, 3), torch.zeros(4), torch.ones(4), width=8)
    assert edited.encode(torch.zeros(1, 3, 12, 12)).latents.shape == (1, 4, 3, 3)
    with pytest.raises(ValueError, match="edits samples of its reference, which are of images of 12x12, not 24x12"):
        edited.encode(torch.zeros(1, 3, 24, 12))
    assert model.encode(torch.zeros(1, 3, 24, 12)).latents.shape == (1, 4, 6, 3)
