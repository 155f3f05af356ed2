"""The authors' weights: golden numbers through the importers, layouts of file, sizes from shapes, export, refusals."""

import copy
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoints import save
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dmvae import cli
from dmvae.flow.guidance import guided
from dmvae.interop import official
from dmvae.interop.lightningdit import config_of
from dmvae.interop.official import (
    export_generator,
    export_vae,
    import_discriminator,
    import_generator,
    import_vae,
)
from dmvae.models.dit import LightningDiT
from dmvae.tokenizers.adapted import start
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.tokenizers.dmvae import DmvaeTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = json.loads((GOLDEN / "official_keys.json").read_text())
# Relative errors allowed. Under bf16 each layer adds its rounding, and guidance at scale 5 multiplies that of the
# velocities' difference by five.
FLOAT32, BF16, BF16_AMPLIFIED = 1e-4, 2e-2, 5e-2

ENCODER = {"type": "timm", "model": "vit_large_patch14_dinov2", "patch_size": 16, "img_size": 256}
LARGE = {"encoder": ENCODER | {"pretrained": False, "kwargs": {}}, "image_size": 256, "in_channels": 3}
LARGE |= {"latent_channels": 32, "bottleneck_width": 2048}
LARGE |= {"decoder": {"type": "conv", "width": 128, "multipliers": [1, 2, 4, 4], "blocks": 2, "attention": True}}
XL = {"in_channels": 32, "input_size": 16, "width": 1152, "depth": 28, "heads": 16, "num_classes": 1000}
XL |= {"patch_size": 1, "mlp_ratio": 4.0}


def error(a, b):
    return ((a.float() - b).norm() / b.norm()).item()


def published(network):
    """A released network's tensors, by name and shape; all are floats but batch norm's counters."""
    shapes = OFFICIAL[network].items()
    return {k: torch.ones(v, dtype=torch.int64 if "num_batches" in k else torch.float32) for k, v in shapes}


@pytest.mark.slow
@torch.no_grad()
def test_the_commands_import_and_export(tmp_path, vae, vae_data, ep64, capsys):
    file, folder = GOLDEN / "vae.safetensors", tmp_path / "vae"
    cli.main(["import", "official-vae", str(file), "--encoder-heads", "3", "--out", str(folder)])
    cli.main(["export", "official-vae", str(folder), "--out", str(tmp_path / "back.pt")])
    x = vae_data["image_u8"] / 127.5 - 1
    for model in (Autoencoder.from_pretrained(folder), import_vae(tmp_path / "back.pt", heads=3)):
        assert torch.equal(model.eval().encode(x).latents, vae.encode(x).latents)
    cli.main(["import", "official-generator", str(ep64), "--out", str(tmp_path / "generator")])
    loaded, own = LightningDiT.from_pretrained(tmp_path / "generator"), import_generator(ep64)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), own.parameters(), strict=True))
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("M parameters") == 2
    assert "--latent-mean 0.0685 --latent-scale 0.1763" in told, "as published, over all channels"
    assert "it does not show that the encoder has 3 heads: import it with --encoder-heads 3" in told


def test_an_export_tells_what_the_authors_file_does_not_hold(tmp_path, vae):
    vae = copy.deepcopy(vae)
    mean, std = torch.linspace(-1, 3, 8), torch.linspace(0.5, 2, 8)
    vae.set_statistics(mean, std)
    vae.drawn = True
    told = list[str]()
    export_vae(vae, tmp_path / "vae.pt", say=told.append)
    z = torch.stack([mean - std, mean + std]).double()  # latents of these statistics
    whole = f"--latent-mean {z.mean():.4g} --latent-scale {1 / z.std(correction=0):.4g}"
    assert told[0].endswith(whole)
    assert "fixed_std" in told[1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("bf16", "plain", "cfg5"), [(False, FLOAT32, FLOAT32), (True, BF16, BF16_AMPLIFIED)], ids=["float32", "bf16"]
)
def test_the_imported_generator_gives_the_reference_implementations_numbers(ep64, dit_data, bf16, plain, cfg5):
    model, data = import_generator(ep64), dit_data
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        velocity = model(data["x"], data["t"], data["y"])
        with_guidance = guided(model, 5.0, 10)(data["x"], data["t"], data["y_cfg"])
    assert error(velocity, data["velocity"]) < plain
    assert error(with_guidance, data["velocity_cfg5"]) < cfg5


