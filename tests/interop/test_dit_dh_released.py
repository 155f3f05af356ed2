"""Released DiT-DHs: their velocities in our direction of time, the published sizes, what is refused, a pipeline."""

import pytest
import torch
from checkpoints import save
from diffusers import FlowMatchEulerDiscreteScheduler

from dmvae import DiTDH, DMVAEPipeline, cli
from dmvae.generators.dit_dh import DiTDHConfig
from dmvae.interop.official import build_dit_dh, export_generator, import_generator
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.identity import IdentityTokenizer
from plain_dit_dh import PlainDiTDH

ASKED = torch.randn(6, 6, 4, 4, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 6), torch.arange(6)


def plain(**changes):
    torch.manual_seed(0)
    return PlainDiTDH(**changes).eval()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"depth": 1, "head_depth": 3}, {"width": 64, "heads": 2, "head": 96}], ids=str)
def test_an_imported_network_has_the_velocities_of_its_authors_network(tmp_path, changes):
    theirs = plain(**changes)
    model = import_generator(save(tmp_path / "stage2_model.pt", theirs.state_dict()))
    velocity = -theirs(ASKED[0], 1 - ASKED[1], ASKED[2])  # theirs: t is 1 at noise, and the velocity noise - data
    assert velocity.std() > 0.1
    assert model(*ASKED).sub(velocity).abs().max() < 1e-4
    assert type(model) is DiTDH
    assert not model.training


def test_gradients_are_those_of_its_authors_network(tmp_path):
    theirs, z = plain(), ASKED[0].clone().requires_grad_()
    model = import_generator(save(tmp_path / "stage2_model.pt", {"ema": theirs.state_dict()}))
    found = [
        torch.autograd.grad(out.square().sum(), [z, network.blocks[0].attn.qkv.weight])
        for network, out in ((model, model(z, *ASKED[1:])), (theirs, theirs(z, 1 - ASKED[1], ASKED[2])))
    ]
    for ours, of_theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, of_theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", ["S/1", "B/1", "XL/1"])
def test_the_published_sizes_are_read_off_their_shapes(size):
    with torch.device("meta"):
        made = DiTDHConfig(size=size).build((768, 16, 16), 1000)
        heads = {"S": 6, "B": 12, "XL": 16}[size[:-2]]
        theirs = PlainDiTDH(768, 1, made.config.width, made.config.depth, heads, 2048, 2, 16, 1000).state_dict()
        theirs["pos_embed"] = torch.empty(1, 256, made.config.width)
        for name in [name for name in theirs if "feat_rope" in name]:
            theirs[name] = torch.empty(256, theirs[name].shape[1])
        read = build_dit_dh(theirs, "here")
    assert {name: made.config[name] for name in read.config if name[0] != "_"} == {
        name: value for name, value in read.config.items() if name[0] != "_"
    }
    if size == "XL/1":
        assert round(sum(p.numel() for p in made.parameters()) / 1e6) == 839  # as their paper counts


@torch.no_grad()
def test_the_command_makes_an_artifact_that_a_pipeline_takes_and_saves(tmp_path, capsys):
    file = save(tmp_path / "stage2_model.pt", plain(channels=12).state_dict())
    cli.main(["import", "official-generator", str(file), "--out", str(tmp_path / "out")])
    assert "DiTDH" in capsys.readouterr().out
    vae = adapt(IdentityTokenizer(patch=2), size=8, channels=3, pretrained=True)
    DMVAEPipeline(DiTDH.from_pretrained(tmp_path / "out"), vae, FlowMatchEulerDiscreteScheduler()).save_pretrained(
        tmp_path / "pipeline"
    )
    pipeline = DMVAEPipeline.from_pretrained(tmp_path / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.transformer) is DiTDH
    assert pipeline([0, 1], num_inference_steps=2, output_type="pt").images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "s_projector" not in k}, r"2 missing: s_projector\.weight"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(16)}, r"1 unknown: blocks\.0\.attn\.q_norm"),
        (lambda s: {k: v for k, v in s.items() if "dec_feat" not in k}, r"missing or misshapen: dec_feat_rope"),
        (lambda s: s | {"enc_feat_rope.freqs_cos": s["enc_feat_rope.freqs_cos"] + 1}, "another network's weights"),
        (lambda s: s | {"pos_embed": s["pos_embed"][:, :3]}, "3 tokens, which are no square"),
    ],
)
def test_what_does_not_fit_is_an_error_that_lists_where(tmp_path, edit, message):
    with pytest.raises(ValueError, match=rf"stage2\.pt: .*{message}"):
        import_generator(save(tmp_path / "stage2.pt", edit(plain().state_dict())))


def test_options_of_a_sit_and_the_way_back_are_refused(tmp_path):
    file = save(tmp_path / "stage2_model.pt", plain().state_dict())
    with pytest.raises(ValueError, match=r"--noise-at is of a SiT, and this is a DiTDH; leave it out"):
        import_generator(file, noise_at=1)
    cli.main(["import", "official-generator", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="holds DiTDH, not LightningDiT or SiT"):
        export_generator(tmp_path / "out", tmp_path / "back.pt")
