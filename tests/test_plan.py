"""`dmvae plan`: what a recipe needs, and what stands in its way."""

import pytest

import tiny
from dmvae.cli import main
from dmvae.commands.plan import bytes_of

pytestmark = pytest.mark.slow

PLAN = ("--gpus", "2", "--variant", "kl", "--memory")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("plan")))


def rows(text, word):
    """Cells of the rows of that stage, in both tables."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith(f"│ {word} ")]


def test_it_tells_what_each_stage_needs(recipe, capsys):
    main(["plan", recipe, *PLAN, "80GB"])
    out = capsys.readouterr().out
    first, second = rows(out, "generator")
    assert first[:4] == ["generator", "6", "8", "1.0"]
    assert first[-1] == "new"
    assert "MiB" in second[3]
    assert "for 2 GPUs of 75 GiB" in out
    assert "nothing is missing" in out


def test_everything_that_stands_in_the_way_is_told_at_once(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", recipe, *PLAN, "1kB", "--generator.batch_size", "9", "--tokenizer.batch_size", "50"])
    out, error = capsys.readouterr()
    assert stop.value.code == 1
    assert "generator.batch_size: 9 does not divide over 2 ranks" in out
    assert "tokenizer.batch_size: 50 is larger than the data set (48 images)" in out
    assert "memory: tokenizer needs about" in out
    assert "4 things stand in the way" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus: 0; give 1 or more"),
        (["--gpus", "1", "--memory", "much"], "--memory: 'much' is not an amount of memory such as 80GB"),
        (["--gpus", "1", "--utilisation", "2"], "give a share up to 1"),
    ],
)
def test_what_is_no_machine(recipe, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["plan", recipe, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_amounts_of_memory():
    assert [bytes_of(text) for text in ("80GB", "1 GiB", "12")] == [80 * 10**9, 2**30, 12]
