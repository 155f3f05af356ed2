"""The evaluate stage's optional figures."""

import json
import math
from functools import partial

import pytest

import tiny
from dmvae.evaluation.probe import generator_probe


@pytest.mark.slow
def test_proxies_and_probe_stand_beside_the_other_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("dmvae.stages.measuring.generator_probe", partial(generator_probe, steps=3))
    monkeypatch.setattr("dmvae.evaluation.probe.SAMPLES", 12)
    tiny.run(tiny.write(tmp_path, evaluate__proxies=True, evaluate__probe=True), "kl")
    metrics = json.loads((tmp_path / "run/kl/evaluate/metrics.json").read_text())
    assert {"smoothness", "linear_probe", "probe_gfd_effnet-lite0@32"} <= set(metrics["proxies"])
    assert metrics["proxies"]["linear_probe"] == metrics["linear_probe"]
    assert all(math.isfinite(value) for value in metrics["proxies"].values())
