"""What reaches the terminal: names of files and recipes are shown, and not obeyed."""

import warnings

import pytest
import yaml
from rich.table import Table

import tiny
from dmvae import cli
from dmvae.runtime.console import Bar, console, printable

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe"


def plain(text):
    return not any(c in text for c in "\x1b\x07\x9b\u202e")


def test_control_characters_become_escapes_and_letters_stay():
    assert printable(EVIL) == r"a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe"
    assert printable("a\tb\nGröße 深い ± λ ↓") == "a\tb\nGröße 深い ± λ ↓"
    assert printable("caf\udce9\r") == r"caf\udce9\r"


def test_every_way_to_the_console(capsys):
    console.print(EVIL, style="bold")
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    console.print(table)
    with Bar(EVIL, 1) as bar:
        bar.step()
    out = capsys.readouterr().out
    assert plain(out)
    assert out.count(r"\x1b[2J") == 5


def test_errors_and_warnings(capsys, monkeypatch):
    def warn_and_fail(command, arguments):
        warnings.warn(EVIL, stacklevel=1)
        raise ValueError(EVIL)

    monkeypatch.setitem(cli.COMMANDS, "run", (warn_and_fail, ""))
    monkeypatch.setattr(warnings, "showwarning", lambda *args: print(warnings.formatwarning(*args[:4])))
    with pytest.raises(SystemExit):
        cli.main(["run"])
    said = capsys.readouterr()
    assert plain(said.out + said.err)
    assert r"dmvae: a\x1b]0" in said.err
    assert r"warning: a\x1b]0" in said.out


def test_a_recipe_s_own_name(tmp_path, capsys):
    path = tmp_path / "r\x1b[2J.yaml"
    path.write_text(yaml.safe_dump(tiny.RECIPE | {"name": EVIL, "tokenizer": {EVIL: 1}}))
    with pytest.raises(SystemExit):
        cli.main(["run", str(path)])
    said = capsys.readouterr().err
    assert plain(said)
    assert r"r\x1b[2J.yaml" in said
