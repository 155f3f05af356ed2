"""A discriminator that tells nothing apart is told at the end of its training, and in the report."""

import json

import pytest

import tiny
from dmvae.report.run import Run
from dmvae.report.training import stage_curves
from dmvae.training import adversary
from dmvae.training.adversary import idle_adversary


def rows(gaps, every=100):
    """A row for each difference of the answers; a discriminator that is alive has half of it on either side."""
    return [
        {"step": every * k, "adversarial/real": gap / 2, "adversarial/fake": -gap / 2, "adversarial/weight": 10.0}
        for k, gap in enumerate(gaps, 1)
    ]


def test_only_one_that_tells_nothing_apart_in_its_second_half_is_told():
    text = idle_adversary(rows([1.0] * 5 + [0.01, -0.01] * 3))
    assert "differed by 0," in text
    assert "weight of 10." in text
    assert idle_adversary(rows([0.0] * 5 + [0.3] * 6)) == ""  # it learned late
    assert idle_adversary(rows([0.0, -1.0] * 6)) != ""  # no better than chance
    assert idle_adversary(rows([0.0] * 5)) == ""  # 400 steps are too few to learn in
    assert idle_adversary(rows([0.0] * 6)) != ""
    assert idle_adversary([{"step": 1, "generator/loss": 1.0}, {"step": 1000, "generator/loss": 1.0}]) == ""
    assert idle_adversary([]) == ""


def test_one_that_starts_late_has_its_own_steps_counted():
    before = [{"step": 100 * k, "reconstruction/pixel": 0.1} for k in range(1, 50)]
    late = [row | {"step": 4900 + row["step"]} for row in rows([0.0] * 5)]
    assert idle_adversary(before + late) == ""
    assert idle_adversary(before + late + [late[-1] | {"step": 5500}]) != ""


@pytest.mark.slow
@pytest.mark.parametrize("alive", [False, True])
def test_it_is_said_once_while_it_trains_and_at_the_end_and_shown_in_the_report(tmp_path, monkeypatch, capsys, alive):
    monkeypatch.setattr(adversary, "STEPS", 1)
    monkeypatch.setattr(adversary, "LEAST", -100.0 if alive else 100.0)
    over = {"tokenizer__steps": 12, "run__save_every": 2, "run__log_every": 1}
    jobs = tiny.run(tiny.write(tmp_path, variants={"main": {}}, **over), until="tokenizer")
    said = " ".join(capsys.readouterr().out.split())
    log = (tmp_path / "run/main/tokenizer/log.jsonl").read_text().splitlines()
    assert any("adversarial/real" in json.loads(row) for row in log)
    shown = stage_curves(Run(tmp_path / "run", jobs), "tokenizer")
    for text in (said, shown):
        assert ("the discriminator told nothing apart" in text) is not alive
    idle = "the discriminator told nothing apart"
    assert said.count(f": {idle}") == (0 if alive else 2)
    assert (f"tokenizer: {idle}" in said) is not alive
    assert (f"tokenizer: step 8: {idle}" in said) is not alive, "the first save after it had two rows"
