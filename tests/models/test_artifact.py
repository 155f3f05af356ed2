"""Networks in folders that may be damaged, or anybody's: loaded as they were saved, or refused in a line."""

import json

import pytest
from safetensors.torch import load_file, save_file

from dmvae.generators import load_generator
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    save_network(LightningDiT(in_channels=4, input_size=4, width=8, depth=1, heads=2, num_classes=3), tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("odd", [{"depth": []}, {"width": "x"}, {"depth": 3.7}, {"heads": None}, {"input_size": -1}])
def test_a_config_that_no_network_has(folder, odd):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(ValueError, match="net: config and weights do not load as LightningDiT"):
        load_generator(folder)


@pytest.mark.parametrize("text", ["", "[1]", "[" * 5000, '{"_class_name": ["LightningDiT"]}'])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"no config of a generator|not DiTDH or LightningDiT"):
        load_generator(folder)


def test_weights_that_are_not_all_there(folder):
    load_generator(folder)
    weights = load_file(folder / WEIGHTS)
    save_file(
        {f"{name}s" if name == "t_embedder.mlp.2.bias" else name: w for name, w in weights.items()}, folder / WEIGHTS
    )
    with pytest.raises(
        ValueError, match=r"not the weights of this LightningDiT: 1 missing, such as t_embedder.mlp.2.bias"
    ):
        load_generator(folder)
