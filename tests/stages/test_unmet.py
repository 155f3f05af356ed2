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


FEATURES, MIXTURE, CUBE = {"type": "features"}, {"type": "mixture"}, {"type": "cube"}


@pytest.mark.parametrize(
    ("objective", "distribution", "dropouts", "named"),
    [
        ({"type": "dmd"}, FEATURES, (0.1, 0.1), []),
        ({"type": "dmd"}, FEATURES, (0.0, 0.1), ["reference"]),
        ({"type": "dmd"}, FEATURES, (0.1, 0.0), ["matching"]),
        ({"type": "dmd"}, FEATURES, (0.0, 0.0), ["reference", "matching"]),
        ({"type": "dmd", "guidance": 1.0}, FEATURES, (0.0, 0.0), []),
        ({"type": "dmd"}, MIXTURE, (0.0, 0.1), []),  # a closed form knows all labels
        ({"type": "dmd"}, CUBE, (0.1, 0.0), []),
        ({"type": "teacher_loss", "guidance": 2.0}, FEATURES, (0.1, 0.0), []),
        ({"type": "adversarial"}, FEATURES, (0.0, 0.0), []),
        ({"type": "hand_over", "near": {"type": "dmd", "guidance": 3.0}}, FEATURES, (0.1, 0.0), ["matching"]),
    ],
    ids=str,
)
def test_guidance_needs_labels_to_be_dropped(tmp_path, objective, distribution, dropouts, named):
    over = {"reference__distribution": distribution, "reference__label_dropout": dropouts[0]}
    section = {"objective": objective, "batch_size": 16, "steps": 900, "label_dropout": dropouts[1], "model": tiny.DIT}
    found = told(tmp_path, matching=section, **over)
    assert len(found) == len(named)
    for problem, stage in zip(found, named, strict=True):
        assert re.match(r"matching\.objective\.(near\.)?guidance: [35] asks", problem)
        assert f"{stage}.label_dropout: 0 teaches" in problem


def test_channels_without_guidance_ask_for_labels(tmp_path):
    section = {"sample__guidance": [0.0], "generator__label_dropout": 1.0}
    assert told(tmp_path, **section) == []
    (found,) = told(tmp_path, **section, sample__guidance_channels=2)
    assert re.match(r"generator\.label_dropout: 1 teaches no .*guidance \[0\.0\], at all times and in all", found)


def test_more_channels_than_latents_have_are_not_guided(tmp_path):
    (found,) = told(tmp_path, sample__guidance=[2.0], sample__guidance_channels=5)
    assert re.match(r"sample\.guidance_channels: 5 of latents that have 4; give fewer, or leave it out", found)


@pytest.mark.parametrize("stage", ["reference", "matching", "generator"])
def test_labels_that_are_never_kept_are_not_asked_for(tmp_path, stage):
    section = {"objective": {"type": "dmd"}, "batch_size": 16, "steps": 900, "model": tiny.DIT}
    (found,) = told(tmp_path, matching=section, **{f"{stage}__label_dropout": 1.0})
    assert found.startswith(f"{stage}.label_dropout: 1 teaches no velocity with a label")
    # where labels mean nothing, nobody asks for one
    section |= {"label_dropout": 1.0}
    assert told(tmp_path, matching=section, reference__distribution=CUBE, reference__label_dropout=1.0) == []


@pytest.mark.parametrize(
    ("dropout", "sample", "refused"),
    [
        (0.1, {"guidance": [1.0, 3.0]}, False),
        (0.0, {"guidance": [1.0]}, False),
        (0.0, {"guidance": [1.0, 3.0]}, True),
        (0.0, {"guidance": [3.0], "guide": 2}, False),
        (0.1, {"guidance": [3.0], "guidance_channels": 4}, False),
    ],
)
def test_so_does_that_of_the_stage_sample(tmp_path, dropout, sample, refused):
    generator = {"generator__label_dropout": dropout, "generator__keep_at": [2]}
    found = told(tmp_path, **generator, **{f"sample__{name}": value for name, value in sample.items()})
    assert len(found) == refused
    assert all(re.match(r"sample\.guidance: .*generator\.label_dropout: 0", problem) for problem in found)
