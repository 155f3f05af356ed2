"""A recipe laid over another."""

from pathlib import Path

import pytest
import yaml

import tiny
from dmvae import config as configs
from dmvae.recipe import load

RECIPES = Path(__file__).parents[1] / "recipes"


def over(folder, **values):
    path = folder / "over.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_what_the_file_says_is_laid_over_the_recipe_that_it_extends(tmp_path):
    base = tiny.write(tmp_path)
    path = over(tmp_path, extends=base.name, name="other", **{"generator.steps": 7}, variants={"more": {"seed": 3}})
    (below, *_), (found,) = load(base).values(), load(path).values()
    expected = configs.plain(below)
    expected["generator"]["steps"], expected["name"], expected["seed"] = 7, "other", 3
    assert configs.plain(found) == expected
    assert list(load(path)) == ["more"], "variants are not inherited"


CASES = {  # a section without its type, that type, a field which stands in the base
    "losses.adversarial": ("patchgan", {"weight": 0.3, "layers": 1}),
    "tokenizer.alignment": ("pointwise", {"weight": 0.02}),
    "generator.model": ("flow", {"width": 16, "depth": 1, "heads": 2}),
}


@pytest.mark.parametrize("section", CASES)
def test_a_type_that_a_section_had_already_changes_nothing_else_in_it(tmp_path, section):
    """A type that is the default is as good as one that is named, in a variant, an option or a recipe laid over."""
    kind, own = CASES[section]
    base = tiny.write(tmp_path, variants={"plain": {}, "named": {f"{section}.type": kind}}, **{section: own})
    found = load(base)
    assert configs.plain(found["named"]) == configs.plain(found["plain"])
    assert configs.plain(load(base, {f"{section}.type": kind})["plain"]) == configs.plain(found["plain"])
    path = over(tmp_path, extends=base.name, variants={"plain": {}}, **{f"{section}.type": kind})
    assert configs.plain(load(path)["plain"]) == configs.plain(found["plain"])
    for key, value in own.items():
        part = configs.plain(found["named"])
        for name in section.split("."):
            part = part[name]
        assert part[key] == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extends": "nowhere.yaml"}, "no such recipe: .*nowhere.yaml"),
        ({"extends": "over.yaml"}, "over.yaml extends this file in turn"),
        ({"extends": ["a.yaml"]}, "expected the path of a recipe"),
    ],
)
def test_a_mistake_in_what_it_extends(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        load(over(tmp_path, **values))


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_read(recipe):
    """Its keys are known and its values make sense; `dmvae run --dry-run` then builds on that."""
    assert load(recipe, {"data.root": "anywhere"} if "type: image_folder" in recipe.read_text() else {})


def test_variants_are_named_by_text_that_is_a_folder(tmp_path):
    tiny.write(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text("{extends: recipe.yaml, variants: {8: {}}}")
    assert load(path, {"variants.8.seed": 3})["8"].seed == 3
    for name in ("a/b", "kl_0.1", "..", "stages"):
        path.write_text(f"{{extends: recipe.yaml, variants: {{{name}: {{}}}}}}")
        with pytest.raises(ValueError, match=f"variants: {name!r} names a folder"):
            load(path)
