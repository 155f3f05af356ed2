"""What is asked on the command line is what runs: it wins over the file and over every variant."""

import pytest
import yaml

import tiny
from complaints import complain
from dmvae import cli
from dmvae.recipe import load, resolve
from plans import count_only


def test_an_option_wins_over_the_file_and_over_the_variant(tmp_path):
    path = tiny.write(tmp_path, variants__kl__tokenizer__steps=9)
    recipes = load(path, {"tokenizer.steps": 3, "tokenizer.learning_rate": 0.5})
    assert {name: recipe.tokenizer.steps for name, recipe in recipes.items()} == {"matched": 3, "kl": 3}
    assert recipes["kl"].tokenizer.learning_rate == 0.5
    assert recipes.partial == {}
    assert load(path, {"tokenizer.kl_weight": 1e-1})["kl"].tokenizer.kl_weight == 0.1


def test_a_value_may_name_the_folder_of_its_run(tmp_path):
    there = {"losses.adversarial.start_from": "{run.dir}/kl/tokenizer/discriminator"}
    also = [{"type": "inception", "weights": "{run.dir}/weights.pth"}]
    path = tiny.write(tmp_path, variants={"next": there}, evaluate__also=also)
    for options, folder in (({}, str(tmp_path / "run")), ({"run.dir": "elsewhere"}, "elsewhere")):
        found = load(path, options)["next"]
        assert str(found.losses.adversarial.start_from) == f"{folder}/kl/tokenizer/discriminator"
        assert found.evaluate.also[0].weights == f"{folder}/weights.pth"
    values = {name: value for name, value in tiny.RECIPE.items() if name != "run"}
    found = resolve(values | {"variants": {"next": there}})["next"]
    assert str(found.losses.adversarial.start_from) == "runs/default/kl/tokenizer/discriminator"


def test_an_option_of_one_variant_wins_over_one_of_all(tmp_path):
    recipes = load(tiny.write(tmp_path), {"variants.kl.tokenizer.steps": 5, "tokenizer.steps": 3})
    assert {name: recipe.tokenizer.steps for name, recipe in recipes.items()} == {"matched": 3, "kl": 5}


def test_an_option_reaches_the_variants_that_have_its_section(tmp_path, capsys):
    path = tiny.write(tmp_path)
    recipes = load(path, {"matching.steps": 2, "seed": 4})
    assert recipes["matched"].matching.steps == 2
    assert recipes["kl"].matching is None
    assert recipes["kl"].seed == 4
    assert recipes.partial == {"matching.steps": ["matched"]}
    cli.main(["run", str(path), "--help", "--matching.steps", "2"])
    assert "--matching.steps reaches matched, not kl: no such section or field there" in capsys.readouterr().out
    _, error = complain(capsys, "run", path, "--variant", "kl", "--matching.steps", "2")
    assert "--matching.steps reaches matched, but not --variant kl" in error


def test_an_option_reaches_the_types_that_have_its_field(tmp_path):
    path = tiny.write(tmp_path, variants__b={"matching.objective": {"type": "adversarial"}})
    recipes = load(path, {"matching.objective.guidance": 7.0})
    assert recipes["matched"].matching.objective.guidance == 7.0
    assert recipes.partial == {"matching.objective.guidance": ["matched"]}
    with pytest.raises(ValueError, match=r"matching.objective.guidanc: no such field; did you mean 'guidance'"):
        load(path, {"matching.objective.guidanc": 7.0})
    assert load(path, {"matching.objective.type": "dmd"})["b"].matching.objective.type == "dmd"


def test_a_section_that_no_variant_has_is_added_to_all(tmp_path):
    path = tiny.write(tmp_path, generator=None, sample=None)
    recipes = load(path, {"generator.steps": 3, "generator.batch_size": 8})
    assert [recipe.generator.steps for recipe in recipes.values()] == [3, 3]


def test_both_spellings_of_a_decoder_s_field_are_the_same_option(tmp_path):
    path = tiny.write(tmp_path, variants__kl__autoencoder__decoder_width=32)
    for option in ("autoencoder.decoder_width", "autoencoder.decoder.width"):
        assert {recipe.autoencoder.decoder.width for recipe in load(path, {option: 12}).values()} == {12}


