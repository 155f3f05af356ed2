"""Options as they are written on the command line: values are YAML, as in a recipe."""

import pytest
import yaml

from dmvae.commands.parser import parse_overrides
from dmvae.runtime.yaml_text import read_yaml


def test_overrides_are_yaml():
    assert parse_overrides(["--a.b", "1e-3", "--c=[1, 2]", "--d", "--e", "null", "--f", "-1"]) == {
        "a.b": "1e-3",
        "c": [1, 2],
        "d": True,
        "e": None,
        "f": -1,
    }


def test_a_number_in_another_base_is_text():
    asked = parse_overrides(
        ["--a", "010", "--b", "12:30", "--c", "0x1F", "--d", "1_000", "--e", "-5", "--f", "2024-01-01"]
    )
    assert asked == {"a": "010", "b": "12:30", "c": 31, "d": 1000, "e": -5, "f": "2024-01-01"}
    for text in (*asked.values(), "08", "0b11", 0, -0.5, True):  # a resolved recipe is written by PyYAML's own words
        assert read_yaml(yaml.safe_dump({"x": text})) == {"x": text}


MERGED = """
few: &few {steps: 4, batch: 1}
many: &many {steps: 64, rate: 2}
mine: &mine {<<: *many, rate: 3}
"""


@pytest.mark.parametrize(
    ("inherits", "value"),
    [
        ("<<: *few", {"steps": 4, "batch": 1}),
        ("<<: [*few, *many]", {"steps": 4, "batch": 1, "rate": 2}),
        ("<<: [*many, *few]", {"steps": 64, "batch": 1, "rate": 2}),
        ("<<: [*few, *mine]", {"steps": 4, "batch": 1, "rate": 3}),
        ("<<: [*mine, *many, *few]", {"steps": 64, "batch": 1, "rate": 3}),
        ("<<: [*many, *few], steps: 5", {"steps": 5, "batch": 1, "rate": 2}),
    ],
)
def test_the_first_of_several_mappings_gives_a_key(inherits, value):
    assert read_yaml(f"{MERGED}last: {{{inherits}}}")["last"] == value  # PyYAML 6.0.4 lets the last give it


@pytest.mark.parametrize("words", [["--tokenizer.steps="], ["--tokenizer.steps", ""], ["--tokenizer.steps", " "]])
def test_an_empty_value_is_refused_and_not_taken_for_null(words):
    with pytest.raises(ValueError, match=r"--tokenizer\.steps: its value is empty; write null for none"):
        parse_overrides(words)
