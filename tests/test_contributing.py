"""The examples of CONTRIBUTING.md and the pictures of docs/ are what the code is."""

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import processes
import tiny
from dmvae import config as configs
from dmvae.recipe import load
from dmvae.registry import PLUGIN
from dmvae.stages import stages
from test_floors import FLOORS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
CHOICES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
NAMES = {name for block in BLOCKS for name in re.findall(r'^@(?:register|stage)\("(\w+)"', block, re.MULTILINE)}
SMALL = {
    "data": {"size": 12, "count": 48},
    "evaluate": {"count": 24},
    "generator": {"steps": 2},
    "matching": {"steps": 2},
    "reference": {"steps": 2},
    "sample": {"steps": 2},
    "sharpen": {"steps": 2, "batch_size": 8},
    "variants": {"main": {}, "flow": {"generator.model": tiny.DIT | {"type": "flow"}}},
}
"""Sizes of a test, over those of the examples."""


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe that makes every choice that CONTRIBUTING.md shows, of one plugin with all its examples."""
    values = {key: value for key, value in tiny.RECIPE.items() if key not in ("autoencoder", "variants", "data")}
    for choice in [*CHOICES, SMALL]:
        values = configs.merge(values, choice)
    (tmp_path / "mine.py").write_text("\n".join(BLOCKS))
    values = configs.merge(values, {"run.dir": str(tmp_path / "run"), "plugins": ["mine.py"]})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_examples_load_as_one_plugin(recipe):
    main = load(recipe)["main"]
    chosen = (
        *(main.data, main.autoencoder.encoder, main.autoencoder.decoder, main.reference.distribution),
        *(main.matching.objective, main.generator.model, main.tokenizer.alignment, main.losses.adversarial),
    )
    assert {type(part).__module__.startswith(PLUGIN) for part in chosen} == {True}
    assert {part.type for part in chosen} == NAMES - {"damped", "brightness", "sharpen"}
    assert main.sample.method == "damped"
    assert "brightness" in main.evaluate.metrics
    assert "sharpen" in [stage.name for stage in stages()]


def test_the_examples_are_short_and_each_kind_has_one():
    assert [block for block in BLOCKS if len([line for line in block.splitlines() if line]) > 25] == []
    assert len(BLOCKS) == len(CHOICES) == len(NAMES) == 11


@pytest.mark.slow
def test_the_examples_run(recipe):
    result = processes.command("run", str(recipe), **processes.PLAIN)
    assert result.returncode == 0, result.stderr
    run_dir = recipe.parent / "run"
    assert "two_moments/mean" in (run_dir / "main/matching/log.jsonl").read_text()
    assert "pooled/cosine" in (run_dir / "main/tokenizer/log.jsonl").read_text()
    assert json.loads((run_dir / "main/decoder/discriminator/config.json").read_text())["_class_name"] == "Patches"
    assert "sharpen/mean" in (run_dir / "main/sharpen/log.jsonl").read_text()
    methods = json.loads((run_dir / "summary.json").read_text())["methods"]
    assert {"brightness", "contrast", "latent_norm"} <= set(methods["main"])
    assert methods["main"]["gfd"] != methods["flow"]["gfd"]


def test_the_floors_are_drawn_as_they_are(tmp_path):
    out = tmp_path / "floors.svg"
    subprocess.run([sys.executable, str(ROOT / "docs/floors.py"), str(out)], check=True)
    assert out.read_text() == (ROOT / "docs/floors.svg").read_text(), "run python docs/floors.py"
    drawn = re.findall(r'data-floor="(\w+)"', out.read_text())
    assert drawn[::-1] == FLOORS


def test_what_the_pages_name_is_there():
    pages = [page for page in ROOT.glob("*.md") if page.name != "CHANGELOG.md"]  # which names what is gone
    pages += ROOT.glob("docs/**/*.md")
    for page in pages:
        for name in set(re.findall(r"`(dmvae\.[\w.]+)`", page.read_text())):
            assert pkgutil.resolve_name(name) is not None, f"{page.name}: {name}"
