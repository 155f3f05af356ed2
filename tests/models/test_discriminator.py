"""PatchGAN: published names, independence of images, artifacts."""

import pytest
import torch

from dmvae.models.discriminator import PatchGAN


def test_names_and_shapes_are_the_published_ones(official_keys, shapes):
    assert shapes(PatchGAN(in_channels=3)) == official_keys["patchgan"]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_one_logit_per_patch(norm):
    assert PatchGAN(in_channels=1, width=8, layers=2, norm=norm)(torch.randn(2, 1, 32, 32)).shape == (2, 1, 6, 6)


@torch.no_grad()
def test_group_norm_judges_each_image_alone():
    model, x = PatchGAN(in_channels=3, width=8, norm="group"), torch.randn(4, 3, 32, 32)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    model, x = PatchGAN(in_channels=3, width=8), torch.randn(4, 3, 32, 32)
    model(x)  # moves the running statistics
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(PatchGAN.from_pretrained(tmp_path)(x), model(x))


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="did you mean 'group'"):
        PatchGAN(in_channels=3, norm="groups")


@pytest.mark.parametrize(("layers", "least"), [(0, 4), (1, 6), (2, 12), (3, 24)])
def test_images_that_are_too_small_are_an_error_that_names_the_field(layers, least):
    model = PatchGAN(in_channels=1, width=4, layers=layers, norm="none")
    assert model(torch.zeros(1, 1, least, least + 9)).shape[2] == 1
    with pytest.raises(ValueError, match=rf"x{least - 1} .* layers = {layers}, which needs {least}"):
        model(torch.zeros(1, 1, least + 9, least - 1))
