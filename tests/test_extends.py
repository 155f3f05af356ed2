"""A recipe laid over another."""

from pathlib import Path

import pytest
import yaml

import tiny
from dmvae import config as configs
from dmvae.recipe import extended, load, resolve

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
        ({"extends": "nowhere.yaml"}, r"over\.yaml: extends: no such recipe: .*nowhere.yaml"),
        ({"extends": "smokee"}, r"over\.yaml: extends: no such recipe: smokee; did you mean 'smoke'"),
        ({"extends": "."}, r"over\.yaml: extends: .* is a folder\)"),
        ({"extends": ""}, r"over\.yaml: extends: expected the path of a recipe"),
        ({"plugins": "nope.py"}, r"over\.yaml: plugins: no such file or folder"),
        ({"plugins": [" "]}, r"over\.yaml: plugins: an empty name"),
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
    for name in ("on", "off", "null"):  # which YAML has a meaning of its own for
        path.write_text(f"{{extends: recipe.yaml, variants: {{{name}: {{}}}}}}")
        with pytest.raises(
            ValueError, match=r"variants: YAML reads a name here as (True|False|None); write it in quotes"
        ):
            load(path)


@pytest.mark.parametrize("name", ["lr/1e-4", "v1.5", "stages"])
def test_variants_of_a_mapping_are_named_so_too(tmp_path, name):
    values = yaml.safe_load(tiny.write(tmp_path, variants={"main": {}}).read_text())
    with pytest.raises(ValueError, match=f"variants: {name!r} names a folder"):
        resolve(values | {"variants": {name: {}}})
    assert list(resolve(values | {"variants": {8: {}}})) == ["8"]


def test_a_plugin_s_section_is_laid_over_like_any_other(tmp_path):
    """The first time that the recipe is read, too, when the plugin is not known yet."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass, field\n"
        "from dmvae.references import ReferenceConfig\nfrom dmvae.references.mixture import MixtureReference\n"
        "from dmvae.registry import register\n\n\n"
        '@register("wrapped")\n@dataclass(frozen=True, kw_only=True)\nclass Wrapped(ReferenceConfig):\n'
        "    of: ReferenceConfig = field(default_factory=MixtureReference)\n\n"
        "    def build(self, inputs):\n        return self.of.build(inputs)\n"
    )
    tiny.write(
        tmp_path,
        plugins=["mine.py"],
        variants={"main": {}},
        reference__distribution={"type": "wrapped", "of": {"components": 7}},
    )
    path = over(tmp_path, extends="recipe.yaml", **{"reference.distribution.of": {"type": "mixture", "std": 0.3}})
    for _ in range(2):
        of = load(path)["main"].reference.distribution.of
        assert (of.components, of.std) == (7, 0.3)


def test_a_home_folder_is_found_and_no_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.py").write_text("")
    tiny.write(tmp_path)
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "study.yaml"
    path.write_text("{extends: ~/recipe.yaml, plugins: [~/own.py], run.dir: ~/runs/x}")
    recipe = load(path)["main"]
    assert recipe.run.dir == f"{tmp_path}/runs/x"
    assert recipe.plugins == (f"{tmp_path}/own.py",)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"a": {}, "b": {"plugins": ["nope.py"]}}, r"variants\.b\.plugins: plugins are loaded for all variants"),
        ({"a": {}, "b": {"run.dir": "other"}}, r"run\.dir: variants name .*other.*; a run has one folder for all"),
    ],
)
def test_what_is_one_for_all_variants(tmp_path, variants, message):
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, variants=variants))


def test_a_misspelt_field_of_one_variant_is_told_with_its_name(tmp_path):
    path = tiny.write(tmp_path, variants={"a": {}, "b": {"tokenizer.stpes": 3}})
    with pytest.raises(ValueError, match=r"tokenizer\.stpes: no such field; did you mean 'steps'\? \(variant 'b'\)"):
        load(path)


@pytest.mark.parametrize("over", [{"variants.kl": None}, {"variants": {}}, {"variants.kl": {}}])
def test_an_option_that_says_nothing_is_told(tmp_path, over):
    with pytest.raises(ValueError, match="it says nothing; --variant NAME chooses one, --variants null does without"):
        load(tiny.write(tmp_path), over)


def test_a_stage_of_one_variant_is_taken_off_and_put_back(tmp_path):
    path = tiny.write(tmp_path)
    assert load(path, {"variants.matched.matching": None})["matched"].matching is None
    assert load(path, {"variants.kl.latents": {}})["kl"].latents is not None


def test_an_anchor_that_holds_itself_is_no_recipe(tmp_path):
    path = tmp_path / "round.yaml"
    path.write_text("tokenizer: &a {b: *a}")
    with pytest.raises(ValueError, match="not valid YAML: an anchor that contains itself"):
        load(path)


def test_anchors_that_stand_for_billions_of_values_are_looked_at_once(tmp_path):
    lines = [f"x{i + 1}: &x{i + 1} [{', '.join([f'*x{i}'] * 9)}]" for i in range(30)]
    path = tiny.write(tmp_path)
    path.write_text(f"{path.read_text()}\nx0: &x0 [text]\n" + "\n".join(lines))
    with pytest.raises(ValueError, match="x0: no such field"):
        load(path)


def test_a_mapping_extends_as_a_file_does(tmp_path):
    path = over(tmp_path, extends=str(tiny.write(tmp_path)), seed=7)
    values = {"extends": str(tmp_path / "recipe.yaml"), "seed": 7}
    assert resolve(extended(values, Path("recipe"))) == load(path)
