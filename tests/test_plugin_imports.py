"""Plugins that cannot be imported, fail by themselves or register nothing: each is told with its file and line."""

import re

import pytest

import tiny
from dmvae import cli
from dmvae.recipe import load
from dmvae.references import ReferenceConfig
from dmvae.registry import find, forget, load_plugins, module_of, place_of

HEAD = """from dataclasses import dataclass
from dmvae.references import ReferenceConfig
from dmvae.registry import register
"""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef f(:\n", r"line 2: invalid syntax in 'def f\(:'"),
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f():\n    return [][0]\nf()\n", "line 2: IndexError: list index out of range"),
        (
            f'{HEAD}@register("bare")\nclass Bare(ReferenceConfig):\n    a: int = 1\n    def build(self, i): ...\n',
            r"line 4: class Bare, registered as 'bare' .*: its annotations are no fields without @dataclass",
        ),
        (
            f'{HEAD}@register("near")\n@dataclass(frozen=True)\nclass Near(ReferenceConfig):\n    labeled = False\n'
            "    def build(self, i): ...\n",
            r"line 4: class Near, registered as 'near' .*: nothing reads its 'labeled'; did you mean 'labelled'\?",
        ),
        (
            f'{HEAD}@register("thawed")\n@dataclass\nclass Thawed(ReferenceConfig):\n    def build(self, i): ...\n',
            "line 5: TypeError: cannot inherit non-frozen dataclass from a frozen one",
        ),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        (
            "import wrong  # a file that lies beside it, here itself\n",
            "line 1: ModuleNotFoundError: No module named 'wrong'; a file cannot import its neighbours: make a package",
        ),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_told_with_its_line(tmp_path, monkeypatch, capsys, source, message):
    (tmp_path / "wrong.py").write_text(source)
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "wrong.py")])
    for _ in range(2):  # nothing of it is left behind
        with pytest.raises(SystemExit) as stop:
            cli.main(["run", str(path)])
        said = capsys.readouterr().err
        assert stop.value.code == 2
        assert said.count("\n") == 1
        assert re.search(f"plugin {tmp_path}/wrong.py, {message}", said), said
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^plugin {tmp_path}/wrong.py, {message}"):
        load_plugins(["wrong.py"])  # as --plugins of commands without a recipe


UNEVEN = (
    '@register("uneven")\n@dataclass(frozen=True, kw_only=True)\nclass Uneven(ReferenceConfig):\n'
    "    def build(self, inputs):\n        a, b = (1,)\n"
)


def test_python_s_own_error_of_a_plugin_is_told_with_its_line(tmp_path, capsys):
    """Its text says nothing of where it came up."""
    file = tmp_path / "uneven.py"
    file.write_text(HEAD + UNEVEN)
    load_plugins([file])
    with pytest.raises(ValueError, match="not enough values to unpack") as found:
        find(ReferenceConfig, "uneven")().build(None)
    assert place_of(found.value) == f" ({file}, line 8)"
    assert place_of(ValueError("ours")) == ""
    path = tiny.write(tmp_path, plugins=[str(file)], reference__distribution={"type": "uneven"})
    with pytest.raises(SystemExit):
        cli.main(["run", str(path), "--variant", "matched"])
    assert f"not enough values to unpack (expected 2, got 1) ({file}, line 8)" in capsys.readouterr().err
    forget(module_of(file))


def test_a_plugin_that_forgot_to_register_is_named_where_its_name_is_looked_up(tmp_path):
    file = tmp_path / "rings.py"
    file.write_text("class Rings:\n    pass\n")
    path = tiny.write(tmp_path, plugins=[str(file)], reference__distribution={"type": "rings"})
    with pytest.raises(ValueError, match=rf"is called 'rings'.*{re.escape(str(file))} registers nothing: @register"):
        load(path)
    for over in ({"sample__method": "rings"}, {"evaluate__metrics": ["rings"]}):
        with pytest.raises(ValueError, match=r"no (sampler|metric) is called 'rings'.* registers nothing: @register"):
            load(tiny.write(tmp_path, plugins=[str(file)], **over))
    forget(module_of(file))