def test_a_seed_beside_seeds_is_refused(tmp_path):
    path = tiny.write(tmp_path, seeds=[0, 1])
    with pytest.raises(ValueError, match=r"--seed: this recipe's `seeds` give it; ask for --seeds '\[3\]'"):
        load(path, {"seed": 3})
    assert {recipe.seed for recipe in load(path, {"seed": 3, "seeds": None}).values()} == {3}
    assert list(load(path, {"seeds": [3]})) == ["matched@3", "kl@3"]
    assert load(path, {"variants.kl.tokenizer.steps": 5})["kl@1"].tokenizer.steps == 5


def test_the_help_has_the_values_of_every_variant(tmp_path, capsys):
    path = tiny.write(tmp_path, seeds={"kl": [0, 1]}, losses__perceptual=None)
    cli.main(["run", str(path), "--help"])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  --autoencoder.variational"))
    assert lines[at + 1 : at + 3] == ["      false  (matched)", "      true  (kl)"]
    assert any(line.startswith("matching (matched): ") for line in lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("  --seed"))
    assert lines[at + 2] == "      1  (kl@1)"


def test_fields_that_nothing_uses_are_left_out_of_the_help(tmp_path, capsys):
    path = tiny.write(tmp_path, variants=None, reference__distribution={"type": "gaussian"})
    cli.main(["run", str(path), "--help"])
    out = capsys.readouterr().out
    assert "--reference.distribution.type gaussian" in out
    assert "--reference.steps" not in out, "no teacher is trained"
    assert "--tokenizer.kl_weight" not in out, "the bottleneck is not variational"
    assert "--matching.model.width 384" in out, "the student has no teacher to be a copy of"
    path = tiny.write(tmp_path, variants=None, matching__objective={"type": "transport"}, reference__teacher=False)
    cli.main(["run", str(path), "--help", "--generator.model.size", "B/1"])
    out = capsys.readouterr().out
    assert "--reference.teacher false" in out
    assert "--reference.drawn false" in out, "it says how latents are normalised, with a teacher or without"
    assert "--reference.steps" not in out, "no teacher is trained"
    assert "--matching.student_steps" not in out, "the objective has no student"
    assert "--generator.model.size B/1" in out
    assert "--generator.model.width" not in out, "the size says it"
    cli.main(["run", str(tiny.write(tmp_path, variants=None)), "--help"])
    out = capsys.readouterr().out
    assert "--matching.student_steps" in out
    assert "--matching.model" not in out, "the student is a copy of the teacher"


@pytest.mark.slow
def test_the_dry_run_has_the_values_of_every_variant_and_trains_nothing(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    cli.main(["run", str(tiny.write(tmp_path)), "--dry-run", "--tokenizer.steps", "3"])
    out, _, table = capsys.readouterr().out.partition("for 1 process")
    assert out.startswith("resolved values:")
    assert table.count("48 training and 24 test images of 3 classes") == 2
    assert table.count("memory of each rank: state is weights") == 1, "once for both"
    assert not (tmp_path / "run").exists()
    assert "  tokenizer: steps 3, batch_size 8" in out
    assert "      matched: train_encoder false" in out
    assert "      kl: train_encoder true, kl_weight 0.001" in out
    assert "  matching (matched): steps 8" in out


def test_the_help_of_a_recipe_needs_no_data(tmp_path, capsys):
    cli.main(["run", "image_folder", "--help"])
    assert "--data.root REQUIRED" in capsys.readouterr().out
    required = "data.root: this field is required; give it in the recipe, or as --data.root VALUE"
    assert required in complain(capsys, "run", "image_folder")[1]


def test_what_is_asked_is_what_the_run_keeps(tmp_path):
    path = tiny.write(tmp_path, variants__kl__tokenizer__steps=4)
    cli.main(["tokenizer", str(path), "--variant", "kl", "--tokenizer.steps", "2", "--tokenizer.kl_weight", "1e-1"])
    kept = yaml.safe_load((tmp_path / "run/kl/recipe.yaml").read_text())["tokenizer"]
    assert (kept["steps"], kept["kl_weight"]) == (2, 0.1)


def test_a_section_that_an_option_would_begin_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'kl', which lacks 'matching' without --variants\.kl\.matching\.weight"):
        load(tiny.write(tmp_path), {"variants.kl.matching.weight": 3})


def test_the_help_of_a_recipe_without_a_number_says_which(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("{name: r, data: {type: shapes}, autoencoder: {encoder: {type: conv}}, tokenizer: {}}")
    told = "tokenizer.steps: this field is required; give it in the recipe, or as --tokenizer.steps VALUE"
    assert told in complain(capsys, "run", str(path), "--help")[1]
