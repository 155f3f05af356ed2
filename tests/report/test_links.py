"""Reports are written into the run's folder and nowhere else, whatever links it holds."""

import json
from pathlib import Path

import fake_run
import pytest

from dmvae.report.pipelines import _write, write_pipelines


def test_a_pipeline_s_card_is_not_written_through_links(tmp_path, monkeypatch):
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    jobs = fake_run.build(run_dir, variants=("kl",), stages=("latents", "generator"))
    for job in jobs:
        job.finished = True
    outside.mkdir()
    (outside / "precious").write_text("mine")
    stages = {job.stage.name: job for job in jobs}
    source = {name: stages[name].folder.name for name in ("latents", "generator")}
    monkeypatch.setattr("dmvae.report.pipelines.card", lambda *_: "card")
    out = run_dir / "kl/pipeline"
    out.mkdir(parents=True, exist_ok=True)
    (out / "source.json").write_text(json.dumps(source))
    (out / "model_index.json").write_text('{"id2label": {"1": "bee"}}')
    (out / "README.md").symlink_to(outside / "precious")
    monkeypatch.setattr("dmvae.report.pipelines.configs.plain", lambda recipe: {})
    _write(stages, out)
    assert (outside / "precious").read_text() == "mine"
    assert (out / "README.md").read_text() == "card"
    for part in ("kl/pipeline", "kl"):
        path = run_dir / part
        path.rename(tmp_path / Path(part).name)
        path.symlink_to(outside)
        with pytest.raises(ValueError, match=r"out of .*run"):
            write_pipelines(jobs, run_dir)
        path.unlink()
        (tmp_path / Path(part).name).rename(path)
    assert sorted(p.name for p in outside.iterdir()) == ["precious"]