def test_importing_prints_nothing_and_gives_models_ready_to_use(ep64, capfd):
    models = import_vae(GOLDEN / "vae.safetensors", heads=3), import_generator(ep64)
    assert capfd.readouterr() == ("", "")
    assert not any(model.training for model in models)
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}


def test_a_tokenizer_carries_the_published_statistics(vae):
    z = torch.randn(2, 8, 3, 3)
    assert torch.allclose(vae.normalize(z), (z - 0.0685) * 0.1763, atol=1e-6)
    other = import_vae(GOLDEN / "vae.safetensors", heads=3, latent_mean=1.0, latent_scale=0.5)
    assert (other.latent_mean == 1).all()
    assert (other.latent_std == 2).all()
    assert (vae.config["scaling_factor"], vae.config["shift_factor"]) == (0.1763, 0.0685)


def test_a_generators_weights_are_the_average_unless_the_model_is_asked_for(ep64, dit_state):
    assert torch.equal(import_generator(ep64).x_embedder.proj.bias, dit_state["x_embedder.proj.bias"].float())
    model = import_generator(ep64, weights="model")
    assert torch.equal(model.x_embedder.proj.bias, 2 * dit_state["x_embedder.proj.bias"].float())


@pytest.mark.slow
def test_a_tokenizers_weights_are_those_the_authors_sample_with_unless_the_average_is_asked_for(tmp_path, vae_state):
    doubled = vae_state | {"decoder.conv_out.bias": 2 * vae_state["decoder.conv_out.bias"]}
    file = save(tmp_path / "vae.pt", {"vae_wo_ddp": vae_state, "vae_ema": doubled})
    for weights, state in {
        None: vae_state,
        "model": vae_state,
        "wo_ddp": vae_state,
        "ema": doubled,
        "vae_ema": doubled,
    }.items():
        bias = import_vae(file, heads=3, weights=weights).decoder.conv_out.bias
        assert torch.equal(bias, state["decoder.conv_out.bias"].float())


def test_a_file_may_lie_on_the_hub(ep64, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there = {("sen-ye/dmvae", "ep64.pt"): ep64}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(there[repository, name]))
    ours, theirs = import_generator(ep64).state_dict(), import_generator(Path("sen-ye/dmvae/ep64.pt")).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


PREFIXES = ("", "module.", "_orig_mod.module.", "module._orig_mod.", "model.", "ema.module.")


@pytest.mark.parametrize(
    ("kind", "prefix", "weights"),
    [
        *(("safetensors", prefix, "ema" if "ema" in prefix else "model") for prefix in PREFIXES),
        ("zip", "module.", "model"),
        ("legacy", "module.", "model"),
        ("nested", "module.", "model"),
        ("nested", "module.", "ema"),
    ],
)
def test_state_dicts_are_read_bare_nested_or_prefixed_from_every_kind_of_file(
    tmp_path, dit_state, kind, prefix, weights
):
    file = tmp_path / "weights.pt"  # the content tells the kind, not the suffix
    state = {prefix + k: v for k, v in dit_state.items()}
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "nested":
        save(file, {"model": state, "ema": dit_state})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    model = import_generator(file, weights=weights)
    assert torch.equal(model.final_layer.linear.weight, dit_state["final_layer.linear.weight"].float())


@pytest.mark.parametrize(
    ("network", "build", "config"),
    [
        ("vae_large_z32", official.build_vae, LARGE),
        ("LightningDiT-XL/1", official.build_generator, XL),
        ("LightningDiT-Mini/1", official.build_generator, {"width": 256, "depth": 6, "heads": 4, "mlp_ratio": 4.0}),
        ("patchgan", official.build_discriminator, {"in_channels": 3, "width": 64, "layers": 3, "norm": "batch"}),
    ],
)
def test_every_tensor_of_the_released_networks_has_its_place(network, build, config):
    with torch.device("meta"):
        model = build(published(network), network)
    assert {k: v for k, v in model.config.items() if k in config} == config


