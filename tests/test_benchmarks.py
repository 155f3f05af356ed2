"""Every benchmark can be started: its imports and its arguments are there."""

import importlib
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
