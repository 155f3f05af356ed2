"""Strict conversion between plain mappings (YAML, the command line) and config dataclasses.

One reader serves recipe, variants and command line: mistakes are ValueErrors that name place and nearest right name.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import reprlib
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dmvae.ranges import UNSAID, Range
from dmvae.registry import Registered, family_of, find, names
from dmvae.spelling import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C")
Values = dict[str, Any]
"""Fields by name, as YAML and JSON hold them."""
_MISSING = dataclasses.MISSING
hints_of: Callable[[type], Values] = functools.cache(functools.partial(get_type_hints, include_extras=True))
"""The types of a class's fields. Kept, for Python compiles them from their texts anew whenever it is asked."""


class FieldError(ValueError):
    """A mistake about the field at a dotted `place`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place, self.message = place, message


class NoSuchField(FieldError):
    """A key that is no field of its section."""


class OutOfRange(ValueError):
    """A number of the right type, and not in the range of its field."""


class FieldMissing(FieldError):
    """A field without a default that was not given."""


def read(cls: type[C], values: object, where: str = "") -> C:
    """Build the dataclass `cls` from a mapping; `where` is the dotted place used in errors.

    A classmethod `upgrade(values)` gets the mapping first: for older spellings, and defaults that belong together."""
    if values is None and where:
        off = f", or set {where}.weight to 0" if "weight" in hints_of(cls) else ""
        raise ValueError(f"{where}: this section cannot be null; leave it out for its defaults{off}")
    if not isinstance(values, dict):
        member = isinstance(values, str) and issubclass(cls, Registered) and values in names(family_of(cls))
        how = f"; write {{type: {values}}}" if member else ""
        raise ValueError(f"{where or 'recipe'}: expected a mapping of fields, got {values!r}{how}")
    values = dict(values)
    if issubclass(cls, Registered):
        cls = _member(cls, values, where)
    upgrade: Callable[[Values], Values] | None = getattr(cls, "upgrade", None)
    if upgrade is not None:
        try:
            values = upgrade(values)
        except ValueError as error:
            raise ValueError(f"{dotted(where, error)}") from error
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            known = [name for name in (*fields, *getattr(cls, "beside", ())) if name != key]
            raise NoSuchField(dotted(where, key), f"no such field{nearest(str(key), known)}")
    try:
        hints = hints_of(cls)
    except NameError as error:
        raise ValueError(f"{where or cls.__name__}: the type of a field of {cls.__name__}: {error}") from error
    kwargs = {key: typed(hints[key], _laid(fields[key], value), dotted(where, key)) for key, value in values.items()}
    for name, field in fields.items():
        if name not in kwargs and field.default is _MISSING and field.default_factory is _MISSING:
            raise FieldMissing(dotted(where, name), "this field is required")
    try:
        return cls(**kwargs)
    except ValueError as error:  # a check in __post_init__ does not know where it stands
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def checked(config: DataclassInstance) -> None:
    """Validate a frozen dataclass made in Python as `read` validates a recipe's section; call it in `__post_init__`.
    Lists become tuples. Raises ValueError that names the first field of a wrong type or out of its range."""
    hints = hints_of(type(config))
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, typed(hints[field.name], getattr(config, field.name), field.name))


def plain(config: object) -> Values:
    """The inverse of `read`: nested dicts, lists and scalars that YAML and JSON can hold."""
    return _fields(config, lambda member, values: values)


def plain_value(value: object) -> object:
    """A field's value in the same form."""
    return _walk(value, lambda member, values: values)


