"""Where a run says how far its latents are from their reference: its figures, its table and its report."""

import json
import re
from html import unescape

import pytest

import tiny
from dmvae.cli import main
from dmvae.runtime.console import console
from dmvae.transport import arrival, two_sample

OF_DRAWN = "(of latents with their noise, not of their means)"


@pytest.mark.slow
def test_the_verdict_stands_in_summary_table_and_report(tmp_path, monkeypatch, plain_report):
    monkeypatch.setattr(two_sample, "STEPS", 20)
    monkeypatch.setattr(arrival, "CLASS_STEPS", 10)
    over = {"matching": {"noise": "posterior"}, "autoencoder.variational": True}
    given = {"data__test_count": 72, "evaluate__count": 72}  # 64 at least are judged
    given |= {f"{stage}__steps": 2 for stage in ("encoder", "tokenizer", "reference", "matching")}
    given |= dict.fromkeys(("decoder", "generator", "sample"))
    recipe = tiny.write(tmp_path, variants={"matched": {}, "drawn": over}, **given)
    with console.capture() as text:
        main(["run", str(recipe)])
    terminal = " ".join(text.get().split())
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    page = unescape((tmp_path / "run/report.html").read_text())
    for name in ("matched", "drawn"):
        found = json.loads((tmp_path / f"run/{name}/evaluate/metrics.json").read_text())
        verdict = found["arrival"]["verdict"]
        assert re.match("arrived|on the way|not comparable", verdict)
        assert (OF_DRAWN in verdict) == (name == "drawn")
        assert summary["arrival"][name] == verdict
        assert verdict in terminal
        assert f"<b>{name}</b>: {verdict}" in page
        row = summary["methods"][name]
        assert row["distance_pair"] == found["arrival"]["pair"]
        assert f"<td>{row['distance_energy']:.2f}</td>" in page or f'"best">{row["distance_energy"]:.2f}<' in page
    folds = page.split("More figures")[1]
    for title in ("distance, pairs", "energy distance", "spread, latents", "rank, latents", "mixing"):
        assert f'<th scope="row">{title}<small>' in folds, title
