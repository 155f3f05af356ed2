from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest

from dmvae import config as configs
from dmvae.commands.fields import describe
from dmvae.registry import Registered, register
from dmvae.report.card import _claim, _origin


class Shape(Registered):
    pass


@register("round")
@dataclass(frozen=True, kw_only=True)
class Round(Shape):
    """A disc."""

    radius: float = 1.0
    """Radius in pixels."""


@register("square")
@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: int = 2

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"side must be positive, got {self.side}")


@dataclass(frozen=True, kw_only=True)
class Section:
    shape: Shape
    steps: int
    rate: float = 0.1
    name: str | None = None
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Round = field(default_factory=Round)
    other: Shape = field(default_factory=lambda: Round(radius=2.0))
    on: bool = False
    widths: list[int] = field(default_factory=list)
    ranks: Sequence[float] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, Round] = field(default_factory=dict)
    rest: dict = field(default_factory=dict)


def read(**over):
    return configs.read(Section, {"shape": {"type": "square"}, "steps": 3} | over)


def test_what_a_mapping_holds_is_read_as_its_type():
    section = read(rates={"a": "1e-4", "b": 2}, shapes={"x": {"radius": 3}}, rest={"c": "1e-4"})
    assert section.rates == {"a": 1e-4, "b": 2.0}
    assert section.shapes == {"x": Round(radius=3.0)}
    assert section.rest == {"c": "1e-4"}
    assert configs.read(Section, configs.plain(section)) == section


def test_round_trip():
    section = read(shape={"type": "round", "radius": 3}, sizes=[4, 5, 6], name="x")
    assert section.shape == Round(radius=3.0)
    assert configs.read(Section, configs.plain(section)) == section


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"stepz": 1}, "stepz: no such field; did you mean 'steps'"),
        ({"shape": {"type": "squar"}}, "shape.type: .*did you mean 'square'"),
        ({"shape": {}}, "shape.type: this field is required; known: round, square"),
        ({"shape": {"type": "square", "radius": 1}}, "shape.radius: no such field"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'"),
        ({"steps": 1.5}, "steps: expected a whole number, got 1.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"rate": "fast"}, "rate: expected a number, got 'fast'"),
        ({"rate": 10**400}, "rate: expected a finite number, got inf"),
        ({"mode": "c"}, "mode: 'c' is not one of 'a', 'b'"),
        ({"sizes": 3}, "sizes: expected a list, got 3"),
        ({"sizes": [1, "x"]}, r"sizes\[1\]: expected a whole number"),
        ({"pair": [1]}, "pair: expected 2 values, got 1"),
        ({"pair": 0.9}, r"pair: expected a list, got 0.9; write \[0.9, ...\]"),
        ({"widths": [1, "x"]}, r"widths\[1\]: expected a whole number"),
        ({"on": "yes"}, "on: expected true or false, got 'yes'"),
        ({"inner": 4}, "inner: expected a mapping"),
        ({"rates": {"a": "fast"}}, "rates.a: expected a number, got 'fast'"),
        ({"rates": {1: 2.0}}, "rates: expected text, got 1"),
        ({"rates": [1.0]}, r"rates: expected a mapping, got \[1.0\]"),
        ({"shapes": {"x": {"radios": 3}}}, "shapes.x.radios"),
        ({"shape": {"type": "square", "side": 0}}, "shape: side must be positive, got 0"),
    ],
)
def test_a_mistake_is_named_with_its_place(over, message):
    with pytest.raises(ValueError, match=message):
        read(**over)


def test_numbers_of_numpy_are_taken_as_python_s():
    section = read(steps=np.int64(3), rate=np.float32(0.5))
    assert (section.steps, section.rate, type(section.steps), type(section.rate)) == (3, 0.5, int, float)
    with pytest.raises(ValueError, match="on: expected true or false"):
        read(on=np.float32(1))


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match="steps: this field is required"):
        configs.read(Section, {"shape": {"type": "square"}})


def test_yaml_writes_1e_4_as_text():
    assert read(rate="1e-4").rate == 1e-4
    assert [read(steps=text).steps for text in ("1e3", "2.5E+2")] == [1000, 250]


@pytest.mark.parametrize("text", ["2.55e1", "1e-3", "3", "1e99", "1e", "e3", "nan", "1e-0 "])
def test_other_text_is_no_whole_number(text):
    with pytest.raises(ValueError, match="steps: expected "):
        read(steps=text)


