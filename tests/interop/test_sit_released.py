"""Released SiTs: their velocities, both directions of time, what is left out, told and refused, and the way back."""

import pytest
import torch
from checkpoints import save
from safetensors.torch import load_file

from dmvae import SiT, cli
from dmvae.generators.sit import SiTConfig
from dmvae.interop.official import build_sit, export_generator, import_generator, latent_statistics
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.identity import IdentityTokenizer
from plain_sit import PlainSiT

ASKED = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 6), torch.arange(6)


def plain(**changes):
    torch.manual_seed(0)
    return PlainSiT(**changes).eval()


@torch.no_grad()
def ours_of(theirs, z, t, labels):
    """Their network's velocity in our notation: t is 0 at noise, and the velocity is data - noise."""
    return -theirs(z, 1 - t, labels) if theirs.repa else theirs(z, t, labels)


@torch.no_grad()
@pytest.mark.parametrize("repa", [False, True], ids=["SiT's", "REPA's"])
@pytest.mark.parametrize("changes", [{}, {"patch": 1, "channels": 3}, {"patch": 4, "width": 64, "heads": 2}], ids=str)
def test_an_imported_network_has_the_velocities_of_its_authors_network(tmp_path, repa, changes):
    theirs = plain(repa=repa, **changes)
    file = save(tmp_path / "sit.pt", {"ema": theirs.state_dict(), "opt": {}, "args": {"model": "SiT"}})
    model = import_generator(file, heads=theirs.blocks[0].attn.num_heads)
    z = ASKED[0][:, : theirs.channels]
    velocity = ours_of(theirs, z, *ASKED[1:])
    assert velocity.std() > 0.1
    assert model(z, *ASKED[1:]).sub(velocity).abs().max() < 1e-5
    assert type(model) is SiT
    assert not model.training


@torch.no_grad()
def test_the_time_at_noise_can_be_said_where_a_file_is_of_another_code(tmp_path):
    """REPA's projectors taken off, trained by SiT's code; and the other way round."""
    for repa in (False, True):
        theirs = plain(repa=repa)
        file = save(tmp_path / "sit.pt", theirs.state_dict())
        told = []
        model = import_generator(file, weights="ema", heads=3, noise_at=0 if repa else 1, say=told.append)
        other = -theirs(ASKED[0], 1 - ASKED[1], ASKED[2]) if not repa else theirs(*ASKED)
        assert model(*ASKED).sub(other).abs().max() < 1e-5
        assert not any("noise" in text for text in told)


@pytest.mark.parametrize("size", ["S/2", "B/4", "L/2", "XL/2", "XL/8"])
def test_the_published_sizes_are_read_off_their_shapes(size):
    with torch.device("meta"):
        made = SiTConfig(size=size).build((4, 32, 32), 1000)
        read = build_sit(made.state_dict(), "here")
    assert {name: made.config[name] for name in read.config if name[0] != "_"} == {
        name: value for name, value in read.config.items() if name[0] != "_"
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_exported_is_sits_own_layout_and_comes_back_bit_for_bit(tmp_path, suffix, capsys):
    theirs, folder, back = plain().state_dict(), tmp_path / "imported", tmp_path / f"back{suffix}"
    file = save(tmp_path / "sit.pt", theirs)
    cli.main(["import", "official-generator", str(file), "--heads", "3", "--out", str(folder)])
    told = " ".join(capsys.readouterr().out.split())
    assert "taken for one of SiT's own code, where time is 0 at noise; if it is not, --noise-at 1" in told
    cli.main(["export", "official-generator", str(folder), "--out", str(back)])
    saved = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)["ema"]
    saved = {name.removeprefix("ema."): value for name, value in saved.items()}
    assert saved.keys() == theirs.keys()
    assert all(torch.equal(saved[name], value) for name, value in theirs.items())
    ours, again = SiT.from_pretrained(folder).state_dict(), import_generator(back, heads=3).state_dict()
    assert all(torch.equal(again[name], value) for name, value in ours.items())


