"""The authors' weights: what is no weights file, what another network's, what does not fit, and what is never run."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from checkpoints import save
from safetensors.torch import save_file

from dmvae import cli
from dmvae.interop.official import export_vae, import_generator, import_vae
from dmvae.tokenizers.autoencoder import Autoencoder

GOLDEN = Path(__file__).parents[1] / "golden"


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


def test_a_file_that_holds_itself_is_looked_at_as_deep_as_state_dicts_lie(tmp_path, dit_state):
    around = {"ema": dit_state}
    around["again"] = around
    import_generator(save(tmp_path / "round.pt", around))


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
        (
            lambda s: s | {"bottle_neck.mlp.2.bias": torch.full_like(s["bottle_neck.mlp.2.bias"], float("nan"))},
            r"NaN or infinity in 1 tensor, bottle_neck\.mlp\.2\.bias first",
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
        (lambda s: without(s, "q_norm"), r"unknown: blocks\.0\.attn\.k_norm\.weight"),
        (lambda s: without(s, "blocks.1.attn.q_norm"), r"1 missing: blocks\.1\.attn\.q_norm\.weight"),
        (lambda s: without(without(s, "_norm.weight"), "feat_rope"), r"missing or misshapen: feat_rope\.freqs_cos"),
        (lambda s: s | {"head.weight": torch.zeros(1)}, r"1 unknown: head\.weight"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(0)}, r"misshapen: blocks\.0\.attn\.q_norm\.weight"),
        (lambda s: s | {"x_embedder.proj.weight": torch.ones(0, 4, 1, 1)}, r"misshapen: x_embedder\.proj\.weight"),
        (lambda s: s | {"y_embedder.embedding_table.weight": torch.ones(0, 48)}, "misshapen: y_embedder"),
        (lambda s: s | {"pos_embed": s["pos_embed"].to_sparse()}, "pos_embed has the layout torch.sparse_coo"),
        (lambda s: s | {"pos_embed": s["pos_embed"].to("meta")}, "pos_embed has no values"),
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
    for name, value in (("scale", 0), ("scale", 1e-320), ("mean", float("nan")), ("mean", float("inf"))):
        with pytest.raises(ValueError, match=f"latent_{name} {value}"):
            import_vae(GOLDEN / "vae.safetensors", heads=3, **{f"latent_{name}": value})


def test_options_of_a_tokenizer_have_no_place_at_a_generator(tmp_path, capsys):
    for option in ("--latent-mean", "--latent-scale", "--encoder-heads"):
        with pytest.raises(SystemExit):
            cli.main(["import", "official-generator", "x.pt", "--out", str(tmp_path / "out"), option, "3"])
        assert f"{option} is of a tokenizer; leave it out for a generator" in capsys.readouterr().err


VIT = {"type": "timm", "model": "vit_small_patch14_dinov2", "patch_size": 8, "kwargs": {"embed_dim": 48, "depth": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"type": "conv", "width": 8}}, "its encoder 'conv' is no DINOv2"),
        ({"encoder": VIT | {"model": "vit_tiny_patch16_224"}}, "'vit_tiny_patch16_224' is no DINOv2"),
        ({"encoder": VIT | {"kwargs": VIT["kwargs"] | {"qk_norm": True}}}, r"theirs lacks \(qk_norm\)"),
        ({"encoder": VIT | {"patch_size": 6}, "image_size": 12}, "patch size 6 is no power of two"),
        ({"encoder": VIT | {"resolution": 8}}, "resizes images"),
        ({"variational": True}, "is variational"),
        ({"bottleneck_width": 0}, "no hidden layer"),
    ],
)
def test_a_tokenizer_of_another_architecture_is_not_exported_and_says_why(tmp_path, changes, message):
    config = {"encoder": VIT, "image_size": 16, "latent_channels": 4, "decoder": {"type": "conv", "width": 8}} | changes
    with pytest.raises(ValueError, match=message):
        export_vae(Autoencoder(**config), tmp_path / "vae.pt")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_tokenizer_is_not_exported(tmp_path, ep64):
    import_generator(ep64).save_pretrained(tmp_path / "generator")
    for folder in (tmp_path / "generator", tmp_path / "absent"):
        with pytest.raises(ValueError, match="not a folder that a tokenizer was saved in"):
            export_vae(folder, tmp_path / "vae.pt")
