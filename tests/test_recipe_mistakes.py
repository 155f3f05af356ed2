"""What is wrong in a recipe, or in an option that stands for a field of it, is told with its place and its fix."""

import re

import pytest

import tiny
from complaints import complain
from dmvae.recipe import load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizr.steps", "3"], "dmvae: --tokenizr.steps: no such field; did you mean 'tokenizer'"),
        (["--tokenizer.stepz", "3"], "tokenizer.stepz: no such field; did you mean 'steps'"),
        (["--tokenizer.steps", "many"], "tokenizer.steps: expected a whole number, got 'many'"),
        (["--tokenizer.steps", "0"], "tokenizer.steps: expected a whole number, 1 to 10^9, got 0"),
        (["--data.type", "shape"], "data.type: no DatasetConfig is called 'shape'; did you mean 'shapes'"),
        (["--data", "{type: image_folder, root: /nowhere}"], "/nowhere"),
        (["--data.size", "10"], "data.size: image height 10 is not a multiple of the tokenizer's stride"),
        (
            ["--tokenizer.batch_size", "4096"],
            "tokenizer.batch_size: 4096 is larger than the data set (48 images); use at most 48",
        ),
        (
            ["--generator.batch_size", "49"],  # told before any stage runs
            "generator.batch_size: 49 is larger than the data set (48 images); use at most 48",
        ),
        (["--variant", "matchd"], "no variant is called 'matchd'; did you mean 'matched'"),
        (
            ["--variants.matchd.seed", "3"],
            "dmvae: --variants.matchd.seed: the recipe has no variant 'matchd'; did you mean 'matched'",
        ),
        (["--plugins", "[/no/file.py]"], "/no/file.py"),
        (["--reference", "null"], "matching: it needs the stage 'reference', which is null"),
        (["--evaluate.features.type", "inceptio"], "did you mean 'inception'"),
        (["--run.log_every", "0"], "run.log_every: expected a whole number, 1 to 10^9, got 0"),
        (["--tokenizer.clip", "-1"], "tokenizer.clip: expected a number, 0 to 10^6, got -1.0"),
        (["--matching.student_steps", "0"], "matching.student_steps: expected a whole number, 1 to"),
        (["--sample.batch_size", "0"], "sample.batch_size: expected a whole number, 1 to 2^20, got 0"),
        (["--sample.time_shift", "0"], "sample.time_shift: expected a number, 0.001 to 1000, got 0.0"),
        (["--evaluate.count", "0"], "evaluate.count: expected a whole number, 1 to"),
        (["--sample.last_step", "1.2"], "sample.last_step: expected a number, 0 to below 1, got 1.2"),
        (["--sample.last_step", "-0.1"], "sample.last_step: expected a number, 0 to below 1, got -0.1"),
        (["--generator.label_dropout", "1.5"], "generator.label_dropout: expected a number, 0 to 1, got 1.5"),
        (["--matching.label_dropout", "-1"], "matching.label_dropout: expected a number, 0 to 1, got -1.0"),
        (["--generator.model.heads", "0"], "generator.model.heads: expected a whole number, 1 to 1024, got 0"),
        (["--generator.model.patch_size", "0"], "generator.model.patch_size: expected a whole number, 1 to 256, got 0"),
        (["--generator.model.depth", "-1"], "generator.model.depth: expected a whole number, 1 to 1024, got -1"),
        (["--reference.model.width", "0"], "reference.model.width: expected a whole number, 1 to 65536, got 0"),
        (
            ["--generator.model.size", "XL/0"],
            "--generator.model.size: no network size is called 'XL/0'; did you mean 'XL/1'?",
        ),
        (
            ["--autoencoder.latent_channels", "-1"],
            "autoencoder.latent_channels: expected a whole number, 1 to 65536",
        ),
        (["--autoencoder.decoder_multipliers", "[]"], "--autoencoder.decoder.multipliers: give at least one"),
        (["--sample.time_shift", "inf"], "sample.time_shift: expected a number, 0.001 to 1000, got inf"),
        (["--losses.adversarial.learning_rate", "-1e-3"], "learning_rate: expected a number, 0 to 1000, got -1e-3"),
        (["--generator.weight_decay", str(2**63)], "generator.weight_decay: expected a number, 0 to 1000, got 9.22"),
        (["--losses.l1", "1e400"], "losses.l1: expected a number, 0 to 10^6, got 1e400"),
        (["--losses.l1", f"1{400 * '0'}"], "losses.l1: expected a number, 0 to 10^6, got inf"),
        (["--losses.adversarial.consistency", "nan"], "consistency: expected a number, 0 to 10^6, got nan"),
        (["--matching.proxy_every", "-1"], "matching.proxy_every: expected a whole number, 0 to 10^9, got -1"),
        (["--run.workers", "-1"], "run.workers: expected a whole number, 0 to 512, got -1"),
        (["--encoder", "{steps: 1, projection: 1000000000000}"], "encoder.projection: expected a whole number, 1 to"),
        (["--encoder", "{steps: 1, min_crop: 3}"], "encoder.min_crop: expected a number, above 0, to 1, got 3.0"),
        (
            ["--generator.model.width", "1.0e+308"],
            "generator.model.width: expected a whole number, 1 to 65536, got 1000",
        ),
        (["--run_dir", ""], "--run.dir: '' names no folder"),
        (["--run.dir", "' '"], "--run.dir: ' ' names no folder"),
        (["stray"], "unexpected argument 'stray'; options are written --section.field value"),
        (["tokenizer.steps=3"], "unexpected argument 'tokenizer.steps=3'; options are written --tokenizer.steps=3"),
        (["--noise", "0.3"], "sections have it: tokenizer.noise, matching.noise, decoder.noise"),
        (["--data.workers", "4"], "; sections have it: run.workers"),
        (["--generator.guidance", "2"], "; sections have it: sample.guidance"),
        (["--plugins", "7"], "plugins: expected a list of files, folders or modules, got 7"),
        (["--plugins", "one.py"], "plugins: no such file or folder: "),
        (["--data.limit", "None"], "data.limit: 'None' is text; write null"),
        (["--generator.steps"], "expected a whole number, got True; an option without a value is true"),
        (["--sample.guidance", "2"], "sample.guidance: expected a list, got 2; write [2]"),
        (
            ["--matching.objective", "dmd"],
            "matching.objective: expected a mapping of fields, got 'dmd'; write {type: dmd}",
        ),
        (["--seeds", "3"], "seeds: expected a list of whole numbers, got 3; write [3]"),
        (["--data", "{root: a-{0..3}.tar}"], "is not a YAML value; put a text that holds one of { } [ ] : # in quotes"),
        (
            ["--generator.model.width", "30"],
            "--generator.model.width: width 30 must be a multiple of 4 * heads, 8; use 32",
        ),
        (["--run_dir", __file__], "is a file; name a folder, to make or to go on in"),
        (["--losses.adversarial", "null"], "losses.adversarial: this section cannot be null; leave it out for its"),
        (["--losses.adversarial", "null"], "defaults, or set losses.adversarial.weight to 0"),
        (
            ["--tokenizer.kl_weight", "0.1"],
            "to those variants alone that have one: --variants.NAME.tokenizer.kl_weight",
        ),
        (
            ["--run_dir", "/dev/null/x"],
            "run.dir: /dev/null/x cannot be made (Not a directory); name another, --run_dir DIR",
        ),
        (["--run_dir", "x", "--run.dir", "y"], "--run_dir and --run.dir are the same; give one of them"),
        (["--data.limit", "1"], "evaluate: sets of images are compared, and there is 1 test image; give 2 or more"),
        (["--evaluate.count", "1"], "evaluate.count: 1 image is no set, and sets are compared; give 2 or more, or set"),
        (["--sample.count", "1"], "sample.count: 1 image is no set, and sets are compared; give 2 or more, or set"),
        (["--seeds", "[3, 3]"], "seeds: [3, 3] holds a seed twice"),
        (["--tokenizer.steps", "010"], "tokenizer.steps: expected a whole number, got '010'"),
        (["--name", "2024"], """name: expected text, got 2024; in quotes it is text: '"2024"'"""),
        (["--name", "0"], """name: expected text, got 0; in quotes it is text: '"0"'"""),
        (["--name", "null"], """name: expected text, got None; in quotes it is text: '"null"'"""),
        (["--name", "no"], """name: expected text, got False; in quotes it is text: '"no"'"""),
        (["--generator", "null"], "--generator null: sample: it needs the stage 'generator', which is null"),
    ],
)
def test_a_mistake_in_a_recipe(tmp_path, capsys, arguments, message):
    path = tiny.write(tmp_path, encoder=None, tokenizer__train_encoder=True)
    code, error = complain(capsys, "run", path, *arguments)
    assert code == 2
    assert message in error
    assert not list(tmp_path.glob("run/stages/*"))
    assert error.count("\n") <= 2
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("evaluate.metrics", ["frechett"], "--evaluate.metrics: no metric is called 'frechett'"),
        ("sample.method", "eulr", "--sample.method: no sampler is called 'eulr'"),
        ("sample.guidance", [1, "x"], "--sample.guidance[1]: expected a number, got 'x'"),
        ("matching.objective", {"type": "dmdd"}, "--matching.objective.type: no Matching is called 'dmdd'"),
        ("variants.kl.tokenizer.step", 3, "--variants.kl.tokenizer.step: no such field; did you mean 'steps'?"),
        ("seeds.kll", [1], "--seeds.kll: no variant is called 'kll'; did you mean 'kl'?"),
        ("seed", 1, "--seed: this recipe's `seeds` give it"),
    ],
)
def test_what_an_option_said_is_not_the_file_s_mistake(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load(tiny.write(tmp_path, seeds=[0]), {option: value, "tokenizer.steps": 3})


def test_what_the_file_said_is_not_an_option_s_mistake(tmp_path):
    path = tiny.write(tmp_path, evaluate__metrics=["frechett"], tokenizer__step=3)
    with pytest.raises(ValueError, match=r"^\S+recipe.yaml: tokenizer.step: no such field"):
        load(path, {"tokenizer.steps": 3, "tokenizer": {"steps": 3}})
    path = tiny.write(tmp_path, evaluate__metrics=["frechett"])
    with pytest.raises(ValueError, match=r"^\S+recipe.yaml: evaluate: no metric is called 'frechett'"):
        load(path, {"evaluate.count": 8})


def test_a_recipe_that_is_not_yaml(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("a: [1,")
    code, error = complain(capsys, "run", tmp_path / "r.yaml")
    assert code == 2
    assert "not valid YAML" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: {steps: 3, noise: 0.1, steps: 4}", "'steps' is given twice"),
        ("tokenizer.steps: 3\ntokenizer: {steps: 4}", "'tokenizer.steps' is given twice"),
        (
            "losses: {adversarial: {weight: 1}}\nlosses.adversarial: {start: 0.5, weight: 0}",
            "'losses.adversarial.weight'",
        ),
        ("extends: smoke\ntokenizer: {steps: 3}\ntokenizer: {noise: 0.1}", "'tokenizer' is given twice"),
        (
            "variants: {a: &a {tokenizer.steps: 3}, b: {<<: *a, tokenizer: {steps: 4}}}",
            "'tokenizer.steps' is inherited by << and would hide this one; write tokenizer.steps: here too",
        ),
        ("extend: smoke", "extend: no such field; did you mean 'extends'?"),
        ("extends: smoke\nvariant: {a: {}}", "variant: no such field; did you mean 'variants'?"),
    ],
)
def test_a_mistake_in_a_recipes_keys(tmp_path, capsys, text, message):
    (tmp_path / "r.yaml").write_text(text)
    code, error = complain(capsys, "run", tmp_path / "r.yaml")
    assert code == 2
    assert message in error