def test_merge_reaches_by_dots_and_replaces_a_section_of_another_type():
    base = {"shape": {"type": "square", "side": 4}, "steps": 1, "inner": {"radius": 2}}
    merged = configs.merge(base, {"shape.type": "round", "inner.radius": 5, "steps": 7})
    assert merged == {"shape": {"type": "round"}, "steps": 7, "inner": {"radius": 5}}
    assert configs.merge(base, {"shape.side": 9})["shape"] == {"type": "square", "side": 9}
    assert configs.merge(base, {"inner": None})["inner"] is None


@pytest.mark.parametrize(
    "over",
    [
        {"shape.radius": 5, "shape.type": "round"},
        {"shape.type": "round", "shape.radius": 5},
        {"shape": {"radius": 5}, "shape.type": "round"},
        {"shape.type": "round", "shape": {"radius": 5}},
    ],
)
def test_the_order_in_which_a_section_s_fields_are_given_is_nothing(over):
    base = {"shape": {"type": "square", "side": 4}}
    assert configs.merge(base, over) == {"shape": {"type": "round", "radius": 5}}
    assert configs.merge({}, {f"inner.{key}": value for key, value in over.items()}) == {
        "inner": {"shape": {"type": "round", "radius": 5}}
    }


def test_a_second_type_in_one_layer_replaces_the_first():
    over = {"shape": {"type": "square", "side": 4}, "shape.type": "round", "shape.radius": 5}
    assert configs.merge({}, over) == {"shape": {"type": "round", "radius": 5}}


@pytest.mark.parametrize("key", ["shape.", ".shape", "shape..side", "."])
def test_a_dot_without_a_name_beside_it_is_refused(key):
    for over in ({key: 9}, {"shape": {key: 9}}, {"inner": 2, "inner.shape": {key: 9}}):
        with pytest.raises(ValueError, match="a dot needs a name on both sides"):
            configs.merge({}, over)


def test_docstrings_under_fields_are_found():
    assert describe(Round) == {"radius": "Radius in pixels."}


def test_lists_and_paths_of_a_program_s_own_section():
    found = read(widths=[1, 2], ranks=(1, 2.5), name=Path("a/b"))
    assert (found.widths, found.ranks, found.name) == ([1, 2], [1.0, 2.5], "a/b")


def test_a_field_of_a_type_that_is_not_there_is_told():
    @dataclass(frozen=True)
    class Own:
        width: "Undefined"  # noqa: F821

    with pytest.raises(ValueError, match="own: the type of a field of Own: name 'Undefined' is not defined"):
        configs.read(Own, {"width": 1}, "own")


def test_a_card_claims_no_samples_that_were_not_drawn():
    recipe = SimpleNamespace(section=lambda name: None)
    assert _claim(SimpleNamespace(recipe=recipe)).startswith("The recipe below draws no samples")


@pytest.mark.parametrize(
    ("stages", "pretrained", "told"),
    [
        (["tokenizer", "latents"], False, "`dmvae` trained"),
        (["latents"], True, "was there already (`pretrained` below)"),
        (["matching", "latents"], True, "was there already (`pretrained` below) and that `dmvae` trained further"),
    ],
)
def test_a_card_claims_no_tokenizer_of_somebody_else_s(stages, pretrained, told):
    assert _origin(stages, pretrained) == told


def test_a_path_is_read_from_text_and_written_as_text():
    from dmvae.encoders.timm import TimmEncoder

    encoder = configs.read(TimmEncoder, {"model": "resnet18", "checkpoint": "~/weights.pt"})
    assert encoder.checkpoint == Path("~/weights.pt").expanduser()
    assert configs.plain(encoder)["checkpoint"] == str(encoder.checkpoint)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_not_the_working_directory(empty):
    from dmvae.encoders.timm import TimmEncoder
    from dmvae.stages.sample import SampleConfig

    with pytest.raises(ValueError, match=rf"^encoder\.checkpoint: expected a path, got '{empty}'$"):
        configs.read(TimmEncoder, {"model": "resnet18", "checkpoint": empty}, "encoder")
    with pytest.raises(ValueError, match=rf"^sample\.guide: '{empty}' is not a whole number or a path$"):
        configs.read(SampleConfig, {"guide": empty}, "sample")
    assert configs.read(SampleConfig, {"guide": "."}, "sample").guide == Path()


def test_a_section_without_its_type_is_laid_over_the_default():
    assert read(other={"radius": 3}).other == Round(radius=3.0)
    assert read(other={}).other == Round(radius=2.0)
    assert read(other={"type": "round"}).other == Round(radius=1.0)
    assert read(other={"type": "square"}).other == Square()


def test_true_and_one_are_not_the_same_choice():
    assert configs.typed(Literal[1, 2], 1, "level") == 1
    with pytest.raises(ValueError, match="level: True is not one of 1, 2"):
        configs.typed(Literal[1, 2], True, "level")
