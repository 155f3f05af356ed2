"""An Inception Score that no features of the recipe give is refused before anything runs: it would be missing at the
end, without a word."""

from types import SimpleNamespace

import pytest

import tiny
from dmvae import checks
from dmvae.evaluation.features.inception import Inception
from dmvae.recipe import load


def refused(folder, **over):
    recipe = load(tiny.write(folder, evaluate__metrics=["frechet", "score"], **over))["kl"]
    return [told for told in checks.problems(recipe, recipe.stages()) if told.startswith("evaluate.metrics: score")]


@pytest.mark.parametrize(
    ("name", "heads", "given"),
    [
        ("inception", ("pool", "logits", "spatial"), True),
        ("inception", ("pool", "spatial"), False),  # the package's file
        ("inception-0123abcd", ("pool", "logits", "spatial"), False),  # other weights
    ],
)
def test_the_published_weights_with_logits_give_a_score(tmp_path, monkeypatch, name, heads, given):
    monkeypatch.setattr(Inception, "build", lambda self: SimpleNamespace(name=name, widths=dict.fromkeys(heads, 1)))
    assert bool(refused(tmp_path, evaluate__features={"type": "inception"})) != given
    assert bool(refused(tmp_path, evaluate__also=[{"type": "inception"}])) != given


def test_other_features_give_none_and_missing_weights_are_told_by_themselves(tmp_path, monkeypatch):
    def missing(self):
        raise ValueError("no weights")

    monkeypatch.setattr(Inception, "build", missing)
    assert len(refused(tmp_path)) == 1
    assert not refused(tmp_path, evaluate__also=[{"type": "inception"}])
