"""Every benchmark can be started: its imports and its arguments are there."""

import importlib
import re
import sys
from pathlib import Path

import pytest

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
        "sampling eager, 2 steps",
    ):
        assert line in out


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
