"""Every benchmark can be started: its imports and its arguments are there."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import channels, gpu, models, proxies, steps
from safetensors.torch import save_file

import tiny

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [p.stem for p in sorted(ROOT.glob("benchmarks/[a-z]*.py"))])
def test_it_tells_how_it_is_called(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"benchmarks.{name}").main()
    assert stop.value.code == 0
    assert f"benchmarks.{name}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gpu_s_runs_on_a_cpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--tiny", "--no-compile"])
    importlib.import_module("benchmarks.gpu").main()
    out = capsys.readouterr().out
    for line in (
        "TFLOP/s in products",
        "matching",
        "LightningDiT eager",
        "decoder eager",
        "TF32",
        "sampling eager, 2 steps at batch 4",
    ):
        assert line in out
    for stage in ("encoder", "tokenizer", "reference", "matching", "decoder", "generator"):
        assert f"\n{stage} " in out


def test_what_a_gpu_missed_is_told():
    memory = {
        "tokenizer": (10.9, 10.0),
        "matching": (11.2, 10.0),
        "decoder": (8.9, 10.0),
        "encoder": (float("nan"), 1.0),
    }
    shares = {"LightningDiT eager": 0.2, "LightningDiT compiled": 0.39, "decoder eager": 0.01, "decoder compiled": 0.35}
    assert gpu.missed(memory, shares) == [
        "matching takes 11.20 GiB, and not 10.00",
        "decoder takes 8.90 GiB, and not 10.00",
        "LightningDiT compiled reaches 39% of the peak, and not 40%",
    ]
    assert gpu.missed({}, {"LightningDiT eager": 0.3}) == []
    assert gpu.missed({}, {"decoder compiled": 0.34}) == ["decoder compiled reaches 34% of the peak, and not 35%"]


def test_large_networks_are_for_a_gpu_or_for_who_asks():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert models.chosen("", cpu) == models.CASES
    assert models.chosen("LightningDiT", cpu).keys() < models.CASES.keys()
    assert [*models.chosen("XL/1", cpu)] == ["LightningDiT-XL/1, 16x16x32, batch 32"]
    assert models.chosen("", cuda) == models.CASES | models.LARGE
    with torch.device("meta"):
        for make in models.LARGE.values():
            model, inputs = make()
            assert model(*inputs).shape[0] == len(inputs[0])


def test_a_proxy_that_does_not_vary_ranks_nothing():
    rows = {f"r/{i}": {"gfd": 100.0 + i, "same": 1.0, "kind": float(i > 2), "good": float(i)} for i in range(6)}
    table = proxies.table(rows, {name: i > 2 for i, name in enumerate(rows)}).splitlines()
    found = {name.strip(): [cell.strip() for cell in cells] for _, name, *cells, _ in (row.split("|") for row in table)}
    assert list(found)[2:] == ["good", "kind", "same"]
    assert found["same"] == ["6", "", "", "", "", "", "1 to 1"]
    assert found["kind"][4:6] == ["", ""], "it varies with the kind alone"
    assert (found["good"][1], found["good"][4]) == ("+1.00", "+1.00")


@pytest.mark.slow
def test_toys_are_reached_and_told_over_seeds(tmp_path, monkeypatch, capsys):
    asked = "toy2d FOLDER --objectives transport --parts toys starts --turns 60 --points 32 --seeds 2 --workers 1"
    monkeypatch.setattr(sys, "argv", asked.replace("FOLDER", str(tmp_path)).split())
    importlib.import_module("benchmarks.toy2d").main()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["distance.png", "objectives.png"]
    rows = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| transport")]
    assert [len(row) for row in rows] == [6, 11]
    numbers = [[[float(n) for n in re.findall(r"\d+\.?\d*", cell)[:2]] for cell in row] for row in rows]
    assert all(0 < median <= farthest for row in numbers for median, farthest in row)
    assert all(farthest < 2 for _, farthest in [*numbers[0], numbers[1][0]])  # from afar so few turns do not suffice


def test_channels_of_whitened_latents_are_drawn_as_they_are_encoded(tmp_path, monkeypatch):
    """What the generator learns is mixed from several channels; the reference is one of the latents themselves."""
    z, mean, std = torch.randn(20, 2, 3, 3), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    for folder in ("reference", "latents/latents"):
        (tmp_path / folder).mkdir(parents=True)
    save_file({"latents": z}, tmp_path / "reference/map.safetensors")
    save_file({"mean": mean, "std": std}, tmp_path / "reference/normalisation.safetensors")
    raw = z * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    save_file(
        {"latents": raw, "labels": torch.zeros(20).long()}, tmp_path / "latents/latents/latents-00000.safetensors"
    )
    whitening = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    save_file({"mean": mean, "std": std, "whitening": whitening}, tmp_path / "latents/latents/statistics.safetensors")
    drawn = {}
    monkeypatch.setattr(channels, "picture", lambda file, sets, chosen: drawn.update(sets))
    monkeypatch.setattr(sys, "argv", ["channels", str(tmp_path), "rings.png"])
    channels.main()
    torch.testing.assert_close(drawn["latents"], drawn["reference"])


def test_eager_steps_stand_beside_compiled_ones_of_a_recipe_that_compiles(tmp_path, monkeypatch):
    made = []

    class Steps:
        batch_size = 8

        def __init__(self, job, device, compiled=False):
            made.append((job.recipe.run.compile, compiled))

        def first(self):
            return 1.0

    monkeypatch.setattr(steps, "Steps", Steps)
    monkeypatch.setattr(steps, "flops_per_image", lambda steps: 1.0)
    monkeypatch.setattr(steps, "peak_flops", lambda *_: 1.0)
    monkeypatch.setattr(steps, "fastest", lambda loops, seconds: [1.0 for _ in loops])
    recipe = tiny.write(tmp_path, run__compile=True)
    for options, expected in (["--compile"], [(False, False), (False, True)]), ([], [(True, False)]):
        made.clear()
        monkeypatch.setattr(sys, "argv", ["steps", "--recipe", str(recipe), "--stage", "encoder", *options])
        steps.main()
        assert made == expected
