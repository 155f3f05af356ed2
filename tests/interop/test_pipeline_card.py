"""The card of a run's diffusers pipeline: its figures, pictures and recipe, and that it travels with the weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_run import made
from safetensors.torch import load_file

from dmvae import DMVAEPipeline
from dmvae.report.card import card
from dmvae.report.pipelines import write_pipelines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its jobs, and the pipeline's folder."""
    return made(tmp_path_factory.mktemp("run"))


def test_the_card_tells_the_figures_and_the_recipe_and_travels_with_the_weights(run, tmp_path, monkeypatch):
    run_dir, _, folder = run
    text = (folder / "README.md").read_text()
    metrics = json.loads((run_dir / "kl/evaluate/metrics.json").read_text())
    assert f"| gFD ↓ | {metrics['gfd']:.4g} |" in text
    assert "guidance_scale=2.0" in text
    shown = torch.from_numpy(np.array(Image.open(folder / "pictures/0.png"))).permute(2, 0, 1)
    first = load_file(run_dir / "kl/sample/guidance-2/samples-00000.safetensors")["images"][0]
    assert torch.equal(shown, first), "the card's pictures are of the scale of its code and its figures"
    assert "kl_weight: 0.001" in text
    pipeline = DMVAEPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == text

    # what would be uploaded to a hub
    uploaded = {}
    monkeypatch.setattr("diffusers.utils.hub_utils.create_repo", lambda *a, **k: type("Url", (), {"repo_id": "me/it"}))
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *a, **k: EmptyCard())
    monkeypatch.setattr("diffusers.utils.hub_utils.populate_model_card", lambda c, **k: c)
    monkeypatch.setattr(
        "diffusers.utils.hub_utils.upload_folder",
        lambda folder_path, **k: uploaded.update(card=(Path(folder_path) / "README.md").read_text()),
    )
    pipeline.push_to_hub("me/it")
    assert uploaded["card"] == text


def test_names_of_classes_are_text_in_the_card(run):
    _, jobs, _ = run
    stages = {job.stage.name: job for job in jobs}
    text = card(stages["generator"], stages, "", {"pictures/0.png": "a](x)\n<img> t_shirt"}, 0)
    assert r"![a\](x) \<img\> t\_shirt](pictures/0.png)" in text


class EmptyCard:
    def save(self, path):
        Path(path).write_text("empty")


def test_a_second_run_keeps_the_weights_and_renews_the_card(run):
    run_dir, jobs, folder = run
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    (folder / "README.md").write_text("old")
    write_pipelines(jobs, run_dir)
    assert weights.stat().st_mtime_ns == before
    assert "## Recipe" in (folder / "README.md").read_text()
