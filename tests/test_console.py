"""What reaches the terminal: names of files and recipes are shown, and not obeyed."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import warnings

import pytest
import yaml
from PIL import Image
from rich.table import Table

import processes
import tiny
from dmvae import cli
from dmvae.runtime import console as terminal
from dmvae.runtime.console import Bar, console, fitted, printable

pytestmark = pytest.mark.slow

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
    def warn_and_fail(command, arguments, commands):
        warnings.warn(EVIL, stacklevel=1)
        raise ValueError(EVIL)

    monkeypatch.setattr("dmvae.commands.run.run", warn_and_fail)
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


def test_names_of_files_folders_and_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", lambda *args: print(warnings.formatwarning(*args[:4])))
    root = tmp_path / EVIL
    for label in ("a", f"b{EVIL}"):
        (root / label).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (12, 12), (9 * i, 0, 0)).save(root / label / f"{i}.png")
    (root / "a" / f"{EVIL}.png").write_bytes(b"no image")
    stages = dict.fromkeys(("encoder", "reference", "matching", "decoder", "generator", "sample", "evaluate"))
    data = {"type": "image_folder", "root": str(root), "size": 12}
    path = tiny.write(tmp_path, variants=None, data=data, tokenizer__train_encoder=True, **stages)
    cli.main(["run", str(path), "--dry-run"])
    for wrong in (["encode", str(root), "--tokenizer", EVIL, "--out", EVIL], ["run", EVIL], [EVIL], ["report", EVIL]):
        with pytest.raises(SystemExit):
            cli.main(wrong)
    said = capsys.readouterr()
    assert plain(said.out + said.err)
    assert said.out.count(r"owned\x07") >= 2  # the file that is no image, and where the images are
    assert said.err.count(r"owned\x07") >= 4  # each command's


BAR = """
import importlib, json, os, sys
from dmvae.runtime import console
for setting in json.loads(sys.argv[1]):
    os.environ.pop("COLUMNS", None)
    os.environ.pop("NO_COLOR", None)
    os.environ.update(setting)
    importlib.reload(console)  # the terminal is asked what it can do when the console is made
    console._is_main = lambda: True  # without the seconds that torch takes to import
    console.console.print("x", style="red")
    with console.Bar("kl_1e-1_500@2  evaluate reconstruct", 3500, "images") as bar:
        bar.step(1750, 1e-6, "loss tokenizer 0.640, discriminator 1.000")
    print("<end>", flush=True)
"""


def on_a_terminal(*settings):
    """What a process on a terminal writes with each of these settings of its environment: a line in red, and a bar."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BAR, json.dumps(settings)], stdout=theirs, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    out = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how the end shows on Linux
            break
        if not part:
            break
        out += part
    assert process.wait() == 0
    parts = out.decode().split("<end>")
    assert len(parts) == len(settings) + 1
    return parts[:-1]


def test_a_bar_keeps_step_bar_and_time_left_at_any_width():
    widths = (60, 80, 100, 200)
    outs = on_a_terminal(*({"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"} for columns in widths))
    for columns, out in zip(widths, outs, strict=True):
        line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out).strip().splitlines()[-1]
        assert re.search(r"━+.* +1750/3500 .*left +\S+$", line), line
        assert len(line) <= columns
        assert ("images/s" in line) == (columns >= 80)
        assert ("discriminator 1.000" in line) == (columns == 200)


def test_words_go_on_below_on_a_terminal_and_stay_in_one_line_in_a_pipe(monkeypatch):
    text = "  --a.field 3  " + "words that explain it " * 8
    for shown, width in ((True, 40), (True, 80), (False, 40)):
        out = io.StringIO()
        made = type(console)(file=out, force_terminal=shown, width=width, soft_wrap=True, highlight=False)
        monkeypatch.setattr(terminal, "console", made)
        terminal.paragraph(text, 6)
        lines = out.getvalue().rstrip("\n").split("\n")
        assert (len(lines) > 1) == shown
        assert all(len(line) <= width for line in lines) == shown
        assert all(line.startswith(" " * 6) and not line.startswith(" " * 7) for line in lines[1:])
        assert " ".join(out.getvalue().split()) == " ".join(text.split())


def test_the_help_fits_80_columns(capsys):
    for arguments in (["--help"], ["run", "--help"], ["report", "--help"]):
        with contextlib.suppress(SystemExit):  # argparse's own
            cli.main(arguments)
        out = capsys.readouterr().out
        assert out.startswith("usage: dmvae")
        assert max(map(len, out.splitlines())) <= 80


def test_a_bar_in_a_pipe_says_nothing_twice_and_nothing_of_nothing(monkeypatch, capsys):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(now))  # so every step is told
    with Bar("stage", 2, "images") as bar:
        bar.step()
        bar.step()
    with Bar("closed form", 0, "images"):
        pass
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["stage", "1/2"], ["stage", "2/2"]]


def test_losses_are_dropped_whole_and_from_the_end():
    note = "81 images/s  loss tokenizer 0.640, discriminator 1.000"
    assert fitted(note, 80) == note
    assert fitted(note, 40) == "81 images/s  loss tokenizer 0.640"
    assert fitted(note, 20) == "81 images/s"
    assert fitted(note, 5) == ""


def test_without_colours_and_in_a_pipe_nothing_is_coloured():
    colours = r"\x1b\[[0-9;]*3[0-9]"
    xterm = {"TERM": "xterm-256color"}
    coloured, plain, dumb = on_a_terminal(xterm, xterm | {"NO_COLOR": "1"}, {"TERM": "dumb"})
    assert re.search(colours, coloured)
    assert not re.search(colours, plain)
    assert "\x1b" not in dumb
    piped = subprocess.run([sys.executable, "-c", BAR, json.dumps([xterm])], capture_output=True, text=True)
    assert "1750/3500" in piped.stdout
    assert "\x1b" not in piped.stdout + piped.stderr


@pytest.mark.parametrize("triton", [False, True])
def test_a_command_ends_without_a_search_for_garbage(triton):
    """But for Triton's, which would tell of it as leaks. What is registered first is called last."""
    code = "import sys; sys.modules['triton'] = sys;" if triton else "import sys; sys.modules.pop('triton', None);"
    code += (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0, len(gc.get_objects()) < 100));"
        "from dmvae import cli; cli.main(['--version'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=processes.environment())
    assert result.stdout.splitlines()[-1] == f"{not triton} {not triton}"


def test_no_notice_of_a_library_that_is_not_needed(tmp_path):
    """diffusers logs "pip install accelerate" where a network is loaded as it does by itself."""
    from diffusers.utils import logging

    from dmvae.models.dit import LightningDiT

    model = LightningDiT(input_size=4, in_channels=2, width=8, depth=1, heads=2, num_classes=2)
    model.save_pretrained(tmp_path)
    said = io.StringIO()
    handler = logging.logging.StreamHandler(said)
    logging.add_handler(handler)
    try:
        LightningDiT.from_pretrained(tmp_path)
        LightningDiT.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    finally:
        logging.remove_handler(handler)
    assert "accelerate" not in said.getvalue()
