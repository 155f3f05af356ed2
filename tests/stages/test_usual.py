"""What a matching is that names no objective: the setting that arrives, of which each field can be named."""

import pytest
import yaml

import tiny
from dmvae import config as configs
from dmvae.matching.dmd import DMD
from dmvae.matching.hand_over import HandOver
from dmvae.matching.transport import Transport
from dmvae.recipe import load, read_values, resolve
from dmvae.runtime.shipped import recipe_file

OPEN = {"steps": 8, "batch_size": 64}


def matching(section=None, **over):
    """The resolved recipe of the tiny one's first variant, with this section `matching` in place of its own."""
    values = {key: value for key, value in tiny.RECIPE.items() if key not in ("matching", "variants")}
    return resolve(configs.merge(values | {"matching": section or OPEN}, over))["main"]


def test_without_an_objective_it_is_that_of_the_recipe_arrive():
    values = read_values(recipe_file("arrive"))
    named = load("arrive")["arrived"]
    sizes = ("steps", "batch_size", "decoded", "learning_rate", "ema", "student_steps")
    values["matching"] = {key: values["matching"][key] for key in sizes}
    del values["reference"]["teacher"], values["variants"]
    assert resolve(values)["main"] == named


def test_a_pretrained_tokenizer_is_moved_whatever_the_autoencoder_of_other_variants():
    given = {"pretrained": {"type": "identity"}, "encoder": None, "tokenizer": None}
    one, other = (matching(None, **given, autoencoder={"variational": v}) for v in (False, True))
    assert (one.matching, one.reference) == (other.matching, other.reference)


def test_a_target_is_there_where_something_aims_at_it():
    plain = matching(OPEN | {"objective": {"type": "dmd"}}).matching.target
    assert matching(OPEN | {"balance": "gradient"}).matching.target == plain
    assert matching(OPEN | {"noise": "none", "balance": "gradient", "until": "arrived"}).matching.target == 1.4


def test_dmd_alone_is_the_papers():
    recipe = matching(OPEN | {"objective": {"type": "dmd"}})
    section = recipe.matching
    assert section.objective == DMD()
    assert (section.balance, section.weight, section.student_steps) == ("fixed", 10.0, 5)
    assert (section.noise, section.anchor, section.noise_groups, recipe.reference.teacher) == ("none", None, None, True)


def test_the_command_line_names_an_objective_too(tmp_path):
    path = tmp_path / "open.yaml"
    values = tiny.RECIPE | {"matching": OPEN, "variants": {"main": {}}}
    path.write_text(yaml.safe_dump(values))
    assert load(path)["main"].matching.objective == Transport()
    assert load(path, {"matching.objective.type": "dmd"})["main"] == matching(OPEN | {"objective": {"type": "dmd"}})
    assert load(path, {"matching.target": 1.2})["main"].matching.target == 1.2


@pytest.mark.parametrize(
    ("section", "kept"),
    [
        ({"target": 1.1}, {"target": 1.1, "noise": "assigned", "noise_groups": 32, "anchor": 0.3}),
        ({"noise_groups": 16}, {"noise": "assigned", "noise_groups": 16}),
        ({"noise": "reference"}, {"noise": "reference", "noise_groups": None, "anchor": None}),
        ({"noise": "none", "weight": 3.0}, {"noise": "none", "noise_groups": None, "anchor": None, "weight": 3.0}),
        ({"anchor": None}, {"noise": "assigned", "anchor": None}),
    ],
)
def test_what_the_section_names_it_keeps(section, kept):
    found = matching(OPEN | section).matching
    assert {name: getattr(found, name) for name in kept} == kept
    assert found.balance == "distance"
    assert matching(**{"reference.teacher": True}).reference.teacher


@pytest.mark.parametrize("named", [{}, {"noise": "posterior"}])
def test_a_variational_tokenizer_draws_its_latents_and_hands_them_over(named):
    recipe = matching(OPEN | named, **{"autoencoder.variational": True})
    section = recipe.matching
    assert (section.noise, section.noise_groups, section.anchor) == ("posterior", None, None)
    assert section.objective == HandOver()
    assert (section.balance, section.target, section.student_steps) == ("distance", 2.5, 2)
    assert recipe.reference.teacher, "which the objective that refines asks"


def test_its_means_are_moved_where_the_section_says_so():
    recipe = matching(OPEN | {"noise": "none"}, **{"autoencoder.variational": True})
    assert (recipe.matching.objective, recipe.matching.noise) == (Transport(), "none")
    assert not recipe.reference.teacher


def test_a_finished_tokenizer_moves_its_own_latents(tmp_path):
    values = {"pretrained": {"type": "diffusers", "path": str(tmp_path)}, "encoder": None, "tokenizer": None}
    section = matching(**values).matching
    assert (section.objective, section.noise) == (Transport(), "none")
    section = matching(OPEN | {"noise": "posterior"}, **values).matching
    assert (section.objective, section.noise) == (HandOver(), "posterior"), "of an AutoencoderKL, for instance"


def test_sections_that_are_null_or_no_mapping_stay_what_they_are():
    assert resolve(tiny.RECIPE | {"variants": {"main": {"matching": None}}})["main"].matching is None
    with pytest.raises(ValueError, match="matching: expected a mapping of fields, got 3"):
        resolve(tiny.RECIPE | {"matching": 3, "variants": {"main": {}}})
    with pytest.raises(ValueError, match="matching: it needs the stage 'reference', which is null"):
        matching(reference=None)
