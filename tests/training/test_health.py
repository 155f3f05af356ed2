"""A training that is not well is noticed: its figures are judged in means of many steps."""

import math
from dataclasses import replace

import pytest
import torch

from dmvae.runtime import distributed
from dmvae.stages.bounds import BOUNDS
from dmvae.training.health import Bound, Health, Unwell

LOSS = Bound(figure="loss", usual=1.0, above=2.0, means="it grows", advice="less")
SPREAD = Bound(figure="spread", usual=1.0, below=0.2, means="it shrinks", advice="less")


def judged(bound, windows):
    """The number of the window at whose end it is found unwell, or None."""
    health = Health([bound], torch.device("cpu"))
    for i, window in enumerate(windows):
        for value in window:
            health.add({"other": 9.0} if value is None else {bound.figure: torch.tensor(float(value))})
        health.end_window(i)
        try:
            health.judge()
        except Unwell:
            return i
    return None


@pytest.mark.parametrize(
    ("bound", "windows", "found"),
    [
        (LOSS, [[1, 3], [3.9, 4.0], [4.1, 4.1], [5, 5]], 3),  # the bound is twice the first mean
        (LOSS, [[0.1], [1.9], [2.1], [1.9], [2.1]], None),  # or twice what is usual; one window alone is chance
        (LOSS, [[0.1], [2.1], [None], [2.1]], 3),  # a window without the figure says nothing
        (LOSS, [[1], [math.nan]], 1),
        (LOSS, [[math.inf]], 0),
        (SPREAD, [[3], [0.25], [0.19], [0.1]], 3),
        (SPREAD, [[0.1], [0.03], [0.03]], None),  # it began small
    ],
)
def test_two_windows_out_of_bounds_are_not_well(bound, windows, found):
    assert judged(bound, windows) == found


def test_what_is_not_finite_has_not_collapsed():
    health = Health([replace(SPREAD, means="it is thin")], torch.device("cpu"))
    health.add({"spread": math.inf})
    health.end_window(7)
    with pytest.raises(Unwell, match=r"^spread became inf by step 7$"):
        health.judge()


def test_what_is_halfway_out_of_bounds_is_told_once():
    bound = replace(SPREAD, warns=0.5, warning="it is thin")
    health, told = Health([bound], torch.device("cpu")), []
    for step, value in enumerate([1.0, 0.4, 0.6, 0.4, 0.4, 0.4, 0.9, 0.3, 0.3], 1):
        health.add({"spread": value})
        health.end_window(step)
        told += health.judge()
    assert told == ["warning: it is thin: spread is 0.4 by step 5"]


def test_ranks_are_judged_together(monkeypatch):
    """One is well, at 1.5 times its start; the mean with another's 3 is not."""
    for other, well in ((1.0, True), (3.0, False)):
        health = Health([LOSS], torch.device("cpu"))
        for step, (own, theirs) in enumerate([(1.0, 1.0), (1.5, other), (1.5, other)], 1):
            sums = torch.tensor([[theirs, 1.0]])
            monkeypatch.setattr(distributed, "average", lambda x, sums=sums: (x + sums) / 2)
            health.add({"loss": own})
            health.end_window(step)
            if well or step < 3:  # two windows in a row
                health.judge()
            else:
                with pytest.raises(Unwell, match=r"loss is 2\.25"):
                    health.judge()


def test_a_checkpoint_has_all_that_is_judged():
    health = Health([LOSS], torch.device("cpu"))
    health.add({"loss": 1.0})
    health.end_window(1)
    health.judge()
    health.add({"loss": 3.0})
    again = Health([LOSS], torch.device("cpu"))
    again.state.copy_(health.state)
    for one in (health, again):
        one.end_window(2)
        one.judge()
        one.add({"loss": 3.0})
        one.end_window(3)
        with pytest.raises(Unwell):
            one.judge()


def test_windows_that_are_judged_late_are_judged_as_they_were():
    """Trouble of the second and the third window is told of the third, although the fourth is well."""
    soon, late = (Health([LOSS], torch.device("cpu")) for _ in range(2))
    for step, value in enumerate([1.0, 3.0, 4.0, 1.0], 1):
        for health in (soon, late):
            health.add({"loss": torch.tensor(value)})
            health.end_window(step)
        if step < 3:
            soon.judge()
        elif step == 3:
            with pytest.raises(Unwell, match="loss is 4, and was 1 at the start"):
                soon.judge()
    with pytest.raises(Unwell, match="loss is 4, and was 1 at the start") as error:
        late.judge()
    assert error.value.step == 3
    assert torch.equal(soon.state[:, 2:], late.state[:, 2:])


def test_the_first_step_that_is_not_finite_is_known_however_late_it_is_told():
    health = Health([Bound(figure="x", usual=1.0, means="", advice="")], torch.device("cpu"))
    for step, value in enumerate((1.0, math.inf, math.nan, 2.0), 1):
        assert health.ill_since() == (None if step < 3 else 2)
        health.see(torch.tensor(value), step)
    assert health.ill_since() == 2


def test_a_matching_watches_what_it_logs():
    watched = {bound.figure for bound in BOUNDS}
    assert watched == {"health/spread", "health/error", "student/lag", "distance/whole", "distance/token"}


@pytest.mark.parametrize("bounds", [[], [LOSS]])
def test_a_first_gradient_that_comes_after_trouble_is_not_its_cause(bounds):
    for before, spoilt in ((1.0, ["tokenizer"]), (math.nan, [])):
        health = Health(bounds, torch.device("cpu"))
        health.see(torch.tensor(1.0), 1, first="student")
        health.see(torch.tensor(before), 2)
        health.see(torch.tensor(math.inf), 2, first="tokenizer")
        assert health.spoilt() == spoilt
        assert health.ill_since() == 2
