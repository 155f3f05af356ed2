"""A recipe's seeds: one variant each, and a table with their mean and spread."""

import pytest

import tiny
from dmvae.recipe import load
from dmvae.summary import over_seeds


def test_each_seed_is_a_variant_of_its_own(tmp_path):
    path = tiny.write(tmp_path, seeds={"matched": [0, 5]})
    recipes = load(path)
    assert {name: recipe.seed for name, recipe in recipes.items()} == {"matched@0": 0, "matched@5": 5, "kl": 0}
    assert list(load(tiny.write(tmp_path, seeds=[3, 4]))) == ["matched@3", "matched@4", "kl@3", "kl@4"]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({"matchd": [0]}, "seeds: no variant is called 'matchd'; did you mean 'matched'"),
        (["one"], "seeds: expected a list of whole numbers, got"),
        ([], "seeds: expected a list of whole numbers, got"),
    ],
)
def test_a_mistake_in_the_seeds(tmp_path, seeds, message):
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, seeds=seeds))


def test_mean_and_spread_over_the_seeds_of_a_method():
    rows = {"a@0": {"gfd": 1.0, "psnr": 5.0}, "a@1": {"gfd": 3.0}, "b": {"gfd": 9.0}, "c@0": {"gfd": 2.0}}
    assert over_seeds(rows) == {"a": {"count": 2, "mean": {"gfd": 2.0}, "spread": {"gfd": 2**0.5}}}