@pytest.mark.parametrize(
    ("model", "kwargs", "changes"),
    [
        ("vit_small_patch14_dinov2", {}, {"in_channels": 1, "decoder": {"attention": False}}),
        ("vit_base_patch14_dinov2", {"depth": 3, "mlp_ratio": 3.0}, {"decoder": {"multipliers": [1, 3]}, "patch": 8}),
        ("vit_large_patch14_reg4_dinov2", {"depth": 1}, {"decoder": {"blocks": 1}}),
        ("vit_small_patch14_reg4_dinov2", {"num_heads": 4, "reg_tokens": 2}, {"bottleneck_width": 100, "patch": 32}),
        ("vit_large_patch14_dinov2", {"embed_dim": 51, "num_heads": 3, "mlp_ratio": 2.7}, {"decoder": {"width": 96}}),
    ],
)
def test_a_tokenizers_sizes_are_read_off_its_shapes(model, kwargs, changes):
    patch = changes.pop("patch", 16)
    encoder = LARGE["encoder"] | {"model": model, "patch_size": patch, "img_size": 64, "kwargs": kwargs}
    config = LARGE | {"encoder": encoder, "image_size": 64, "latent_channels": 8} | changes
    config["decoder"] = LARGE["decoder"] | changes.get("decoder", {})
    with torch.device("meta"):
        made = Autoencoder(**config)
        state = {official.official_name(k): v for k, v in official.weights_of(made).items()}
        state |= official.pixel_constants()
        read = official.build_vae(state, "here", heads=made.encoder.model.blocks[0].attn.num_heads)
    found = {k: read.config[k] for k in config}
    ratio = found["encoder"]["kwargs"].pop("mlp_ratio", 4.0)
    assert ratio == pytest.approx(kwargs.pop("mlp_ratio", 4.0), abs=0.02)  # only up to whole widths
    assert found == config


@pytest.mark.parametrize(
    "changes", [{"patch_size": 2}, {"mlp_ratio": 2.7}, {"mlp_ratio": 1.0}, {"width": 60}, {"qk_norm": False}]
)
def test_a_generators_sizes_are_read_off_its_shapes(changes):
    config = {"in_channels": 4, "input_size": 8, "width": 72, "depth": 2, "heads": 3, "num_classes": 7, "patch_size": 1}
    config |= {"mlp_ratio": 4.0, "qk_norm": True} | changes
    made = LightningDiT(**config)
    tables = {"feat_rope.freqs_cos": made.rope_cos.flatten(1).shape}
    read = config_of({k: v.shape for k, v in made.state_dict().items()} | tables, "here")
    assert {k: v for k, v in read.items() if k != "mlp_ratio"} == {k: v for k, v in config.items() if k != "mlp_ratio"}
    assert LightningDiT(**read).blocks[0].mlp.w12.weight.shape == made.blocks[0].mlp.w12.weight.shape


def test_a_generator_without_normalised_queries_and_keys_is_read_whole(tmp_path, dit_state, dit_data):
    plain = {k: v for k, v in dit_state.items() if "q_norm" not in k and "k_norm" not in k}
    model = import_generator(save(tmp_path / "lightningdit.pt", {"ema": {f"module.{k}": v for k, v in plain.items()}}))
    loaded = model.state_dict()
    assert model.config["qk_norm"] is False
    assert all(torch.equal(loaded[k], v.float()) for k, v in plain.items() if "feat_rope" not in k)


