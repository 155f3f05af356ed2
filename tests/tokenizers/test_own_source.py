"""A finished tokenizer of one's own, as docs/existing_tokenizer.md has it; what is wrong with one is told at once."""

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tiny
from dmvae import DMVAEPipeline, LightningDiT, cli
from dmvae import config as configs
from dmvae.checks import problems
from dmvae.recipe import load
from dmvae.registry import forget, load_plugins, module_of
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import adapt, load_tokenizer

PAGE = (Path(__file__).parents[2] / "docs/existing_tokenizer.md").read_text()
(SOURCE,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S) if "TokenizerSource" in code]


WRONG = {
    "    latent_channels, stride": (
        "    other, stride",
        "build returned MyVAE, which lacks latent_channels; give",
    ),
    "        return network\n": (
        "",
        "build returned None; give an object with encode, decode, latent_ch",
    ),
    "return network\n": (
        "return type('Mine', (), {'encode': 0, 'decode': 0, 'latent_channels': 4, 'stride': 4})()\n",
        "build returned a Mine, which is no nn.Module: its weights would not be saved",
    ),
    "self.down(images)": ("self.down(images)[..., 1:]", "encode returns torch.float32 [2, 4, 3, 2]; its sizes say"),
    "return self.down(images)": ("return self", "encode returns MyVAE; its sizes say [2, 4, 3, 3]"),
    "return self.up(z)": ("return (self.up(z),)", "decode returns tuple of 1; its sizes say [2, 3, 12, 12]"),
    "self.up(z)": ("self.up(z)[..., 2:]", "decode returns torch.float32 [2, 3, 12, 10]; its sizes say [2, 3, 12, 12]"),
    " self.up(z)": (
        " z.up",
        "cannot be run on images [2, 3, 12, 12] (AttributeError: 'Tensor' object",
    ),
    "stride = 4, 4": ("stride, has_spread = 4, 4, True", "object has no attribute 'posterior'"),
}


@pytest.fixture
def write(tmp_path):
    def write(source=SOURCE, **over):
        """A recipe that starts from it."""
        file = tmp_path / "my_vae.py"
        file.write_text(source)
        load_plugins([file])
        torch.manual_seed(0)
        torch.save(sys.modules[module_of(file)].MyVAE().state_dict(), tmp_path / "my_vae.pt")
        pretrained = {"type": "my_vae", "path": str(tmp_path / "my_vae.pt")}
        without = dict.fromkeys(("encoder", "tokenizer", "autoencoder", "variants"))
        return tiny.write(tmp_path, plugins=[str(file)], **(without | {"pretrained": pretrained} | over))

    return write


@pytest.mark.slow
def test_the_page_s_is_matched_and_its_result_says_what_it_needs(write, tmp_path):
    tiny.run(write(reference__steps=2, matching__steps=2, decoder__steps=2), until="latents")
    folder = tmp_path / "run/main/latents/autoencoder"
    forget(module_of(tmp_path / "my_vae.py"))
    with pytest.raises(ValueError, match=r"no TokenizerSource is called 'my_vae'.*file is named: --plugins"):
        load_tokenizer(folder)
    command = ["encode", str(tmp_path), "--tokenizer", str(folder), "--out", str(tmp_path / "z")]
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")
    cli.main([*command, "--plugins", str(tmp_path / "my_vae.py")])
    assert len(list((tmp_path / "z").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("right", WRONG)
def test_what_is_wrong_with_one_is_told_before_anything_runs(write, capsys, right):
    wrong, told = WRONG[right]
    path = write(SOURCE.replace(right, wrong, 1), reference=None, matching=None, decoder=None)
    with pytest.raises(SystemExit):
        cli.main(["run", str(path)])
    said = " ".join(capsys.readouterr().err.split())
    assert "'my_vae'" in said
    assert told in said


def test_one_that_cannot_run_without_memory_is_tried_with(write):
    path = write(
        SOURCE.replace("return self.up(z)", "return self.up(z + z.mean().item())"), matching=None, decoder=None
    )
    assert list(problems(load(path)["main"], load(path)["main"].stages())) == []


def test_one_without_parts_is_no_start(write):
    path = write(SOURCE.replace("def parts", "def others"))
    (told,) = problems(load(path)["main"], load(path)["main"].stages())
    assert "'my_vae' can be used but not trained further: what its build returns has no parts()" in told


def test_a_posterior_is_asked_of_one_that_has_none(write):
    path = write(matching__noise="posterior")
    found = list(problems(load(path)["main"], load(path)["main"].stages()))
    assert any("needs a tokenizer with one, which this `pretrained` has not; use 'fixed'" in told for told in found)


def test_it_may_say_that_generators_know_its_latents_scaled(write, tmp_path):
    write(SOURCE.replace("    path: Path\n", "    path: Path\n    scaled = False\n"))
    source = configs.read(TokenizerSource, {"type": "my_vae", "path": str(tmp_path / "my_vae.pt")})
    vae = adapt(source, size=12, channels=3, pretrained=True)
    generator = LightningDiT(in_channels=4, input_size=3, num_classes=2, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match=r"scaled, and it does not say how; .*set_statistics\(mean, std\)"):
        DMVAEPipeline(generator, vae)
    vae.set_statistics(torch.zeros(4), torch.ones(4))
    DMVAEPipeline(generator, vae)


def test_it_may_bring_the_normalisation_that_its_generators_know(write):
    brings = """
    @property
    def normalisation(self):
        return Normalisation(torch.arange(4.0), torch.full((4,), 0.5))

    def encode(self"""
    source = SOURCE.replace("\n    def encode(self", brings)
    source = source.replace("import TokenizerSource", "import Normalisation, TokenizerSource")
    off = dict.fromkeys(("reference", "matching", "decoder", "generator", "sample", "evaluate"))
    (job,) = tiny.run(write(source, latents={"statistics": "own"}, **off))
    model = load_tokenizer(job.folder / "autoencoder")
    assert torch.equal(model.latent_mean, torch.arange(4.0))
    assert torch.equal(model.latent_std, torch.full((4,), 0.5))
