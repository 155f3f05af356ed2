"""`autoencoder.detail_width`: what pixels add to latents of a frozen encoder."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import checks
from dmvae.recipe import load
from dmvae.tokenizers.autoencoder import Autoencoder

CONV = {"type": "conv", "width": 8, "multipliers": [1], "stride": 4, "out_channels": 8}


def small(**changes) -> Autoencoder:
    torch.manual_seed(0)
    config = {"encoder": CONV, "image_size": 16, "latent_channels": 4, "bottleneck_width": 8}
    return Autoencoder(**config | {"decoder": {"type": "conv", "width": 8, "multipliers": [1]}} | changes).eval()


@pytest.mark.parametrize("variational", [False, True])
@torch.no_grad()
def test_untrained_detail_changes_no_latent(variational):
    with_detail, x = small(detail_width=16, variational=variational), torch.rand(2, 3, 16, 8) * 2 - 1
    without = small(variational=variational)
    without.load_state_dict(with_detail.state_dict(), strict=False)
    assert torch.equal(with_detail.encode(x).latents, without.encode(x).latents)


@torch.no_grad()
def test_detail_of_a_place_is_of_its_own_pixels():
    """With an encoder that says nothing, a changed pixel changes the latent of its own place alone."""
    model, x = small(detail_width=16), torch.zeros(1, 3, 16, 16)
    for parameter in [*model.encoder.parameters(), *model.bottleneck.parameters()]:
        parameter.zero_()
    torch.nn.init.normal_(model.detail[-1].weight)
    changed = x.clone()
    changed[0, 1, 5, 15] = 1
    moved = (model.encode(changed).latents != model.encode(x).latents).any(1)[0].nonzero()
    assert moved.tolist() == [[1, 3]]


@pytest.mark.slow
def test_matching_trains_what_the_tokenizer_s_stage_left(tmp_path):
    path = tiny.write(tmp_path, autoencoder__detail_width=8, matching__train_encoder=False)
    tiny.run(path, "matched", until="matching")
    folder = tmp_path / "run" / "matched"
    first, then = (
        load_file(folder / stage / "autoencoder" / "diffusion_pytorch_model.safetensors")
        for stage in ("tokenizer", "matching")
    )
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], then[name])}
    assert {"detail", "bottleneck", "decoder"} <= moved
    assert "encoder" not in moved
    assert not any(first[name].any() for name in ("detail.2.weight", "detail.2.bias"))


@pytest.mark.slow
def test_it_can_be_trained_at_once(tmp_path):
    path = tiny.write(tmp_path, autoencoder__detail_width=8, tokenizer__train_detail=True)
    tiny.run(path, "matched", until="tokenizer")
    (file,) = (tmp_path / "run" / "matched" / "tokenizer" / "autoencoder").glob("*.safetensors")
    assert load_file(file)["detail.2.weight"].any()


def test_training_what_is_not_there_is_refused(tmp_path):
    recipe = load(tiny.write(tmp_path, tokenizer__train_detail=True))["matched"]
    told = "tokenizer.train_detail: there is nothing to train; give autoencoder.detail_width"
    assert [problem for problem in checks.problems(recipe, recipe.stages()) if told in problem]
