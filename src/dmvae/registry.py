"""Families of registered config dataclasses: how one new file adds a data set, an encoder, a
reference, a matching objective or a feature extractor without an edit elsewhere.

A family is a direct subclass of `Registered`; its members are the classes below it that carry
`@register("name")`. Members live in the family's own folder (every file there is imported on the
first look-up), or in a plugin that a recipe names: a file, a folder of files, or a module of an installed package.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import ClassVar, TypeVar
from urllib.parse import quote, unquote

from dmvae.spelling import close, nearest

T = TypeVar("T", bound="type[Registered]")
F = TypeVar("F")
E = TypeVar("E", bound=BaseException)

_members: dict[type, dict[str, type]] = {}
_contents: dict[str, bytes] = {}
"""Module -> content of its file as it was imported."""
_plugins: set[str] = set()
"""Modules that a recipe names as plugins: each should register something."""
STDLIB = sysconfig.get_path("stdlib")  # Python's own modules
PLUGIN = "dmvae_plugin_"
"""Prefix of the names of modules that are loaded from a plugin's file."""


class NoMember(ValueError):
    """A name that nothing is registered under."""


def cause_of(error: BaseException | None, *kinds: type[E]) -> E | None:
    """The first of an error's causes, itself included, of these classes; None without."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


class Registered:
    """Base of every family. `type` is the name under which a recipe selects the class."""

    type: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()
    """Attributes that a member must define; "a|b" means at least one of the two."""
    unnamed: ClassVar[str | None] = None
    """The member that a section without a `type` means, as it was the only one once; None: a section must give its
    `type`."""

    def fingerprint(self) -> str:
        """A hash of the files that the config names, "" without any. Stages that use the member run again when it
        changes. Files in fields of type Path count anyway, except in fields of the class that defines this method."""
        return ""


def family_of(cls: type) -> type:
    """The family that `cls` belongs to: its ancestor directly below `Registered`."""
    for base in cls.__mro__:
        if Registered in base.__bases__:
            return base
    raise TypeError(f"{cls.__qualname__} does not derive from a registered family")


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a config dataclass selectable as `type: name` in its family."""

    def add(cls: T) -> T:
        family = family_of(cls)
        if not is_ours(cls):
            names(family)  # register ours first, so that a plugin which takes one of their names is an error
        _require_complete(cls, family, name)
        members = _members.setdefault(family, {})
        there = members.get(name)
        if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"{_file_of(cls.__module__)}: class {cls.__qualname__}: the name {name!r} is taken by class "
                f"{there.__qualname__} of {_file_of(there.__module__)}"
            )
        cls.type = name
        members[name] = cls
        return cls

    return add


def _require_complete(cls: type, family: type, name: str) -> None:
    """Raise ValueError, naming file and class, for a member that lacks what its family requires."""

    def lacks(attribute: str) -> bool:
        return getattr(cls, attribute, None) is getattr(family, attribute, None)

    where = f"{_file_of(cls.__module__)}: class {cls.__name__}, registered as {name!r} ({family.__name__})"
    for alternatives in family.required:  # type: ignore[attr-defined]
        if all(lacks(attribute) for attribute in alternatives.split("|")):
            raise ValueError(f"{where}: it lacks {' or '.join(alternatives.split('|'))}")
    if (
        vars(cls).keys() & {"__annotations__", "__annotate_func__"}  # the latter from Python 3.14 on
        and dataclasses.is_dataclass(family)
        and "__dataclass_fields__" not in vars(cls)
    ):
        raise ValueError(
            f"{where}: its annotations are no fields without @dataclass(frozen=True, kw_only=True) below @register"
        )
    known = [name for name in dir(family) if name[0] != "_" and not callable(getattr(family, name))]
    own = vars(cls).keys() - vars(cls).get("__dataclass_fields__", {}).keys() - set(dir(family))
    for attribute in sorted(own):
        meant = difflib.get_close_matches(attribute, known, n=1, cutoff=0.85)
        if meant and not is_ours(cls):
            raise ValueError(f"{where}: nothing reads its {attribute!r}; did you mean {meant[0]!r}?")


