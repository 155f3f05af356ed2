"""How much room `dmvae plan` says that a stage's folder takes."""

import pytest

import tiny
from dmvae.commands import plan
from dmvae.recipe import load
from plans import COST


@pytest.mark.parametrize(
    ("latents", "bytes_each"),
    [
        ({}, 4),
        ({"dtype": "float16"}, 2),
        ({"mirrored": True}, 2 * 4),
        ({"drawn": True}, 3 * 4),  # means and deviations too
        ({"drawn": True, "dtype": "float16"}, 3 * 2),
    ],
)
def test_latents_take_what_their_numbers_do(tmp_path, latents, bytes_each):
    recipe = load(tiny.write(tmp_path, variants={"kl": tiny.RECIPE["variants"]["kl"]}, latents=latents))["kl"]
    assert plan._disk("latents", recipe, None, 48) == 48 * (4 * 3 * 3) * bytes_each


@pytest.mark.parametrize(("stage", "held"), [("generator", 3), ("matching", 5)])
def test_a_training_holds_its_checkpoints_and_two_more_where_it_may_go_back(tmp_path, stage, held):
    recipe = load(tiny.write(tmp_path))["matched"]
    assert plan._disk(stage, recipe, COST, 48) == held * (COST.saved + COST.state) + COST.saved
