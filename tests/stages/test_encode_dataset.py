"""Encoding the data set: an interrupted pass goes on, also with shards of another size."""

import pytest
import torch

import tiny
from dmvae import config as configs
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet, MirroredSet, encode_dataset
from dmvae.recipe import load
from dmvae.sections import LatentsConfig
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.data import order

CPU = torch.device("cpu")


def test_shards_of_an_interrupted_pass_of_another_size_are_made_again(tmp_path):
    recipe = load(tiny.write(tmp_path))["kl"]
    inputs = Inputs(recipe, "kl", tmp_path, {}, torch.device("cpu"))
    tokenizer = inputs.new_autoencoder(pretrained=False)

    def encode(folder, size):
        device = torch.device("cpu")
        encode_dataset(tokenizer, inputs.train_set, folder, title="", device=device, batch_size=8, shard_size=size)
        return LatentSet(folder)

    expected = encode(tmp_path / "whole", 20)
    assert [len(shard) for shard in expected.shards] == [20, 20, 8]
    for size in (40, 8):
        folder = tmp_path / f"{size}"
        encode(folder, size)
        (folder / "statistics.safetensors").unlink()
        again = encode(folder, 20)
        assert [len(shard) for shard in again.shards] == [20, 20, 8]
        assert torch.equal(again.__getitems__(range(48))[0], expected.__getitems__(range(48))[0])
    z, labels = expected[-41]  # counted from the end, where the last shard is the shortest
    assert torch.equal(z, expected[7][0])
    assert labels == expected[7][1]
    kept = tmp_path / "whole/latents-00000.safetensors"
    before = kept.stat().st_mtime_ns
    (tmp_path / "whole/latents-00001.safetensors").write_bytes(b"")
    (tmp_path / "whole/latents-00002.safetensors").unlink()
    encode(tmp_path / "whole", 20)
    assert kept.stat().st_mtime_ns == before, "what is finished is not made again"
    assert [len(shard) for shard in LatentSet(tmp_path / "whole").shards] == [20, 20, 8]


@pytest.mark.parametrize(("dtype", "value"), [("float32", float("nan")), ("float16", 1e6)])
def test_latents_that_are_not_finite_are_not_stored(tmp_path, dtype, value):
    inputs = Inputs(load(tiny.write(tmp_path))["kl"], "kl", tmp_path, {}, torch.device("cpu"))
    tokenizer = inputs.new_autoencoder(pretrained=False)
    tokenizer.bottleneck[-1].bias.data[0] = value
    hint = "set latents.dtype: float32" if dtype == "float16" else "are damaged"
    with pytest.raises(
        FloatingPointError, match=f"latents of 8 images from number 0 on are not finite in {dtype}: .*{hint}$"
    ):
        encode_dataset(
            tokenizer, inputs.train_set, tmp_path / "z", title="", device=inputs.device, batch_size=8, dtype=dtype
        )
    assert not list((tmp_path / "z").glob("latents-*"))


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="shard_size: expected a whole number, 1 to"):
        configs.read(LatentsConfig, {"shard_size": 0})


def test_half_of_what_a_generator_draws_is_the_latents_of_mirror_images(tmp_path):
    tiny.run(tiny.write(tmp_path, latents__mirrored=True, run__precision="float32"), "kl", until="latents")
    (folder,) = tmp_path.glob("run/stages/latents-*")
    recipe = load(tmp_path / "recipe.yaml")["kl"]
    generator = GeneratorStage(recipe.generator, Inputs(recipe, "kl", tmp_path, {"latents": folder}, CPU))
    data, plain = generator.data(), LatentSet(folder / "latents")
    assert isinstance(data, MirroredSet)
    assert len(data) == 2 * len(plain) == 96
    z, labels = data.__getitems__([3, 48 + 3, 40, 48 + 40])
    assert labels.tolist() == plain.labels[[3, 3, 40, 40]].tolist()
    assert torch.equal(z[::2], plain.__getitems__([3, 40])[0])
    images = torch.stack([generator.inputs.train_set[i][0] for i in (3, 40)]).flip(3) / 127.5 - 1
    tokenizer = load_tokenizer(folder / "autoencoder")
    with torch.no_grad():
        assert torch.allclose(z[1::2], tokenizer.normalize(tokenizer.encode(images).latents), atol=1e-4)
        assert not torch.allclose(z[::2], z[1::2], atol=1e-1)
    drawn = torch.tensor(next(iter(order(len(data), 96, ("k",), 0, 1))))
    assert (drawn >= 48).sum() == 48


def test_without_mirror_images_nothing_is_mirrored(tmp_path):
    tiny.run(tiny.write(tmp_path), "kl", until="latents")
    (folder,) = tmp_path.glob("run/stages/latents-*")
    recipe = load(tmp_path / "recipe.yaml")["kl"]
    stage = GeneratorStage(recipe.generator, Inputs(recipe, "kl", tmp_path, {"latents": folder}, CPU))
    assert isinstance(stage.data(), LatentSet)
    assert not (folder / "mirrored").exists()