def _file_of(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or module


def require_members(
    config: Registered, built: object, members: Iterable[str], place: str = "", method: str = "build"
) -> None:
    """Raise ValueError where what a config's method returned lacks one of these attributes. place: begins the text."""
    lacks = [name for name in members if not hasattr(built, name)]
    if lacks:
        what = "None" if built is None else f"{type(built).__name__}, which lacks {', '.join(lacks)}"
        raise ValueError(f"{place}{config.type!r}: {method} returned {what}; give an object with {', '.join(members)}")


def place_of(error: BaseException) -> str:
    """Where in a plugin an error came up, as " (FILE, line N)", for its text may be Python's own and name no place; ""
    where it came up elsewhere."""
    files = {_file_of(module) for module in _contents}
    walked = traceback.walk_tb(error.__traceback__)
    found = [(frame.f_code.co_filename, line) for frame, line in walked if frame.f_code.co_filename in files]
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""


def names(family: type) -> list[str]:
    """Every registered name of the family, sorted."""
    _import_members(family.__module__)
    return sorted(_members.get(family, {}))


@functools.cache  # a recipe of many variants asks thousands of times
def _import_members(package: str) -> None:
    """Import every file of a family's package, which registers what is in it."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{module.__name__}.{info.name}")


def find(family: type[F], name: str) -> type[F]:
    """The class registered as `name`; ValueError with the nearest names when there is none."""
    if name not in names(family):
        raise NoMember(absent(family, name, family.__name__))
    return _members[family][name]


def absent(family: type, name: str, kind: str) -> str:
    """What to say of a name that no member of a family, a `kind`, has."""
    known, own = names(family), "one of your own is found where `plugins` names its file or module"
    told = "" if close(name, known) else f"; {_without_members() or own}"
    return f"no {kind} is called {name!r}{nearest(name, known)}{told}"


def _without_members() -> str:
    """Which plugins have registered nothing, "" where all have."""
    used = {cls.__module__ for members in _members.values() for cls in members.values()}
    asked = [module for module in _contents if module in _plugins]
    found = [_file_of(plugin) for plugin in asked if not any(_inside(module, plugin) for module in used)]
    return f"{', '.join(found)} registers nothing: @register(NAME) belongs above a class" if found else ""


def is_ours(cls: type) -> bool:
    """Whether a class comes with this package."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def importable(name: str) -> bool:
    """Whether that is the name of a module; true also where importing its package fails."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        return not f"{name}.".startswith(f"{error.name}.")
    except ValueError:
        return False
    except (Exception, SystemExit):
        return True


def load_plugins(plugins: Iterable[str | Path]) -> None:
    """Import each file (`*.py`), every file of each folder, or the module of that name, so that what it registers is
    found. A file that has changed since is read again.

    Raises ValueError for what is none of these, and for a file that cannot be imported, with its line.
    """
    for plugin in plugins:
        if not str(plugin).strip():  # whose path would be the current folder's
            raise ValueError("plugins: an empty name; name a file, a folder or a module")
        path = Path(plugin).absolute()  # as tracebacks and classes name it
        if not path.exists():
            if not importable(str(plugin)):
                raise ValueError(f"plugins: no such file or folder, and no module of that name: {plugin}")
            _plugins.add(_import(str(plugin)))
            continue
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        if not files or (files == [path] and path.suffix != ".py"):
            raise ValueError(f"plugins: {path} {'holds' if path.is_dir() else 'is'} no .py file")
        _plugins.update(map(_load, files))


def load_module(place: str) -> ModuleType:
    """The module of an installed package that is called so, or that a file `*.py` holds; a file that has changed since
    is read again. Raises ValueError as `load_plugins` does."""
    file = Path(place).absolute()
    if place.endswith(".py") and not file.is_file():
        raise ValueError(f"no such file: {file}")
    return sys.modules[_load(file) if place.endswith(".py") else _import(place)]


def _import(name: str) -> str:
    """Import a module; its name. It is read again, with all modules inside it, where a file of these has changed."""
    try:
        if name in _contents and any(_contents.get(module, b"") != _source(module) for module in _loaded(name)):
            _drop(name)
        importlib.import_module(name)
        _contents.update({module: _source(module) for module in _loaded(name)})
    except (Exception, SystemExit) as error:
        _drop(name)  # so that it can be loaded again once it is fixed
        spec = importlib.util.find_spec(name.partition(".")[0])  # find_spec of a module inside it would import it again
        raise ValueError(_complaint(Path(spec.origin if spec and spec.origin else name), error)) from error
    return name


def _loaded(name: str) -> list[str]:
    """The module, and those inside it, that are imported."""
    return [module for module in sys.modules if _inside(module, name)]


def _drop(name: str) -> None:
    """Forget a module and those inside it, and delete their bytecode, which may be of an earlier edit (see `_load`)."""
    forget(name)
    for module in _loaded(name):
        file = getattr(sys.modules.pop(module), "__file__", None)
        if file and file.endswith(".py"):
            with suppress(OSError, NotImplementedError):
                os.unlink(importlib.util.cache_from_source(file))
    importlib.invalidate_caches()


def _source(module: str) -> bytes:
    """What the file of an imported module holds; b"" for installed modules, which are many and which nobody edits."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if file.is_relative_to(STDLIB) or {"site-packages", "dist-packages"} & {*file.parts}:
        return b""
    try:
        return file.read_bytes()
    except OSError:  # some modules name a file that does not exist, as torch.ops does
        return b""


def module_of(file: Path) -> str:
    """The name of the module that a plugin's file becomes: its path, without dots, so that none lies inside another."""
    path = file.resolve().as_posix().removesuffix(".py")
    return PLUGIN + quote(path, safe="", errors="surrogateescape").replace(".", "%2E")


class _Plugins:
    """How a data worker that starts without this process's modules, as on macOS, finds those of a plugin's data set."""

    @staticmethod
    def find_spec(name: str, *_: object) -> ModuleSpec | None:
        file = unquote(name.removeprefix(PLUGIN), errors="surrogateescape") + ".py"
        return importlib.util.spec_from_file_location(name, file) if name.startswith(PLUGIN) else None


sys.meta_path.append(_Plugins)


def _load(file: Path) -> str:
    """Import a file; the name of its module."""
    name, content = module_of(file), file.read_bytes()
    if name in sys.modules:
        if _contents.get(name) == content:
            return name
        forget(name)
    # a copy, as of another checkout, counts as the same: fingerprints do not tell them apart either
    for other, text in _contents.items():
        alike = text == content and other.rpartition("%2F")[2] == name.rpartition("%2F")[2]
        if alike and other.startswith(PLUGIN) and other in sys.modules:
            return other
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        # Not from bytecode: Python compares only size and second of the file, which an edit may leave as they were.
        exec(compile(content, str(file), "exec"), module.__dict__)
    except BaseException as error:  # so that it can be loaded again once it is fixed
        del sys.modules[name]
        forget(name)
        if isinstance(error, Exception | SystemExit):
            raise ValueError(_complaint(file, error)) from error
        raise
    _contents[name] = content
    return name


def forget(module: str) -> None:
    """Take back what a module has registered, and what those inside it have."""
    for loaded in [loaded for loaded in _contents if _inside(loaded, module)]:
        del _contents[loaded]
    for members in _members.values():
        for name in [name for name, cls in members.items() if _inside(cls.__module__, module)]:
            del members[name]
    _import_members.cache_clear()  # it may have been a family's package


def _inside(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _complaint(file: Path, error: BaseException) -> str:
    """What is wrong with a plugin, and in which line of its own files, even where code that it calls has failed."""
    if isinstance(error, SyntaxError):
        code = f" in {error.text.strip()!r}" if error.text else ""
        return f"plugin {error.filename or file}, line {error.lineno}: {error.msg}{code}"
    own = file.parent if file.name == "__init__.py" else file  # a package's code lies beside its __init__.py
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(own)]
    place = (frames[-1].filename, frames[-1].lineno) if frames else (file, 1)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    lost = own == file and isinstance(error, ModuleNotFoundError) and file.with_name(f"{error.name}.py").is_file()
    fix = "; a file cannot import its neighbours: make a package, and name its module" if lost else ""
    return f"plugin {place[0]}, line {place[1]}: {kind}{str(error).removeprefix(f'{file}: ')}{fix}"
