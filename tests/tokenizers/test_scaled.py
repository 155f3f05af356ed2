"""A pipeline of somebody's tokenizer and generator, put together by hand: latents are decoded at their scale or not at
all."""

import foreign
import pytest
import torch

from dmvae import DMVAEPipeline, LightningDiT
from dmvae import config as configs
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt, normalisation_of
from dmvae.tokenizers.dmvae import DmvaeTokenizer


def fresh(kind: str, folder) -> AdaptedTokenizer:
    source = configs.read(TokenizerSource, foreign.source(kind, folder), "")
    return adapt(source, size=16, channels=3, pretrained=True)


def joined(vae) -> DMVAEPipeline:
    shape = {"in_channels": vae.config["latent_channels"], "input_size": vae.latent_size}
    return DMVAEPipeline(LightningDiT(**shape, num_classes=2, width=16, depth=1, heads=2), vae)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("AutoencoderKL", r"vae: nothing says how .* scaled\. .*set_statistics\(\*.*normalisation_of\(vae\)\)"),
        ("vavae", r"vae: .* this tokenizer's latents scaled, and it does not say how; .*set_statistics\(mean, std\)"),
    ],
)
def test_latents_whose_scale_nobody_set_are_refused(tmp_path, kind, message):
    vae = fresh(kind, tmp_path)
    with pytest.raises(ValueError, match=message):
        joined(vae)
    vae.save_pretrained(tmp_path / "unscaled")
    again = AdaptedTokenizer.from_pretrained(tmp_path / "unscaled")
    with pytest.raises(ValueError, match=message):
        joined(again)
    with pytest.raises(ValueError, match=message):
        joined(adapt(DmvaeTokenizer(path=str(tmp_path / "unscaled")), size=16, channels=3, pretrained=True))
    channels = vae.config["latent_channels"]
    vae.set_statistics(torch.zeros(channels), torch.ones(channels))  # on purpose
    joined(vae)
    vae.save_pretrained(tmp_path / "saved")
    joined(AdaptedTokenizer.from_pretrained(tmp_path / "saved"))


def test_nobody_s_scale_is_not_written_into_the_network_s_own_class(tmp_path):
    vae = fresh("AutoencoderKL", tmp_path)
    assert vae.as_diffusers().config.scaling_factor == 0.18215
    vae.set_statistics(torch.zeros(4), torch.full((4,), 2.0))
    assert vae.as_diffusers().config.scaling_factor == 0.5


def test_the_numbers_that_the_error_names_scale_as_diffusers_does(tmp_path):
    vae = fresh("AutoencoderKL", tmp_path)
    vae.set_statistics(*normalisation_of(vae))
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(joined(vae).vae.denormalize(z), z / 0.18215)


@pytest.mark.parametrize("kind", ["AutoencoderTiny", "identity"])
def test_raw_latents_need_no_scale(tmp_path, kind):
    joined(fresh(kind, tmp_path))
