"""Folders and files of somebody else: no command but those that run a recipe runs code that they name, and none writes
outside the folder that it was given."""

import json
import random

import pytest
import yaml

import tiny
from complaints import complain
from dmvae.commands import check as checking
from dmvae.commands import measurements
from dmvae.commands.check import check, side_by_side

CODE = {
    "plugins": {"plugins": ["evil.py"]},
    "extends": {"extends": "evil.yaml"},
    "function": {"reference": {"distribution": {"type": "function", "function": "evil.py:sample"}}},
    "function in dotted keys": {"reference.distribution": {"type": "function", "function": "evil.py:sample"}},
    "function by dots": {
        "reference.distribution.type": "function",
        "reference": {"distribution.function": "evil.py:sample"},
    },
    "plugins and a dot": {"plugins.": ["evil.py"]},
    "plugins of a variant": {"variants.main.plugins": ["evil.py"]},
    "function in a list": {"reference": {"distribution": {"type": "mixture", "of": [{"type": "function"}]}}},
}


def in_a_line(capsys, *arguments):
    code, error = complain(capsys, *arguments)
    assert "Traceback" not in error
    assert error.count("\n") == 1
    return code, error


@pytest.fixture
def run_dir(tmp_path):
    """A folder as a run leaves it, whose recipe each test makes its own."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(tiny.RECIPE | {"plugins": [str(tmp_path / "evil.py")]}))
    (tmp_path / "run/main").mkdir(parents=True)
    yield tmp_path / "run"
    assert not (tmp_path / "ran").exists()


def write_recipe(run_dir, over):
    recipe = {key: value for key, value in tiny.RECIPE.items() if key != "variants"}
    if "extends" in over:
        over = {"extends": str(run_dir.parent / "evil.yaml")}
    for key in {"plugins", "plugins."} & over.keys():
        over = {key: [str(run_dir.parent / "evil.py")]}
    (run_dir / "main/recipe.yaml").write_text(yaml.safe_dump(recipe | over))


@pytest.mark.parametrize("code", CODE)
def test_a_report_runs_no_code_of_the_folder(run_dir, capsys, code):
    write_recipe(run_dir, CODE[code])
    status, error = in_a_line(capsys, "report", run_dir)
    assert status == 2
    assert "code that would be run" in error
    assert "--trust" in error


@pytest.mark.parametrize("code", CODE)
def test_a_check_runs_no_code_of_the_run_that_it_names(run_dir, capsys, code):
    write_recipe(run_dir, CODE[code])
    call = {"kind": "evaluate", "run_dir": str(run_dir), "variant": "main"}
    (run_dir / "scores.json").write_text(json.dumps({"metrics": {}, "manifest": {"call": call}}))
    status, error = in_a_line(capsys, "measure", "--check", run_dir / "scores.json")
    assert status == 2
    assert "code that would be run" in error


def test_a_merged_folder_names_no_run_whose_code_is_run(run_dir, tmp_path, capsys):
    write_recipe(run_dir, {})
    inner = run_dir / "stages/x/inner"
    (inner / "main").mkdir(parents=True)
    recipe = {key: value for key, value in tiny.RECIPE.items() if key != "variants"}
    (inner / "main/recipe.yaml").write_text(yaml.safe_dump(recipe | {"plugins": [str(run_dir.parent / "evil.py")]}))
    (run_dir / "merged.json").write_text(json.dumps([str(inner)]))
    status, error = in_a_line(capsys, "report", run_dir, "--out", tmp_path / "table")
    assert status == 2
    assert "inner/main/recipe.yaml names plugins" in error


def test_trust_runs_it(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "run/main").mkdir(parents=True)
    write_recipe(tmp_path / "run", {})
    recipe = tmp_path / "run/main/recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"plugins": [str(tmp_path / "mine.py")]}))
    _, error = in_a_line(capsys, "report", tmp_path / "run", "--trust")
    assert "no links to stages" in error
    assert (tmp_path / "ran").exists()


def scores(folder, **call):
    call = {"kind": "folder", "paths": ["a", "b"], "options": {}} | call
    path = folder / "scores.json"
    path.write_text(json.dumps({"metrics": {"fd": 1.0}, "manifest": {"call": call}}))
    return path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"options": {"save_reference": "out.safetensors"}}, "a check only reads, and takes no 'save_reference'"),
        ({"options": {"fresh": False}}, "takes no 'fresh'"),
        ({"options": {"folder": "x"}}, "takes no 'folder'"),
        ({"options": {"batch_size": "many"}}, "batch_size: 'many' is no value"),
        ({"options": {"batch_size": True}}, "batch_size: True is no value"),
        ({"options": {"features": [3]}}, "features: [3] is no value"),
        ({"options": {"train": {"a": 1}}}, "is no value"),
        ({"options": [1]}, "manifest.call.options: expected a mapping, got [1]"),
        (
            {"kind": ["folder"]},
            "manifest.call.kind: expected one of folder, samples, tokenizer, latents, got ['folder']",
        ),
        ({"kind": "evaluate"}, "expected run_dir and variant"),
        ({"paths": ["a"]}, "expected two paths"),
        ({"paths": [1, 2]}, "expected two paths"),
    ],
)
def test_a_check_takes_options_that_read_and_no_others(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    path = scores(tmp_path, **call)
    with pytest.raises(ValueError, match=r"scores\.json") as caught:
        check(path)
    assert message in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_every_option_that_is_written_down_can_be_asked_for_again():
    places = {"a", "b", "pipeline", "reference", "tokenizer", "images", "latents"}
    takes = {name for kind in measurements.KINDS for name in measurements.options_of(kind)}
    assert takes - places - {"save_reference", "fresh", "picture"} == set(checking.READING)


def mutations(value, rng):
    """The value with one part of it replaced by something else."""
    odd = [None, -1, 1e308, float("nan"), "", "x" * 9, [], {}, [[]], True, {"a": {"b": [1]}}]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        return {**value, key: mutations(value[key], rng)}
    return rng.choice(odd)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the scores")
def test_mutated_files_of_scores_end_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = json.loads(scores(tmp_path, options={"features": ["effnet-lite9"], "batch_size": 8}).read_text())
    good["intervals"] = {"fd": [0.5, 1.5]}
    good["manifest"] |= {"reference": {"path": "x"}, "measured": {"size": 3}, "features": {"f": {"weights": "x"}}}
    rng = random.Random(0)
    path = tmp_path / "scores.json"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(good))
    texts = [json.dumps(mutations(good, rng)) for _ in range(200)]
    for text in [*texts, "[" * 5000, "", "\x00", '{"metrics": {}, "manifest": ' + '{"a":' * 3000 + "1" + "}" * 3001]:
        path.write_text(text)
        for read in (lambda: check(path), lambda: side_by_side([other, path])):
            try:
                read()
            except ValueError as error:
                assert str(error)  # noqa: PT017  # it may also pass


@pytest.mark.slow
def test_a_recipe_nested_deeper_than_python_goes(tmp_path, capsys):
    deep = "[" * 500 + "]" * 500  # PyYAML has two calls for each, and takes a second for thrice as many
    (tmp_path / "r.yaml").write_text("a: " + deep)
    assert "nested too deep" in in_a_line(capsys, "run", tmp_path / "r.yaml")[1]
    error = in_a_line(capsys, "run", tiny.write(tmp_path), "--name", deep)[1]
    assert "is not a YAML value" in error
    (tmp_path / "run/main").mkdir(parents=True)
    (tmp_path / "run/main/recipe.yaml").write_text("a: " + deep)
    assert "nested too deep" in in_a_line(capsys, "report", tmp_path / "run")[1]
