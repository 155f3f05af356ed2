"""How well a generator models its latents: of sets whose distance is known, and in a run."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks import modelled as again
from elsewhere import PIXELS
from safetensors.torch import load_file, save_file

import tiny
from dmvae.datasets.pixels import to_uint8
from dmvae.latents.store import LatentSet, MirroredSet
from dmvae.runtime.random import Random
from dmvae.stages import measuring
from dmvae.stages.modelled import KEPT, _multiple, in_shares, kept_latents, modelled
from dmvae.stages.sample import SampleConfig, drawn_labels
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.transport import two_sample
from dmvae.transport.views import whole


def latents(n, scale=1.0):
    return Random(0, n).normal(n, 4, 2, 2) * scale


@pytest.fixture
def untold(monkeypatch):
    """Classifiers that learn little, where it is not they that are asked."""
    monkeypatch.setattr(two_sample, "STEPS", 10)


@pytest.mark.parametrize("kind", ["equal", "random"])
def test_samples_are_drawn_again_of_the_classes_that_the_stage_drew(kind):
    section = SampleConfig(labels=kind, count=300)
    assert torch.equal(again.first_labels(section, 1, 100, 7), drawn_labels(section, 1, 7)[:100])
    assert len(again.first_labels(section, 1, 500, 7)) == 500


@pytest.mark.slow
def test_of_one_distribution_nothing_is_told_apart():
    found = modelled(latents(1000), latents(2500), 0)
    assert found["sampled_whole"] < 1.3
    assert found["sampled_token"] < 1.3
    assert abs(found["sampled_told"] - 0.5) < 0.06
    assert found["sampled_spread"] == pytest.approx(1, abs=0.03)
    assert found["sampled_rank"] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_samples_that_are_too_alike_are_told():
    found = modelled(latents(1000, 0.7), latents(2500), 0)
    assert found["sampled_whole"] > 3
    assert found["sampled_told"] > 0.7
    assert found["sampled_spread"] == pytest.approx(0.7, abs=0.03)


def test_chance_makes_less_of_a_multiple_with_more_sets_of_the_data():
    """Samples of one distribution, whose sets of data differ."""
    scale = torch.tensor([10.0, 1, 1, 1]).view(4, 1, 1)  # one direction has most of the distance, as in latents

    def spread(count):
        found = []
        for i in range(6):
            sets = (latents(9 * 256 + i) * scale).split(256)[: count + 1]
            found.append(_multiple(whole, latents(256, 0.9) * scale, sets, latents(100), i))
        return max(found) / min(found)

    assert spread(8) < 1.25 < spread(1)


def test_the_order_of_the_data_and_of_the_samples_says_nothing(untold):
    """Those of a class may follow one another."""
    data = torch.cat([latents(2500) + 5, latents(2501) - 5])
    sampled = torch.cat([latents(500) + 5, latents(501) - 5])
    assert modelled(sampled, data, 0)["sampled_whole"] < 2


@pytest.mark.slow
def test_classes_that_the_data_has_more_of_are_no_fault_of_the_samples(untold):
    """Nine of ten images are of one class, and half of the samples, as always."""
    many, few = latents(4500) + 5, latents(500) - 5
    data, labels = torch.cat([many, few]), torch.cat([torch.zeros(4500), torch.ones(500)]).long()
    sampled = torch.cat([latents(300) + 5, latents(301) - 5])
    assert modelled(sampled, data, 0)["sampled_whole"] > 5
    of = torch.cat([torch.zeros(300), torch.ones(301)]).long()
    alike = in_shares(of, labels)
    assert of[alike].bincount().tolist() == [300, pytest.approx(33, abs=12)]
    assert modelled(sampled[alike], data, 0)["sampled_whole"] < 2
    assert torch.equal(in_shares(torch.tensor([3, 1, 3, 1]), torch.tensor([1, 3])), torch.arange(4))
    assert torch.equal(in_shares(torch.tensor([2, 0]), torch.tensor([0])), torch.tensor([1])), (
        "none of what is not there"
    )
    assert len(in_shares(of[:0], labels)) == 0


def test_of_samples_whose_labels_were_drawn_none_is_left_out_for_chance():
    """Half of them went with a hundred classes, and with them half of what a multiple could show."""
    labels, even = Random(0).integers(100, 2250), torch.arange(5000) % 100
    assert len(in_shares(labels, even)) < 1500
    assert torch.equal(in_shares(labels, even, drawn=True), torch.arange(2250))
    uneven = torch.cat([even[even < 50], even, even])
    kept = labels[in_shares(labels, uneven, drawn=True)]
    assert (kept < 50).float().mean() == pytest.approx(0.6, abs=0.03)


def test_a_benchmark_leaves_out_as_few_of_them(tmp_path, monkeypatch):
    store = tmp_path / "latents"
    store.mkdir()
    save_file({"latents": latents(500), "labels": torch.arange(500) % 50}, store / "latents-00000.safetensors")
    save_file({"mean": torch.zeros(4), "std": torch.ones(4)}, store / "statistics.safetensors")
    section = SampleConfig(labels="random", count=300)
    run = SimpleNamespace(precision="float32")
    recipe = SimpleNamespace(section={"sample": section}.get, run=run, seed=0, stored_unlike=False)
    job = SimpleNamespace(variant="a", recipe=recipe, reads={"latents": tmp_path})
    config = SimpleNamespace(in_channels=4, input_size=2)
    generator = SimpleNamespace(config=config, sample=lambda noise, *_: noise)
    compared = []
    monkeypatch.setattr(again, "_generator", lambda job, of: generator)
    monkeypatch.setattr(again, "modelled", lambda z, *_: compared.append(len(z)) or {"sampled_whole": 1.0})
    again.figures(job, 0)
    assert compared == [300]


def test_the_batches_in_which_samples_were_drawn_say_nothing(tmp_path):
    z = latents(2500)
    for batch in (64, 250, 2500):
        home = tmp_path / str(batch)
        home.mkdir()
        for number, start in enumerate(range(0, 2500, batch)):
            labels = torch.arange(start, min(start + batch, 2500))
            named = {"labels": labels} | ({"latents": z[start : start + batch].clone()} if start < KEPT else {})
            save_file(named, home / f"samples-{number:05d}.safetensors")
        found, labels = kept_latents(home)
        assert torch.equal(found, z[:KEPT])
        assert torch.equal(labels, torch.arange(KEPT))


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"latents__mirrored": True}, {"latents__stored": 200, "data__flip": True}])
def test_samples_stand_beside_mirror_images_where_their_generator_learned_these(tmp_path, monkeypatch, how):
    """Half of what a perfect generator samples is mirrored then: beside plain latents alone it would be at fault."""
    beside = []
    for module in (measuring, again):
        monkeypatch.setattr(module, "modelled", lambda z, data, *_: beside.append(data) or {"sampled_whole": 1.0})
    jobs = tiny.run(tiny.write(tmp_path, **PIXELS, data__count=200, sample__count=66, **how))
    again.figures(next(job for job in jobs if job.stage.name == "sample"), seed=0)
    folder = tmp_path / "run/main/latents"
    both = MirroredSet(*(LatentSet(folder / name) for name in ("latents", "mirrored")))
    for data in beside:
        sets = both.__getitems__(range(400))[0].split(200)
        found = [sum(torch.allclose(x, z[(z - x).flatten(1).norm(dim=1).argmin()]) for x in data) for z in sets]
        assert min(found) > len(data) // 3
    assert len(beside) == 2


def test_too_few_have_no_figures():
    assert modelled(latents(63), latents(2500), 0) == modelled(latents(100), latents(159), 0) == {}


@pytest.mark.slow
def test_a_run_keeps_latents_of_its_first_scale_and_a_benchmark_draws_the_same(tmp_path, monkeypatch, capsys, untold):
    sizes = {"data__count": 200, "sample__count": 66, "sample__batch_size": 33, "sample__guidance": [1.0, 2.0]}
    sizes["generator__keep_at"] = [1]
    jobs = tiny.run(tiny.write(tmp_path, run__precision="float32", **sizes), "kl")
    folder = tmp_path / "run/kl"
    shard = load_file(folder / "sample/guidance-1/samples-00001.safetensors")
    tokenizer = load_tokenizer(folder / "latents/autoencoder").eval()
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokenizer.denormalize(shard["latents"])).sample)
    assert (images.int() - shard["images"].int()).abs().max() <= 1
    assert "latents" not in load_file(folder / "sample/guidance-2/samples-00001.safetensors")
    assert kept_latents(folder / "sample/guidance-1")[0].shape == (66, *shard["latents"].shape[1:])
    assert [len(x) for x in kept_latents(folder / "sample/guidance-2")] == [0, 0]
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    sample = next(job for job in jobs if job.stage.name == "sample")
    found = again.figures(sample, seed=0)
    for name in again.COLUMNS:
        assert metrics[name] == pytest.approx(found[name], rel=1e-3)
    assert metrics["sampled_whole"] > 0

    def table(*options):
        monkeypatch.setattr("sys.argv", ["modelled", str(tmp_path / "run"), *options])
        again.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[2:]]

    early = again.figures(sample, seed=0, step=1)
    assert early["sampled_whole"] != found["sampled_whole"]
    rows = table("--steps", "1", "--picture", str(tmp_path / "curves.svg"))
    assert rows == [["kl", step, f"{of['sampled_whole']:.2f}"] for step, of in (("1", early), ("6", found))]
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    pair = found["sampled_whole"], again.figures(sample, seed=1)["sampled_whole"]
    told = f"{(pair[0] + pair[1]) / 2:.2f} ± {abs(pair[0] - pair[1]) / 2**0.5:.2f}"
    assert table("--seed", "0", "1") == [["kl", "6", told]]
    for options, message in {
        ("k1",): "no finished generator of k1; there are kl",
        ("--steps", "1", "5"): "--steps: kl kept none of step 5; there are [1]",
        ("--count", "0"): "--count: 0; give 64 or more",
        ("--picture", "curves"): "give a name that ends in .svg or .png",
    }.items():
        with pytest.raises(SystemExit):
            table(*options)
        assert message in capsys.readouterr().err


def test_the_first_samples_of_many_classes_are_weighed_as_if_each_had_as_many():
    """2250 of a thousand classes in turns: the first 250 have three, the others two."""
    drawn, data = torch.arange(2250) % 1000, torch.arange(50000) % 1000
    kept = drawn[in_shares(drawn, data)].bincount(minlength=1000)
    expected = len(drawn[in_shares(drawn, data)]) / 1000
    assert abs(kept[:250].sum() / 250 - expected) < 0.15 * expected
    assert torch.equal(in_shares(drawn % 100, data % 100), torch.arange(2250)), "23 and 22 count as equally many"
