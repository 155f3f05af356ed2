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
