"""LightningDiT: the reference implementation's numbers, published sizes, artifacts, memory saving."""

import pytest
import torch
import torch.nn.functional as F

from dmvae.generators.flow import FlowModelConfig
from dmvae.models.dit import LightningDiT, published
from dmvae.models.transformer import Attention, attend, normalised, rope_tables


def small(**changes) -> LightningDiT:
    torch.manual_seed(0)
    config = {"in_channels": 8, "input_size": 4, "width": 48, "depth": 2, "heads": 3, "num_classes": 10}
    model = LightningDiT(**config | changes)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the zero layers too, so that everything reaches the output
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs(side: int = 4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 8, side, side, generator=generator), torch.tensor([0.05, 0.5, 0.97]), torch.tensor([1, 7, 10])


def test_fixed_positions_are_the_reference_implementations(golden):
    assert torch.allclose(small().pos_embed, golden("lightningdit")["model.pos_embed"], atol=1e-6)


@pytest.mark.parametrize("size", ["XL/1", "Mini/1"])
def test_names_and_shapes_are_the_published_ones(size, official_keys, shapes):
    with torch.device("meta"):
        model = FlowModelConfig(size=size).build((32, 16, 16), 1000)
    theirs = official_keys[f"LightningDiT-{size}"]
    assert shapes(model) == {k: v for k, v in theirs.items() if not k.startswith("feat_rope.")}


@pytest.mark.parametrize(("size", "billions"), [("XL/1", 0.67526), ("1p0B/1", 1.0), ("1p6B/1", 1.6)])
def test_parameters_are_as_many_as_published(size, billions):
    with torch.device("meta"):
        model = FlowModelConfig(size=size).build((32, 16, 16), 1000)
    digits = len(str(billions)) - 2
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, digits) == billions


@pytest.mark.parametrize("size", ["XXL/1", "B/two", "XL-1", "XL/0"])
def test_an_unknown_size_is_an_error_that_names_the_nearest(size):
    with pytest.raises(ValueError, match="no network size is called"):
        published(size)


@pytest.mark.parametrize("name", ["patch_size", "depth", "heads"])
def test_numbers_below_one_are_an_error(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        small(**{name: 0})


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.rand(2), None])
def test_times_that_are_not_one_a_latent_are_told(t):
    z, _, labels = inputs()
    with pytest.raises(ValueError, match=r"t: give times \[3\], one for each latent; got "):
        small()(z, t, labels)


def test_latents_of_another_size_are_told_beside_those_that_it_was_built_for():
    z, t, labels = inputs()
    with pytest.raises(ValueError, match=r"z_t: latents \[8, 2, 2\]; this network was built for \[8, 4, 4\]"):
        small()(z[..., :2, :2], t, labels)


def test_a_new_model_predicts_zero_and_learns():
    model = LightningDiT(in_channels=8, input_size=4, width=48, depth=2, heads=3, num_classes=10)
    out = model(*inputs())
    assert out.count_nonzero() == 0
    (out - 1).square().mean().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0
    assert not model.pos_embed.requires_grad


def test_patches_keep_their_place():
    """With every block the identity, a change of one pixel stays in its patch."""
    model = small(patch_size=2)
    for block in model.blocks:
        torch.nn.init.zeros_(block.adaLN_modulation[1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[1].bias)
    z, t, labels = inputs()
    changed = z.clone()
    changed[:, :, 0, 3] += 1  # in the upper right patch
    with torch.no_grad():
        difference = (model(changed, t, labels) - model(z, t, labels)).abs().sum((0, 1))
    assert (difference > 0).tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize("patch_size", [1, 2])
def test_saved_and_loaded_it_gives_the_same(tmp_path, patch_size):
    model = small(patch_size=patch_size)
    model.save_pretrained(tmp_path)
    loaded = LightningDiT.from_pretrained(tmp_path)
    assert not loaded.pos_embed.requires_grad
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), model.eval()(*inputs()))


def test_the_norm_has_the_gradient_of_its_definition():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalised, (x,))
    assert torch.allclose(normalised(x), F.rms_norm(x, (8,), eps=1e-6))


@pytest.mark.parametrize("tokens", [16, 64, 200])
def test_attention_by_products_and_by_the_fused_kernel_agree(tokens):
    q, k, v = (torch.randn(2, 3, tokens, 8) for _ in range(3))
    fused = F.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(attend(q, k, v), fused, atol=1e-6)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (half.float() - fused).norm() < 1e-2 * fused.norm()


@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_is_its_definition_with_and_without_norms(qk_norm):
    torch.manual_seed(0)
    layer, x = Attention(12, 3, qk_norm), torch.randn(2, 9, 12)
    cos, sin = rope_tables(3, 4)
    q, k, v = layer.qkv(x).view(2, 9, 3, 3, 4).permute(2, 0, 3, 1, 4)  # [b, h, n, e] each
    q, k = (F.rms_norm(y, (4,), eps=1e-6) for y in (q, k)) if qk_norm else (q, k)
    at = torch.complex(cos, sin.unflatten(-1, (-1, 2))[..., 1:].expand(9, 1, 1, 2, 2).flatten(-2))[:, 0, 0, ::2]
    turned = [torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (2, 2)).contiguous()) * at) for y in (q, k)]
    q, k = (y.flatten(-2) for y in turned)
    out = torch.softmax(q @ k.mT / 2, -1) @ v
    assert torch.allclose(layer(x, cos, sin), layer.proj(out.transpose(1, 2).flatten(2)), atol=1e-6)


def test_weights_may_come_and_go_with_each_call_of_a_module():
    """As diffusers' offloading has it, by hooks: nobody may look at the weights of a module that is not called."""
    torch.manual_seed(0)
    shape = {"input_size": 4, "in_channels": 4, "num_classes": 3, "width": 32, "depth": 2, "heads": 2}
    model = LightningDiT(**shape, head_width=16, head_depth=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    asked = torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.7]), torch.tensor([0, 3])
    with torch.no_grad():
        expected = model(*asked)
    for module in model.modules():
        if module is model or not (own := dict(module.named_parameters(recurse=False))):
            continue

        def put(module, own=own):
            for name, value in own.items():
                setattr(module, name, value)

        def take(module, own=own):
            for name, value in own.items():
                setattr(module, name, torch.nn.Parameter(value.to("meta"), requires_grad=False))

        module.register_forward_pre_hook(lambda module, _, put=put: put(module))
        module.register_forward_hook(lambda module, *_, take=take: take(module))
        take(module)
    with torch.no_grad():
        assert torch.equal(model(*asked), expected)


def test_weights_may_be_kept_in_eight_bits():
    torch.manual_seed(0)
    model = LightningDiT(input_size=4, in_channels=4, num_classes=3, width=32, depth=2, heads=2).to(torch.bfloat16)
    asked = torch.randn(2, 4, 4, 4).bfloat16(), torch.tensor([0.3, 0.7]), torch.tensor([0, 3])
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    with torch.no_grad():
        assert model(*asked).isfinite().all()


def test_the_norm_s_gradient_has_one_of_its_own():
    """For penalties on gradients through a flow network."""
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(normalised, (x,))
    assert torch.autograd.gradgradcheck(normalised, (x,))
