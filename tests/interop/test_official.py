"""The authors' weights: golden numbers through the importers, layouts of file, sizes from shapes, export, refusals."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmvae.flow.guidance import guided
from dmvae.interop import official
from dmvae.interop.official import export_vae, import_discriminator, import_generator, import_vae
from dmvae.models import Autoencoder, LightningDiT

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = json.loads((GOLDEN / "official_keys.json").read_text())
# Relative errors allowed. Under bf16 each layer adds its rounding: the golden decoder's thirty random ones come to
# 3.6e-2, and guidance at scale 5 multiplies that of the velocities' difference by five.
FLOAT32, BF16, BF16_AMPLIFIED = 1e-4, 2e-2, 5e-2

ENCODER = {"type": "timm", "model": "vit_large_patch14_dinov2", "patch_size": 16, "img_size": 256}
LARGE = {"encoder": ENCODER | {"pretrained": False, "kwargs": {}}, "image_size": 256, "in_channels": 3}
LARGE |= {"latent_channels": 32, "bottleneck_width": 2048, "decoder_width": 128, "decoder_multipliers": (1, 2, 4, 4)}
LARGE |= {"decoder_blocks": 2, "decoder_attention": True}
XL = {"in_channels": 32, "input_size": 16, "width": 1152, "depth": 28, "heads": 16, "num_classes": 1000}
XL |= {"patch_size": 1, "mlp_ratio": 4.0}


def error(a, b):
    return ((a.float() - b).norm() / b.norm()).item()


def part_of(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def vae_data():
    return load_file(GOLDEN / "vae.safetensors")


@pytest.fixture(scope="module")
def vae_state(vae_data):
    """The golden tokenizer's state dict under the authors' names."""
    return part_of(vae_data, "vae_ema.")


@pytest.fixture(scope="module")
def vae():
    return import_vae(GOLDEN / "vae.safetensors", heads=3)


@pytest.fixture(scope="module")
def dit_data():
    return load_file(GOLDEN / "lightningdit.safetensors")


@pytest.fixture(scope="module")
def dit_state(dit_data):
    """The golden generator's state dict under the authors' names."""
    return part_of(dit_data, "model.")


@pytest.fixture
def ep64(tmp_path, dit_state):
    """A generator's checkpoint as the authors' training writes it; only its `ema` is the golden network."""
    file = tmp_path / "ep64.pt"
    other = {k: v * 2 for k, v in dit_state.items() if "feat_rope" not in k}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]}
    args = argparse.Namespace(lr=2e-4, image_size=256)
    torch.save({"ema": dit_state, "model": dit_state | other, "opt": optimizer, "args": args, "steps": 9}, file)
    return file


def save(path, content):
    torch.save(content, path)
    return path


def published(network):
    """A released network's tensors, by name and shape; all are floats but batch norm's counters."""
    shapes = OFFICIAL[network].items()
    return {k: torch.ones(v, dtype=torch.int64 if "num_batches" in k else torch.float32) for k, v in shapes}


@torch.no_grad()
@pytest.mark.parametrize(
    ("bf16", "latents", "images"), [(False, FLOAT32, FLOAT32), (True, BF16, BF16_AMPLIFIED)], ids=["float32", "bf16"]
)
def test_the_imported_tokenizer_gives_the_reference_implementations_numbers(vae, vae_data, bf16, latents, images):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        z = vae.encode(vae_data["image_u8"] / 127.5 - 1).latents
        x = vae.decode(z).sample
    assert error(z.flatten(2).transpose(1, 2), vae_data["latents"]) < latents
    assert error(x, vae_data["reconstruction"]) < images


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
    if "scaling_factor" in vae.config:
        assert (vae.config["scaling_factor"], vae.config["shift_factor"]) == (0.1763, 0.0685)


def test_a_generators_weights_are_the_average_unless_the_model_is_asked_for(ep64, dit_state):
    assert torch.equal(import_generator(ep64).x_embedder.proj.bias, dit_state["x_embedder.proj.bias"].float())
    model = import_generator(ep64, weights="model")
    assert torch.equal(model.x_embedder.proj.bias, 2 * dit_state["x_embedder.proj.bias"].float())


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


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "ema.module."])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "nested"])
def test_state_dicts_are_read_bare_nested_or_prefixed_from_every_kind_of_file(tmp_path, dit_state, prefix, kind):
    file = tmp_path / "weights.pt"  # the content tells the kind, not the suffix
    state = {prefix + k: v for k, v in dit_state.items()}
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "nested":
        save(file, {"model": {f"module.{k}": v for k, v in dit_state.items()}, "ema": dit_state})
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    model = import_generator(file, weights="ema" if "ema" in prefix else "model")
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
        ("vit_small_patch14_dinov2", {}, {"in_channels": 1, "decoder_attention": False}),
        ("vit_base_patch14_dinov2", {"depth": 3, "mlp_ratio": 3.0}, {"decoder_multipliers": (1, 3), "patch": 8}),
        ("vit_large_patch14_reg4_dinov2", {"depth": 1}, {"decoder_blocks": 1}),
        ("vit_small_patch14_reg4_dinov2", {"num_heads": 4, "reg_tokens": 2}, {"bottleneck_width": 100, "patch": 32}),
        ("vit_large_patch14_dinov2", {"embed_dim": 51, "num_heads": 3, "mlp_ratio": 2.7}, {"decoder_width": 96}),
    ],
)
def test_a_tokenizers_sizes_are_read_off_its_shapes(model, kwargs, changes):
    patch = changes.pop("patch", 16)
    encoder = LARGE["encoder"] | {"model": model, "patch_size": patch, "img_size": 64, "kwargs": kwargs}
    config = LARGE | {"encoder": encoder, "image_size": 64, "latent_channels": 8} | changes
    with torch.device("meta"):
        made = Autoencoder(**config)
        state = {official.official_name(k): v for k, v in official.weights_of(made).items()}
        state |= official.pixel_constants()
        read = official.build_vae(state, "here", heads=made.encoder.model.blocks[0].attn.num_heads)
    found = {k: read.config[k] for k in config}
    ratio = found["encoder"]["kwargs"].pop("mlp_ratio", 4.0)
    assert ratio == pytest.approx(kwargs.pop("mlp_ratio", 4.0), abs=0.02)  # only up to whole widths
    assert found == config


@pytest.mark.parametrize("changes", [{"patch_size": 2}, {"mlp_ratio": 2.7}, {"mlp_ratio": 1.0}, {"width": 60}])
def test_a_generators_sizes_are_read_off_its_shapes(changes):
    config = {"in_channels": 4, "input_size": 8, "width": 72, "depth": 2, "heads": 3, "num_classes": 7, "patch_size": 1}
    config |= {"mlp_ratio": 4.0} | changes
    made = LightningDiT(**config)
    read = official.generator_config({k: v.shape for k, v in made.state_dict().items()}, "here")
    assert {k: v for k, v in read.items() if k != "mlp_ratio"} == {k: v for k, v in config.items() if k != "mlp_ratio"}
    assert LightningDiT(**read).blocks[0].mlp.w12.weight.shape == made.blocks[0].mlp.w12.weight.shape


def test_the_authors_pixel_normalisation_is_our_encoders(vae):
    x = torch.rand(2, 3, 5, 5) * 2 - 1
    c = {k.removeprefix("encoder."): v for k, v in official.pixel_constants().items()}
    theirs = ((x * c["de_scale.std"] + c["de_scale.mean"]) - c["scale.mean"]) / c["scale.std"]
    assert torch.allclose(theirs, x * vae.encoder.scale + vae.encoder.shift, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("from_folder", [False, True])
def test_what_is_exported_is_what_was_imported_bit_for_bit(tmp_path, vae, vae_state, suffix, from_folder):
    source, file = vae, tmp_path / "new" / f"vae{suffix}"
    if from_folder:
        vae.save_pretrained(source := tmp_path / "saved")
    export_vae(source, file)
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    saved = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    written = part_of(saved, "vae_wo_ddp.") if suffix == ".safetensors" else saved["vae_wo_ddp"]
    assert written.keys() == vae_state.keys()
    assert all(torch.equal(written[k], v.float()) for k, v in vae_state.items())
    again = import_vae(file, heads=3).state_dict()
    assert all(torch.equal(again[k], v) for k, v in vae.state_dict().items())


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


def test_a_discriminator_is_read_by_its_own_names(tmp_path):
    state = published("patchgan")
    model = import_discriminator(save(tmp_path / "disc.pt", {f"module.{k}": v for k, v in state.items()}))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, how):
    file, marker = tmp_path / "vae.pt", tmp_path / "was here"
    content = {"vae_wo_ddp": Evil(f"touch '{marker}'")}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=r"vae\.pt: refused, .*posix\.system.*run code.*re-save"):
        import_vae(file)
    assert not marker.exists()
    pickle.loads(pickle.dumps(content))  # the trap works where nothing guards it
    assert marker.exists()


def test_a_pickle_of_a_newer_protocol_is_not_run_and_the_way_around_the_guard_is_not_advertised(tmp_path):
    file, marker = tmp_path / "vae.pt", tmp_path / "was here"
    torch.save({"vae_wo_ddp": Evil(f"touch '{marker}'")}, file, pickle_protocol=4)
    with pytest.raises(ValueError, match=r"not made of plain tensors \(UnpicklingError: Unsupported operand") as caught:
        import_vae(file)
    assert not marker.exists()
    assert "weights_only" not in str(caught.value)


def test_a_pickled_module_is_refused_by_name(tmp_path):
    file = save(tmp_path / "whole.pt", {"ema": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"refused, because it asks for torch\.nn\.modules\.linear\.Linear"):
        import_generator(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "neither a safetensors .*git-lfs pointer"),
        (b"\x89PNG\r\n\x1a\n0000", "neither a safetensors"),
        (b"PK\x03\x04 and then something else", "damaged, cut short"),
        (b"\x80\x02 and then something else", "damaged, cut short"),
    ],
    ids=["empty", "text", "picture", "zip", "pickle"],
)
def test_what_is_no_weights_file_is_an_error_in_one_line(tmp_path, content, message):
    (file := tmp_path / "vae.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"vae\.pt: .*{message}") as caught:
        import_vae(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_cut_short_is_an_error_in_one_line(tmp_path, dit_state, kind, share):
    file = tmp_path / "ep.pt"
    if kind == "safetensors":
        save_file(dit_state, file)
    else:
        torch.save(dit_state, file, _use_new_zipfile_serialization=kind == "zip")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"ep\.pt: damaged, cut short.*again") as caught:
        import_generator(file)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_errors(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name the weights file"):
        import_vae(tmp_path)
    with pytest.raises(ValueError, match=r"absent\.pt: no such file"):
        import_vae(tmp_path / "absent.pt")


def test_content_that_is_no_state_dict_is_an_error_that_says_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="holds a Tensor, not a dict"):
        import_vae(save(tmp_path / "a.pt", torch.zeros(3)))
    with pytest.raises(ValueError, match=r"holds no tensors \(its keys: epoch\)"):
        import_vae(save(tmp_path / "b.pt", {"epoch": 3}))


def test_another_networks_file_is_an_error_that_says_whose_it_is(ep64, tmp_path, vae_state):
    with pytest.raises(ValueError, match="holds the weights of a generator, not of a tokenizer"):
        import_vae(ep64)
    with pytest.raises(ValueError, match="holds the weights of a tokenizer, not of a generator"):
        import_generator(GOLDEN / "vae.safetensors")
    with pytest.raises(ValueError, match="holds the weights of a tokenizer, not of a generator"):
        import_generator(save(tmp_path / "bare.pt", vae_state))


def test_weights_that_are_not_there_are_an_error_that_lists_those_that_are(tmp_path, dit_state):
    file = save(tmp_path / "ep.pt", {"model": dit_state, "opt": {}})
    with pytest.raises(ValueError, match=rf"holds no weights ema; .*model \({len(dit_state)} tensors\)"):
        import_generator(file)
    with pytest.raises(ValueError, match=r"holds no weights vae_wo_ddp; .*vae_ema"):
        import_vae(GOLDEN / "vae.safetensors", weights="model")
    with pytest.raises(ValueError, match="holds no weights ema"):
        import_generator(GOLDEN / "lightningdit.safetensors")


def without(state, part):
    return {k: v for k, v in state.items() if part not in k}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: without(s, "decoder.norm_out.bias"), "1 missing: decoder.norm_out.bias"),
        (lambda s: without(s, "encoder.scale.mean"), "1 missing: encoder.scale.mean"),
        (lambda s: without(s, "blocks.0.norm"), r"4 missing: encoder\.model\.blocks\.0\.norm"),
        (lambda s: without(s, "mid.block"), "16 missing: .* and 8 more"),
        (lambda s: without(s, "bottle_neck"), r"missing or misshapen: bottle_neck\.mlp\.0\.weight .*mlp\.2\.weight"),
        (lambda s: s | {"quant.weight": torch.zeros(1)}, "1 unknown: quant.weight"),
        (lambda s: s | {"bottle_neck.mlp.2.bias": torch.zeros(9)}, r"1 misshapen: .*2\.bias \[9\] .*expected \[8\]"),
        (
            lambda s: s | {"bottle_neck.mlp.2.bias": torch.zeros(8, dtype=torch.int8)},
            r"misshapen: .*int8, expected \[8\] floats",
        ),
        (lambda s: s | {"decoder.conv_out.weight": torch.zeros(3)}, r"missing or misshapen: decoder\.conv_out"),
        (lambda s: s | {"encoder.model.pos_embed": torch.zeros(1, 200, 48)}, "199 tokens, which are no square"),
        (lambda s: s | {"encoder.model.patch_embed.proj.weight": torch.zeros(48, 3, 14, 14)}, "patch size 14"),
        (
            lambda s: s | {"encoder.scale.mean": torch.full((1, 3, 1, 1), 0.5)},
            r"encoder\.scale\.mean .*differs.*0\.485",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_an_error_that_lists_where(tmp_path, vae_state, edit, message):
    with pytest.raises(ValueError, match=rf"vae\.pt: .*{message}"):
        import_vae(save(tmp_path / "vae.pt", edit(vae_state)), heads=3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: without(s, "blocks.1.mlp.w3"), r"2 missing: blocks\.1\.mlp\.w3"),
        (lambda s: without(s, "q_norm"), r"missing or misshapen: blocks\.0\.attn\.q_norm\.weight"),
        (lambda s: s | {"head.weight": torch.zeros(1)}, r"1 unknown: head\.weight"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(13)}, "no multiple of the head width 13"),
        (lambda s: s | {"final_layer.linear.bias": torch.ones(16)}, r"1 misshapen: final_layer\.linear\.bias"),
        (lambda s: s | {"feat_rope.freqs_sin": s["feat_rope.freqs_cos"]}, r"freqs_sin .*differs by up to 1"),
        (lambda s: s | {"feat_rope.freqs_cos": s["feat_rope.freqs_cos"].roll(8, 1)}, r"freqs_cos .*differs"),
    ],
)
def test_a_generator_that_does_not_fit_is_an_error_that_lists_where(tmp_path, dit_state, edit, message):
    with pytest.raises(ValueError, match=rf"ep\.pt: .*{message}"):
        import_generator(save(tmp_path / "ep.pt", {"ema": edit(dit_state)}))


def test_heads_that_the_width_does_not_tell_or_divide_by_are_errors_that_name_the_flag():
    with pytest.raises(ValueError, match=r"width 48 is no multiple of 64; .*--encoder-heads"):
        import_vae(GOLDEN / "vae.safetensors")
    with pytest.raises(ValueError, match=r"width 48 does not divide by 5 heads; .*--encoder-heads"):
        import_vae(GOLDEN / "vae.safetensors", heads=5)


def test_statistics_that_cannot_be_are_an_error():
    with pytest.raises(ValueError, match="latent_scale 0"):
        import_vae(GOLDEN / "vae.safetensors", heads=3, latent_scale=0)


VIT = {"type": "timm", "model": "vit_small_patch14_dinov2", "patch_size": 8, "kwargs": {"embed_dim": 48, "depth": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"type": "conv", "width": 8}}, "its encoder 'conv' is no DINOv2"),
        ({"encoder": VIT | {"model": "vit_tiny_patch16_224"}}, "'vit_tiny_patch16_224' is no DINOv2"),
        ({"encoder": VIT | {"kwargs": VIT["kwargs"] | {"qk_norm": True}}}, r"theirs lacks \(qk_norm\)"),
        ({"encoder": VIT | {"patch_size": 6}, "image_size": 12}, "patch size 6 is no power of two"),
        ({"variational": True}, "is variational"),
        ({"bottleneck_width": 0}, "no hidden layer"),
    ],
)
def test_a_tokenizer_of_another_architecture_is_not_exported_and_says_why(tmp_path, changes, message):
    config = {"encoder": VIT, "image_size": 16, "latent_channels": 4, "decoder_width": 8} | changes
    with pytest.raises(ValueError, match=message):
        export_vae(Autoencoder(**config), tmp_path / "vae.pt")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer_is_not_exported(tmp_path, ep64):
    import_generator(ep64).save_pretrained(tmp_path / "generator")
    for folder in (tmp_path / "generator", tmp_path / "absent"):
        with pytest.raises(ValueError, match="not a folder that a tokenizer was saved in"):
            export_vae(folder, tmp_path / "vae.pt")