def written(value: object) -> str:
    """A field's value in that form, as a recipe has it: null, true, 0.1, [a list]; text as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def identity(config: object, more: Callable[[Registered], Values] = lambda member: {}) -> Values:
    """What a fingerprint is made of: `plain`, and of each registered member also the keys that `more(member)` gives.

    A new spelling of the same, or a new field at its default, must not redo finished stages: so fields declared with
    `added` are left out at their default, and so is the `type` of a family's `unnamed` member; a dataclass's method
    `identity(values)` says how its own count."""

    def head(member: DataclassInstance, values: Values) -> Values:
        for field in dataclasses.fields(member):
            if field.metadata.get("added") and getattr(member, field.name) == default_of(field):
                values.pop(field.name, None)
        if isinstance(member, Registered) and member.type == member.unnamed:
            del values["type"]
        if hasattr(member, "identity"):
            derived = "type" in values and "identity" not in vars(type(member))  # a derived class counts as another
            values = member.identity(values) | ({"type": values["type"]} if derived else {})
        return (more(member) if isinstance(member, Registered) else {}) | values

    return _fields(config, head)


def added(default: C) -> C:
    """The default of a field that came after version 0.1: at this value it does not count in fingerprints."""
    return dataclasses.field(default=default, metadata={"added": True})


def _fields(config: object, finish: Callable[[DataclassInstance, Values], Values]) -> Values:
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    values = {"type": config.type} if isinstance(config, Registered) else {}
    fields = (f.name for f in dataclasses.fields(config) if f.init)
    return finish(config, values | {name: _walk(getattr(config, name), finish) for name in fields})


def _walk(config: object, finish: Callable[[DataclassInstance, Values], Values]) -> object:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return _fields(config, finish)
    if isinstance(config, dict):
        return {str(key): _walk(value, finish) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_walk(item, finish) for item in config]
    return str(config) if isinstance(config, Path) else config


def default_of(field: dataclasses.Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not _MISSING else field.default


def merge(base: Values, over: Values) -> Values:
    """`base` with `over` laid on top, key by key; dotted keys reach into sections. A section that changes its `type` is
    replaced, not merged: the old type's fields mean nothing there. Raises ValueError for a key "a." or "a..b"."""
    over = _undot(over)
    if "type" in over and over["type"] != base.get("type"):
        base = {}
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def replaced(value: object, name: str, by: str, done: dict[int, object]) -> object:
    """`value`, as YAML has it, with `by` in place of `name` in each text; `done` has what aliases repeat, by its id."""
    if isinstance(value, str):
        return value.replace(name, by)
    if isinstance(value, dict | list | tuple) and id(value) not in done:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        found = {key: replaced(item, name, by, done) for key, item in pairs}
        done[id(value)] = found if isinstance(value, dict) else [*found.values()]
    return done.get(id(value), value)


def _merged(base: object, over: object) -> object:
    return merge(base if isinstance(base, dict) else {}, over) if isinstance(over, dict) else over


def _laid(field: dataclasses.Field[object], value: object) -> object:
    """A section without its `type`, laid over the member of a family that is the field's default."""
    if isinstance(value, dict) and "type" not in value and field.default_factory is not _MISSING:
        default = field.default_factory()
        if isinstance(default, Registered):
            return merge(plain(default), value)
    return value


def named(cls: type, values: Values) -> Values:
    """Values of a `cls` in which every section of a family says its `type`, with the fields of the field's default. So
    a layer that names the same type is laid over such a section, and does not replace it. What `read` refuses stays
    as it is."""
    found, hints = dict(values), hints_of(cls)
    for field in dataclasses.fields(cls):
        value, hint = _laid(field, values.get(field.name)), hints[field.name]
        kind = section_of(hint)
        if kind is None or not isinstance(value, dict):
            continue
        if issubclass(kind, Registered) and "type" not in vars(kind):
            value = ({"type": kind.unnamed} if kind.unnamed else {}) | value
            if value.get("type") not in names(family_of(kind)):
                continue
            kind = find(family_of(kind), value["type"])
        found[field.name] = named(kind, value)
    return found


def section_of(hint: object) -> type | None:
    """The dataclass that a field of this type holds, as it is or optional; None for a field that is no section."""
    kinds = (kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and dataclasses.is_dataclass(kind))
    return next(kinds, None)


def _member(cls: type, values: Values, where: str) -> type:
    name = values.pop("type", None if "type" in vars(cls) else getattr(cls, "unnamed", None))
    if name is None and "type" in vars(cls):
        return cls
    try:
        found: type | None = None if name is None else find(family_of(cls), str(name))
    except ValueError as error:
        raise ValueError(f"{dotted(where, 'type')}: {error}") from error
    if found is None or not issubclass(found, cls):
        fitting = [known for known in names(family_of(cls)) if issubclass(find(family_of(cls), known), cls)]
        told = "this field is required" if found is None else f"{name!r} cannot stand here"
        raise ValueError(f"{dotted(where, 'type')}: {told}; known: {', '.join(fitting)}")
    return found


