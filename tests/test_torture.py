"""`make torture` finds nothing, and would find something."""

import random

import pytest
from benchmarks.tortures import Row, attempt
from benchmarks.tortures.damage import checkpoints, files
from benchmarks.tortures.hostile import hostile


@pytest.mark.parametrize("part", [files, checkpoints])
def test_no_damage_is_used_in_silence(tmp_path, part):
    for row in part(tmp_path, 20, random.Random(1)):
        assert row.tries == 20
        assert row.notes == []


@pytest.mark.slow
def test_no_hostile_file_does_what_it_means_to(tmp_path):
    (row,) = hostile(tmp_path)
    assert row.tries >= 17
    assert row.notes == []


def test_what_fails_is_counted(tmp_path):
    row = Row("x")

    def crash():
        raise KeyError("x")

    def refuse():
        raise ValueError("in a line")

    assert attempt(row, crash, "crash") == (True, None)
    assert attempt(row, refuse, "refuse") == (True, None)
    assert attempt(row, lambda: 3, "pass") == (False, 3)
    assert (row.tries, row.counts["tracebacks"], row.notes) == (3, 1, ["x: tracebacks: crash: KeyError: 'x'"])
