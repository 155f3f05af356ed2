"""Plugins that are modules of installed packages."""

import importlib
import sys
from types import SimpleNamespace

import pytest

import tiny
from dmvae import registry
from dmvae.recipe import load
from dmvae.references import ReferenceConfig

PACKAGED = """from dataclasses import dataclass
from dmvae.references import ReferenceConfig
from dmvae.registry import register
from .scale import SCALE
@register("packaged")
@dataclass(frozen=True, kw_only=True)
class Packaged(ReferenceConfig):
    def build(self, inputs):
        return self
"""


def test_a_module_of_an_installed_package_is_a_plugin(tmp_path, monkeypatch):
    package = tmp_path / "site" / "my_references"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "scale.py").write_text("SCALE = 2\n")
    (package / "points.py").write_text(PACKAGED)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    over = {"reference__distribution": {"type": "packaged"}, "variants": {"main": {}}}
    path = tiny.write(tmp_path, plugins=["my_references.points"], **over)
    try:
        recipe = load(path)["main"]
        assert recipe.plugins == ("my_references.points",)
        before = tiny.folders_of(path)
        (package / "points.py").write_text(PACKAGED + "EDITED = True\n")
        after = tiny.folders_of(path)
        assert sys.modules["my_references.points"].EDITED, "what runs is what counts"
    finally:
        registry.forget("my_references")
        for name in [name for name in sys.modules if name.startswith("my_references")]:
            del sys.modules[name]
    assert before["tokenizer"] == after["tokenizer"]
    assert before["reference"] != after["reference"], "its file counts as a plugin's does"
    with pytest.raises(ValueError, match=r"plugins: no such file or folder: .*my_referencez.points"):
        load(tiny.write(tmp_path, plugins=["my_referencez.points"], **over))
    message = (
        "no ReferenceConfig is called 'packaged'.*one of your own is found where `plugins` names its file or module"
    )
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, **over))


PART = """from dataclasses import dataclass
from dmvae.references import ReferenceConfig
from dmvae.registry import register
@register("part_{name}")
@dataclass(frozen=True, kw_only=True)
class Part(ReferenceConfig):
    value = {value}
    def build(self, inputs):
        return self
"""


def test_a_package_is_read_again_whole_where_a_file_of_it_changes(tmp_path, monkeypatch):
    """What runs is what the fingerprint is of: the files as they are."""
    package = tmp_path / "my_package"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    init, part = package / "__init__.py", package / "part.py"
    init.write_text("from . import part\n")
    part.write_text(PART.format(name="of_package", value=1))

    def value():
        registry.load_plugins(["my_package"])
        return registry.find(ReferenceConfig, "part_of_package").value

    try:
        assert value() == 1
        cls = registry.find(ReferenceConfig, "part_of_package")
        assert value() == 1
        assert registry.find(ReferenceConfig, "part_of_package") is cls, "what has not changed stays"
        part.write_text(PART.format(name="of_package", value=2))
        assert value() == 2
        init.write_text("from . import part\n# a comment\n")
        assert value() == 2
        part.write_text("def (")
        with pytest.raises(ValueError, match=r"plugin .*part\.py, line 1: invalid syntax"):
            value()
        part.write_text(PART.format(name="of_package", value=3))
        assert value() == 3
        sys.modules["my_package.ops"] = SimpleNamespace(__file__="_ops.py")  # as torch has some
        late = package / "late.py"
        late.write_text("value = 1\n")
        importlib.import_module("my_package.late")
        late.write_text("value = 2\n")
        assert value() == 3
        assert importlib.import_module("my_package.late").value == 2, "of what was imported later, too"
    finally:
        registry._drop("my_package")


def test_plugins_of_like_names_are_kept_apart(tmp_path, monkeypatch):
    """An edited module takes back what it registered, and not what one registered whose name begins like its own; files
    whose paths differ in a slash alone are two."""
    source = PACKAGED.replace("from .scale import SCALE\n", "")
    for name in ("alike", "alike_too"):
        (tmp_path / f"{name}.py").write_text(source.replace('"packaged"', f'"{name}"'))
    for file in ("here/own.py", "here_own.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(source.replace('"packaged"', f'"{file}"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = ["alike", "alike_too", tmp_path / "here/own.py", tmp_path / "here_own.py"]
    try:
        registry.load_plugins(plugins)
        with (tmp_path / "alike.py").open("a") as file:
            file.write("EDITED = True\n")
        registry.load_plugins(["alike"])
        assert {"alike", "alike_too", "here/own.py", "here_own.py"} <= set(registry.names(ReferenceConfig))
    finally:
        for name in ("alike", "alike_too"):
            registry.forget(name)
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("files", "plugin", "complaint"),
    [
        (
            {"__init__.py": "", "parts.py": "import torch\nx = torch.nosuch\n"},
            "parts",
            "parts.py, line 2: AttributeErr",
        ),
        ({"__init__.py": "import nosuchlib\n"}, "parts", "__init__.py, line 1: ModuleNotFoundError: .*nosuchlib"),
        ({"__init__.py": "raise SystemExit", "sub.py": ""}, "sub", "__init__.py, line 1: SystemExit"),
        ({"__init__.py": "from . import parts", "parts.py": "def f(:\n"}, None, "parts.py, line 1: invalid syntax"),
    ],
)
def test_a_module_that_fails_on_import_is_told_by_file_and_line(tmp_path, monkeypatch, files, plugin, complaint):
    name = f"faulty_{len(files)}_{plugin}"
    (tmp_path / name).mkdir()
    for file, source in files.items():
        (tmp_path / name / file).write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=rf"plugin .*{name}/{complaint}"):
        load(tiny.write(tmp_path, plugins=[f"{name}.{plugin}" if plugin else name]))