def typed(hint: object, value: object, where: str, given: Range | None = None) -> object:
    """A value as a field of that type, and of a range, has it. Raises ValueError for what is none."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return typed(args[0], value, where, next((a for a in args if isinstance(a, Range)), given))
    if origin in (Union, types.UnionType):
        return _union(args, value, where)
    if origin is Literal:
        if any(value == known and type(value) is type(known) for known in args):  # True and 1.0 are equal to 1
            return value
        raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
    if dataclasses.is_dataclass(hint) or (isinstance(hint, type) and issubclass(hint, Registered)):
        return value if isinstance(value, hint) else read(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _tuple(args, value, where)
    if origin in (list, Sequence):
        return list(_tuple((args[0], ...), value, where))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        key, item = args or (object, object)
        return {typed(key, k, where): typed(item, v, dotted(where, k)) for k, v in value.items()}
    number = _scalar(hint, value, where)
    if (allowed := given or UNSAID.get(hint)) and number not in allowed:  # type: ignore[call-overload, operator]
        known = f"{_name(hint)}, {allowed}" if given else "a finite number" if hint is float else "64 bits at most"
        shown = value if isinstance(value, str) else reprlib.repr(number)  # 1e99 as it was written
        raise OutOfRange(f"{where}: expected {known}, got {shown}")
    return number


def _union(args: tuple[object, ...], value: object, where: str) -> object:
    if type(None) in args and value is None:
        return None
    if type(None) in args and value == "None":
        raise ValueError(f"{where}: 'None' is text; write null")
    choices = [a for a in args if a is not type(None)]
    errors = []
    for choice in choices:
        try:
            return typed(choice, value, where)
        except OutOfRange:
            raise
        except ValueError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else ValueError(f"{where}: {value!r} is not {' or '.join(map(_name, choices))}")


def _tuple(args: tuple[object, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        many = len(args) - 1 if args[-1] is not Ellipsis else 0
        raise ValueError(f"{where}: expected a list, got {value!r}; write [{value}{', ...' if many else ''}]")
    hints = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
    if len(hints) != len(value):
        raise ValueError(f"{where}: expected {len(hints)} values, got {len(value)}")
    return tuple(typed(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _scalar(hint: object, value: object, where: str) -> object:
    if hint is Path and isinstance(value, str) and value.strip():  # "" would be the current folder
        return Path(value).expanduser()
    if hint is str and isinstance(value, Path):  # a program's
        return str(value)
    if isinstance(value, Real) and not isinstance(value, int | float):  # numpy's, from a program
        value = int(value) if isinstance(value, Integral) else float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        with suppress(ValueError):
            return float(value)
    if hint is int and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d{1,2}", value):  # and 1e3
        value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    text = "no" if value is False else "null" if value is None else value
    how = f"""; in quotes it is text: '"{text}"'""" if hint is str else ""
    how = "; an option without a value is true" if value is True else how
    raise ValueError(f"{where}: expected {_name(hint)}, got {value!r}{how}")


def _undot(over: Values) -> Values:
    """Dotted keys as sections. Within one layer, fields before a section's `type` belong to it like those after it."""
    result: Values = {}
    for key, value in over.items():
        head, dot, rest = str(key).partition(".")
        if dot and not (head and rest):
            raise ValueError(f"{key}: a dot needs a name on both sides")
        result[head] = _joined(result.get(head), {rest: value} if rest else value)
    return result


def _joined(before: object, item: object) -> object:
    if not (isinstance(before, dict) and isinstance(item, dict)):
        return item
    if "type" in item and before.get("type", item["type"]) != item["type"]:  # a second one, which replaces the first
        return item
    return before | {key: _joined(before.get(key), value) for key, value in _undot(item).items()}


def dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _name(hint: object) -> str:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    known = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return next((name for kind, name in known.items() if kind is hint), getattr(hint, "__name__", str(hint)))
