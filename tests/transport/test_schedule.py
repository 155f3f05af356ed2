"""The ratio rises far from the reference, falls near it, and stays within its limits."""

import math

import pytest

from dmvae.transport.schedule import next_ratio


def test_it_follows_the_distance():
    assert next_ratio(1.0, 5.0) == pytest.approx(math.exp(0.6)), "it grows twice as fast as it falls"
    assert next_ratio(1.0, 0.1) == pytest.approx(math.exp(-0.3))
    assert next_ratio(1.0, 1.1) == 1.0
    assert next_ratio(1.0, 1.0) == pytest.approx(math.exp(-0.12))
    assert next_ratio(9.9, 5.0) == 10.0
    assert next_ratio(0.21, 0.5) == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.0, "multiple": 1.0}, "ratio is 0.0; give a number above 0"),
        ({"ratio": 1.0, "multiple": math.nan}, "multiple is nan.*diverged"),
        ({"ratio": 1.0, "multiple": 1.0, "limits": (2.0, 1.0)}, r"limits are \(2.0, 1.0\).*lower one first"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        next_ratio(**arguments)
