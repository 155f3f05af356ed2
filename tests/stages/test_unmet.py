"""What an objective asks that the recipe does not give is told before anything runs."""

import re

import pytest

import tiny
from dmvae import checks
from dmvae.recipe import load

ONE = {"type": "conv", "width": 48, "multipliers": [1, 2], "blocks": 1, "stride": 12, "out_channels": 8}
"""An encoder of one feature an image."""


def told(folder, **over):
    """The problems of the recipe."""
    recipe = load(tiny.write(folder, variants={"main": {}}, **over))["main"]
    return list(checks.problems(recipe, recipe.stages()))


@pytest.mark.parametrize(
    ("objective", "place"),
    [
        ({"type": "transport", "views": ["pair"]}, "matching.objective.views"),
        ({"type": "transport", "views": ["pair", "token"]}, None),
        ({"type": "hand_over", "far": {"type": "energy", "views": ["pair"]}}, "matching.objective.far.views"),
    ],
)
def test_a_single_token_has_no_pairs(tmp_path, objective, place):
    over = {"matching": {"objective": objective, "batch_size": 16, "steps": 800, "model": tiny.DIT}}
    found = told(tmp_path, autoencoder__encoder=ONE, losses__adversarial__weight=0.0, **over)
    assert [problem.partition(":")[0] for problem in found] == ([place] if place else [])
    assert all(re.search("a single token .*data.size 12.* give whole or token", problem) for problem in found)