@torch.no_grad()
def test_a_last_layer_of_twice_the_channels_beside_projectors_is_no_file_of_sit_s_own(tmp_path):
    theirs = plain()
    theirs.projectors = torch.nn.Linear(48, 7)
    model = import_generator(save(tmp_path / "sit.pt", theirs.state_dict()), heads=3)
    assert model(*ASKED).add(theirs(ASKED[0], 1 - ASKED[1], ASKED[2])).abs().max() < 1e-5


@torch.no_grad()
def test_a_network_of_repa_s_is_exported_to_sit_s_own_code(tmp_path):
    theirs = plain(repa=True)
    told = []
    model = import_generator(save(tmp_path / "repa.pt", {"ema": theirs.state_dict()}), heads=3)
    export_generator(model, tmp_path / "a.pt", say=told.append)
    assert told == ["the file does not show that its attention has 3 heads: import it with --heads 3"]
    same = import_generator(tmp_path / "a.pt", heads=3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())
    sit = plain()
    sit.load_state_dict(torch.load(tmp_path / "a.pt")["ema"])
    assert sit(*ASKED).sub(ours_of(theirs, *ASKED)).abs().max() < 1e-5


def test_statistics_that_the_file_holds_are_told_and_go_into_the_tokenizer(tmp_path, capsys):
    theirs = plain(repa=True)
    file = save(tmp_path / "repa_e.pt", {"ema": theirs.state_dict()})
    cli.main(["import", "official-generator", str(file), "--heads", "3", "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "taken for one of REPA's code, where time is 1 at noise" in told
    assert "tokenizer.set_statistics(*latent_statistics(FILE))" in " ".join(told.split())
    tokenizer = adapt(IdentityTokenizer(patch=2), size=4, channels=1, pretrained=True)
    tokenizer.set_statistics(*latent_statistics(file))
    z = torch.randn(3, 4, 2, 2)
    assert torch.allclose(tokenizer.normalize(z), (z - torch.arange(4).view(4, 1, 1)) / 2)
    with pytest.raises(ValueError, match=r"holds no statistics of latents \(bn\.running_mean, bn\.running_var\)"):
        latent_statistics(save(tmp_path / "sit.pt", plain().state_dict()))


def changed(name, change):
    return lambda s: s | {name: change(s[name])}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "blocks.1.mlp" not in k}, r"4 missing: blocks\.1\.mlp\.fc1"),
        (lambda s: s | {"blocks.0.attn.q_norm.weight": torch.ones(16)}, r"1 unknown: blocks\.0\.attn\.q_norm"),
        (changed("final_layer.linear.weight", lambda w: w[:20]), "have 20 and 32 rows; a SiT's have 16, .* or twice"),
        (changed("final_layer.linear.weight", lambda w: w + 1), r"by this it is a DiT, .* \(--noise-at 0\)"),
        (changed("final_layer.linear.bias", lambda w: w[:16]), "have 32 and 16 rows"),
        (changed("t_embedder.mlp.0.weight", lambda w: w[:, :2]), r"1 misshapen: t_embedder\.mlp\.0\.weight"),
        (changed("blocks.2.attn.proj.bias", lambda w: w * float("nan")), "NaN or infinity in 1 tensor"),
        (changed("pos_embed", lambda w: w[:, :3]), "3 tokens, which are no square"),
    ],
)
def test_what_does_not_fit_is_an_error_that_lists_where(tmp_path, edit, message):
    with pytest.raises(ValueError, match=rf"sit\.pt: .*{message}"):
        import_generator(save(tmp_path / "sit.pt", edit(plain().state_dict())), heads=3)


def test_heads_that_no_shape_shows_are_asked_for_and_are_a_sit_s_alone(tmp_path, ep64, capsys):
    file = save(tmp_path / "sit.pt", plain().state_dict())
    with pytest.raises(ValueError, match=r"width 48 is of no published SiT; give the heads .* \(--heads\)"):
        import_generator(file)
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        import_generator(file, heads=0)
    with pytest.raises(ValueError, match=r"--noise-at is of a SiT, and this is a LightningDiT; leave it out"):
        import_generator(ep64, noise_at=0)
    with pytest.raises(SystemExit):
        cli.main(["import", "official-vae", str(file), "--out", str(tmp_path / "out"), "--heads", "3"])
    assert "--heads is of a generator; leave it out for a tokenizer" in capsys.readouterr().err
