"""A pipeline's folder as hubs and diffusers read it: the card, the code, and a push to a stand-in."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import stand_in_hub
import yaml
from huggingface_hub import ModelCard

import processes
import tiny
from dmvae.report.pipelines import write_pipelines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("run"), run__precision="float32")
    (folder,) = write_pipelines(tiny.run(path, "kl"), path.parent / "run")
    return folder


CODE = """
import sys
folder = sys.argv[1]
from dmvae.datasets.huggingface import HuggingFace
for _ in range(2):  # the second time nothing is fetched and nothing converted
    try:
        HuggingFace(root="me/it", size=8).build("test")
    except ValueError as error:
        print("refused", error)
print("classes", HuggingFace(root="me/it", size=8).build("train").classes)
from diffusers import DiffusionPipeline
p = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
print("by its own class", type(p).__name__, p(["circle"], num_inference_steps=2).images[0].size)
from dmvae import DMVAEPipeline
DMVAEPipeline.from_pretrained(folder).push_to_hub("me/it")
p = DMVAEPipeline.from_pretrained("me/it")
print("from the hub", p(["circle"], num_inference_steps=2).images[0].size)
"""
"""In one process, as its imports take most of its time: the data set first, while the hub has no other files."""


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
    """(what a process of its own prints that knows a hub with a data set alone, opens that, then loads, pushes and
    fetches the pipeline; the files that the hub has then)."""
    datasets = pytest.importorskip("datasets")
    home, hub = tmp_path_factory.mktemp("home"), stand_in_hub.start()
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        pixels = np.zeros((2, 8, 8, 3), np.uint8)
        file = home / "file.parquet"
        datasets.Dataset.from_dict({"image": list(pixels), "label": [0, 1]}, features=kinds).to_parquet(file)
        hub.files[f"{split}.parquet"] = file.read_bytes()
    env = {
        "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    try:
        result = subprocess.run(
            [sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, cwd=home,
            env=processes.environment() | env,
        )  # fmt: skip
    finally:
        hub.shutdown()
    assert result.returncode == 0, result.stderr
    return result.stdout, dict(hub.files)


def test_the_card_tells_hubs_what_it_is_and_what_it_scored(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "dmvae"
    assert {"dmvae", "diffusers", "image-tokenizer"} <= set(card.data.tags)
    scores = {result.metric_type: result for result in card.data.eval_results}
    assert {"psnr", "gfd"} <= set(scores)
    assert scores["gfd"].dataset_type == "shapes"
    assert scores["gfd"].metric_value > 0
    text = (folder / "README.md").read_text()
    assert scores["knn"].metric_name == "kNN, %"  # one name and one unit, in the hub's list and in the table
    assert f"| kNN, % ↑ | {scores['knn'].metric_value:.1f} |" in text
    assert "pip install dmvae" in text
    assert "They rest on 12 images" in text
    widgets = yaml.safe_load(text.split("---\n")[1])["widget"]
    assert [widget["text"] for widget in widgets] == ["circle", "square", "triangle"]
    for widget in widgets:
        assert (folder / widget["output"]["url"]).read_bytes().startswith(b"\x89PNG")
        assert f"![{widget['text']}]({widget['output']['url']})" in text


def test_diffusers_loads_it_by_its_own_class(elsewhere):
    """Its buffers have values, which diffusers' own way of loading would not give."""
    assert "by its own class DMVAEPipeline (12, 12)" in elsewhere[0]


def test_what_is_pushed_to_a_hub_comes_back(folder, elsewhere):
    out, files = elsewhere
    assert {"README.md", "recipe.yaml", "pipeline.py", "pictures/0.png", "model_index.json"} <= set(files)
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert "from the hub (12, 12)" in out


def test_a_data_set_of_the_hub_is_looked_at_in_every_file(elsewhere):
    *errors, classes = [line for line in elsewhere[0].splitlines() if line.startswith(("refused", "classes"))]
    assert classes == "classes ('cat', 'dog')"
    assert len(errors) == 2
    for error in errors:
        assert re.search(r"me--it.*/test\.parquet, column label: class 0 is dog, but cat in .*/train\.parquet", error)