def test_the_authors_pixel_normalisation_is_our_encoders(vae):
    x = torch.rand(2, 3, 5, 5) * 2 - 1
    c = {k.removeprefix("encoder."): v for k, v in official.pixel_constants().items()}
    theirs = ((x * c["de_scale.std"] + c["de_scale.mean"]) - c["scale.mean"]) / c["scale.std"]
    assert torch.allclose(theirs, x * vae.encoder.scale + vae.encoder.shift, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("from_folder", [False, True])
def test_what_is_exported_is_what_was_imported_bit_for_bit(tmp_path, vae, vae_state, suffix, from_folder):
    source, file = vae, tmp_path / "new" / f"vae{suffix}"
    if from_folder:
        vae.save_pretrained(source := tmp_path / "saved")
    export_vae(source, file)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    saved = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    prefix = "vae_wo_ddp." if suffix == ".safetensors" else ""
    written = {k.removeprefix(prefix): v for k, v in (saved if prefix else saved["vae_wo_ddp"]).items()}
    assert written.keys() == vae_state.keys()
    assert all(torch.equal(written[k], v.float()) for k, v in vae_state.items())
    again = import_vae(file, heads=3).state_dict()
    assert all(torch.equal(again[k], v) for k, v in vae.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "changes", [{}, {"qk_norm": False}, {"patch_size": 2}, {"mlp_ratio": 2.0, "width": 60}], ids=str
)
def test_a_generator_that_is_exported_comes_back_bit_for_bit(tmp_path, suffix, changes):
    config = {"in_channels": 4, "input_size": 8, "width": 72, "depth": 2, "heads": 3, "num_classes": 7} | changes
    model = LightningDiT(**config).eval()
    for parameter in model.parameters():
        parameter.normal_()
    model.save_pretrained(tmp_path / "generator")
    file = tmp_path / f"ep64{suffix}"
    cli.main(["export", "official-generator", str(tmp_path / "generator"), "--out", str(file)])
    again = import_generator(file)
    own, read = model.state_dict(), again.state_dict()
    assert own.keys() == read.keys()
    assert all(torch.equal(own[name], read[name]) for name in own)
    assert {name: again.config[name] for name in config} == config
    inputs = torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 7])
    assert torch.equal(model(*inputs), again(*inputs))


def test_an_exported_generator_is_the_authors_file(tmp_path, ep64, dit_state):
    export_generator(import_generator(ep64), tmp_path / "back.pt")
    written = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(written) == ["ema"]
    assert written["ema"].keys() == dit_state.keys()
    for name, value in dit_state.items():
        if name.startswith("feat_rope"):  # angles that we compute ourselves
            assert torch.allclose(written["ema"][name], value.float(), atol=1e-4 + torch.finfo(value.dtype).eps), name
        else:
            assert torch.equal(written["ema"][name], value.float()), name


@pytest.mark.slow
@torch.no_grad()
def test_saved_as_our_own_they_give_the_same(tmp_path, vae, vae_data, ep64, dit_data):
    vae.save_pretrained(tmp_path / "vae")
    x = vae_data["image_u8"] / 127.5 - 1
    loaded = Autoencoder.from_pretrained(tmp_path / "vae")
    assert torch.equal(loaded(x).sample, vae(x).sample)
    assert torch.equal(loaded.latent_std, vae.latent_std)
    model, inputs = import_generator(ep64), (dit_data["x"], dit_data["t"], dit_data["y"])
    model.save_pretrained(tmp_path / "generator")
    assert torch.equal(LightningDiT.from_pretrained(tmp_path / "generator")(*inputs), model(*inputs))


@pytest.mark.slow
def test_it_can_be_trained_further(tmp_path, vae):
    """As `pretrained` in a recipe with `matching`: our own class, whole, with weights that move."""
    vae.save_pretrained(tmp_path)
    source = DmvaeTokenizer(path=str(tmp_path))
    model = start(source, size=vae.config.image_size, channels=3, pretrained=True)
    assert type(model) is type(vae)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), vae.parameters(), strict=True))
    size = vae.config.image_size
    model(torch.rand(1, 3, size, size)).sample.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_discriminator_is_read_by_its_own_names(tmp_path):
    state = published("patchgan")
    model = import_discriminator(save(tmp_path / "disc.pt", {f"module.{k}": v for k, v in state.items()}))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
