"""Every number of a recipe has a range; whatever is put into a field is refused in a line, or can be built."""

import math
import random
import warnings
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.blank import latent_shape
from dmvae.commands.fields import describe, sections
from dmvae.flow.samplers import time_grid
from dmvae.ranges import UNSAID, Decay, Range, Scale, Width, range_of
from dmvae.recipe import recipe_class, resolve
from dmvae.registry import Registered, family_of, find, names
from dmvae.training.optim import adamw, learning_rate_factor
from dmvae.training.stage import TrainingStage


@dataclass(frozen=True, kw_only=True)
class Numbers:
    width: Width = 8
    """Channels."""
    rate: Annotated[float, Range(0, 1, "(]")] | None = None
    decays: tuple[Decay, Decay] = (0.9, 0.95)
    either: tuple[Annotated[int, Range(0, 9)] | str, ...] = ()
    free: float = 0.0
    whole: int = 0
    choice: Literal[1, 3] = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, "width: expected a whole number, 1 to 65536, got 0"),
        ({"width": 1e308}, "width: expected a whole number, 1 to 65536, got 1000000"),
        ({"width": "1e99"}, "width: expected a whole number, 1 to 65536, got 1e99"),
        ({"width": 10**60}, "width: expected a whole number, 1 to 65536, got 100000000000000000...0000000000000000000"),
        ({"rate": 0}, "rate: expected a number, above 0, to 1, got 0.0"),
        ({"rate": math.nan}, "rate: expected a number, above 0, to 1, got nan"),
        ({"decays": [0.9, 1]}, "decays[1]: expected a number, 0 to below 1, got 1.0"),
        ({"either": ["x", -1]}, "either[1]: expected a whole number, 0 to 9, got -1"),
        ({"free": math.inf}, "free: expected a finite number, got inf"),
        ({"free": 10**400}, "free: expected a finite number, got inf"),
        ({"free": "nan"}, "free: expected a finite number, got nan"),
        ({"whole": 2**63}, "whole: expected 64 bits at most, got 9223372036854775808"),
        ({"choice": True}, "choice: True is not one of 1, 3"),
        ({"choice": 3.0}, "choice: 3.0 is not one of 1, 3"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_place_and_its_range(values, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        configs.read(Numbers, values, "s")
    assert str(caught.value).startswith(f"s.{message}")


def test_ends_of_ranges_are_in_them_or_not_as_they_say():
    good = {"width": 65536, "rate": 1, "decays": [0, 0.999], "either": ["x", 9], "free": -1e300, "choice": 3}
    assert configs.plain(configs.read(Numbers, good)) == good | {"whole": 0}
    assert 0 not in range_of(Scale)
    assert math.nan not in UNSAID[float]


def test_ranges_stand_beside_the_docstrings_and_in_no_fingerprint(tmp_path):
    docs = describe(Numbers)
    assert docs["width"] == "Channels. [1 to 65536]"
    assert docs["rate"] == "[above 0, to 1]"
    assert "free" not in docs
    assert configs.identity(Numbers()) == configs.plain(Numbers())
    recipe = resolve(tiny.RECIPE)["matched"]
    shown = {field.place: field.meaning for section in sections({"x": recipe}) for field in section.fields}
    assert shown["sample.time_shift"] == "Shift of the time grid towards noise; 1 is uniform. [0.001 to 1000]"
    assert shown["tokenizer.betas"].endswith("[0 to below 1]")


def parts(hint):
    """The plain types in a type, and whether each carries a range."""
    if get_origin(hint) is Annotated:
        return [(get_args(hint)[0], True)]
    if get_origin(hint) is Literal:
        return []
    return [part for inner in get_args(hint) for part in parts(inner)] if get_args(hint) else [(hint, False)]


def classes(cls, seen):
    """A config class and all that its fields can hold, every member of each family."""
    members = [cls]
    if issubclass(cls, Registered):
        members = [find(family_of(cls), name) for name in names(family_of(cls))]
    for member in members:
        if member in seen or not is_dataclass(member):
            continue
        seen.add(member)
        hints = get_type_hints(member, include_extras=True)
        for field in fields(member):
            for part, _ in parts(hints[field.name]):
                if isinstance(part, type) and (is_dataclass(part) or issubclass(part, Registered)):
                    classes(part, seen)
    return seen


def test_every_number_of_our_configs_has_a_range_and_a_default_in_it():
    found = classes(recipe_class(), set())
    assert len(found) > 50
    bare = [
        f"{cls.__module__}.{cls.__name__}.{field.name}"
        for cls in found
        if cls.__module__.startswith("dmvae.") or cls.__name__ == "Recipe"
        for field in fields(cls)
        for part, ranged in parts(get_type_hints(cls, include_extras=True)[field.name])
        if part in (int, float) and not ranged
    ]
    assert bare == []
    outside = [
        f"{cls.__name__}.{field.name}"
        for cls in found
        for field in fields(cls)
        if (given := range_of(get_type_hints(cls, include_extras=True)[field.name]))
        for value in (field.default if isinstance(field.default, tuple) else [field.default])
        if isinstance(value, int | float) and value not in given
    ]
    assert outside == []


ODD = (None, True, -1, 0, 1, 0.5, 3.7, -1e-9, 1e39, 1e308, 2**63, 10**12, 10**400, math.nan, math.inf, "1e400", "", "x")
ODD = (*ODD, [], [None], [0], [1, 1], [math.nan], [[]], {}, {"a": 1}, {"type": "x"})


def places(values, before=()):
    for key, value in values.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from places(value, (*before, key))


def built(recipe) -> None:
    """What a run does with a recipe before its first stage, which builds the networks of all, and their optimizers and
    schedules. Raises ValueError where it is refused."""
    latent_shape(recipe)
    for problem in (*checks.lacking(recipe, recipe.stages()), *checks.problems(recipe, recipe.stages())):
        raise ValueError(problem)
    for stage in recipe.stages():
        section = recipe.section(stage)
        if issubclass(stage, TrainingStage):
            adamw([torch.nn.Parameter(torch.ones(1))], section, section.learning_rate)
            assert 0 <= learning_rate_factor(section, section.steps // 2) <= 1
    if recipe.section("sample") is not None:
        grid = time_grid(min(recipe.section("sample").steps, 100), recipe.section("sample").time_shift)
        assert grid.isfinite().all()


BASE: dict[str, Any] = configs.plain(
    resolve(
        configs.merge(
            {key: value for key, value in tiny.RECIPE.items() if key != "variants"},
            {
                "autoencoder.variational": True,
                "losses.perceptual": {"type": "effnet-lite0"},
                "tokenizer.alignment": {},
                "reference.distribution": {"type": "mixture"},
                "matching.objective.time_range_end": [0.1, 0.5],
                "latents": {},
                "losses.adversarial.learning_rate": 1e-4,
                "data.limit": 40,
            },
        )
    )["main"]
)


def changed(values, place, value):
    head, *rest = place
    return values | {head: changed(values[head], rest, value) if rest else value}


@pytest.mark.slow
def test_whatever_stands_in_a_field_is_refused_in_a_line_or_can_be_built():
    """Every field of a recipe in turn, with a few of the odd values, of a fixed seed; `make torture` tries them all."""
    rng, kept, silent = random.Random(0), 0, []
    for place in places(BASE):
        for odd in rng.sample(ODD, 2):
            said = f"{'.'.join(place)}: {str(odd)[:40]}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    built(resolve(changed(BASE, place, odd), path=Path("r"))["main"])
                kept += 1
            except ValueError as error:
                silent += [] if str(error) else [said]
            except Exception as error:
                raise AssertionError(f"{said}: {type(error).__name__}: {error}") from error
    assert silent == []
    assert kept > 5
