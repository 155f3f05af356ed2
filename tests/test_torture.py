"""`make torture` finds nothing, and would find something."""

import random
import sys
import warnings

import pytest
import torch
from benchmarks.tortures import Row, attempt
from benchmarks.tortures.damage import checkpoints, files
from benchmarks.tortures.foreign import foreign
from benchmarks.tortures.hostile import hostile
from benchmarks.tortures.processes import compare, contents, run
from benchmarks.tortures.values import odd_fields, odd_images
from safetensors.torch import save_file


@pytest.mark.slow
def test_damaged_files_of_other_programs_end_in_a_line(tmp_path):
    for row in foreign(tmp_path, 12, random.Random(1)):
        assert row.tries == 12
        assert row.notes == []


@pytest.mark.parametrize("part", [files, checkpoints])
def test_no_damage_is_used_in_silence(tmp_path, part):
    for row in part(tmp_path, 20, random.Random(1)):
        assert row.tries == 20
        assert row.notes == []


@pytest.mark.slow
def test_no_hostile_file_does_what_it_means_to(tmp_path):
    (row,) = hostile(tmp_path)
    assert row.tries >= 18
    assert row.notes == []


def test_odd_images_are_read_or_told(tmp_path):
    (row,) = odd_images(tmp_path)
    assert row.tries > 20
    assert row.notes == []


def test_odd_fields_are_refused_or_built(tmp_path):
    (row,) = odd_fields(tmp_path, 20, random.Random(0))
    assert (row.tries, row.notes) == (20, [])


def test_what_ends_elsewhere_than_an_undisturbed_run_is_counted(tmp_path):
    for name, value in (("a", 0), ("b", 1)):
        save_file({"x": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    wanted, row = contents(tmp_path), Row("x", 4)
    compare(row, wanted, tmp_path, "same")
    assert row.notes == []
    save_file({"x": torch.full((3,), 2)}, tmp_path / "a.safetensors")
    compare(row, wanted, tmp_path, "changed")
    (tmp_path / "b.safetensors").unlink()
    compare(row, wanted, tmp_path, "gone")
    (tmp_path / "b.safetensors.7.part").mkdir()
    compare(row, contents(tmp_path), tmp_path, "left")
    assert row.counts == {"losses": 2, "tracebacks": 0, "hangs": 0, "silent uses": 1}


def test_what_fails_is_counted(tmp_path):
    row = Row("x", 4)

    def crash():
        raise KeyError("x")

    def refuse():
        raise ValueError("in a line")

    assert attempt(row, crash, "crash") == ("KeyError('x')", None)
    assert attempt(row, refuse, "refuse") == ("ValueError('in a line')", None)
    assert attempt(row, lambda: 3, "pass") == ("", 3)
    assert attempt(row, lambda: warnings.warn("one", stacklevel=1), "warn") == ("one", None)
    assert (row.tries, row.counts["tracebacks"], row.notes) == (4, 1, ["x: tracebacks: crash: KeyError: 'x'"])


LEAVES = """
import subprocess, sys
sleeps = [sys.executable, "-c", "import time; time.sleep(100)"]
subprocess.Popen(sleeps, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
sys.exit("one line")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes that are left are found in /proc")
def test_a_process_that_hangs_or_leaves_another_or_says_that_all_is_well_is_counted():
    row = Row("x", 4)
    assert run([sys.executable, "-c", "exit('one line')"], row, "fails", 60) == "one line\n"
    assert row.notes == []
    run([sys.executable, "-c", ""], row, "ends well", 60)
    run([sys.executable, "-c", "import time; time.sleep(100)"], row, "hangs", 1)
    run([sys.executable, "-c", LEAVES], row, "leaves", 60)
    assert row.tries == 4
    assert row.counts == {"losses": 0, "tracebacks": 0, "hangs": 2, "silent uses": 1}
    assert row.notes[-1].endswith("leaves: a process is left")
