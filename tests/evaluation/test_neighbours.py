"""Nearest neighbours, by brute force, and the dimension that their distances tell."""

import math
import re

import pytest
import torch

from dmvae.evaluation import rows
from dmvae.evaluation.neighbours import intrinsic_dimension, nearest
from draws import normal, rotation


def test_nearest_by_brute_force():
    x, y = normal(70, 3, 2), normal(600, 3, 2, seed=1)
    distances, indices = nearest(x, y, k=4)
    expected = (x.flatten(1)[:, None] - y.flatten(1)).norm(dim=-1).sort(1)
    torch.testing.assert_close(distances, expected.values[:, :4])
    assert torch.equal(indices, expected.indices[:, :4])


def test_nearest_among_themselves_leaves_each_one_out():
    x = normal(700, 5) + 100  # more than a chunk, and far from the origin
    _, indices = nearest(x)
    assert (indices[:, 0] != torch.arange(700)).all()
    distances, indices = nearest(torch.cat([x, x]))
    assert torch.equal(indices[:700, 0], torch.arange(700, 1400))
    assert not distances.any()


def test_nearest_by_angle_and_too_few():
    points = torch.tensor([[9.0, 1.0], [0.0, 0.1]])
    _, by_angle = nearest(torch.tensor([[0.1, 0.0]]), points, cosine=True)
    _, by_length = nearest(torch.tensor([[0.1, 0.0]]), points)
    assert (int(by_angle), int(by_length)) == (0, 1)
    with pytest.raises(ValueError, match="smaller k"):
        nearest(points, k=2)


@pytest.mark.parametrize(("d", "k"), [(1, 2), (2, 2), (4, 20), (6, 20)])
def test_intrinsic_dimension_of_a_gaussian_in_a_wider_space(d, k):
    z = normal(3000, d) @ rotation(24)[:d]
    assert intrinsic_dimension(z.view(-1, 6, 2, 2), k) == pytest.approx(d, rel=0.1)


def test_intrinsic_dimension_of_a_curved_manifold():
    angle = 2 * math.pi * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0))
    torus = torch.cat([angle.cos(), angle.sin()], 1)
    assert intrinsic_dimension(torus) == pytest.approx(2, rel=0.05)
    assert intrinsic_dimension(torus, k=2) == pytest.approx(2, rel=0.1)
    assert intrinsic_dimension(7 * torus @ rotation(4)) == pytest.approx(intrinsic_dimension(torus), rel=1e-3)


def test_intrinsic_dimension_takes_copies_for_one():
    z = normal(500, 3)
    assert intrinsic_dimension(torch.cat([z, z])) == pytest.approx(intrinsic_dimension(z))
    assert intrinsic_dimension(torch.ones(9, 3)) == 0
    assert intrinsic_dimension(z[:10], k=20) == intrinsic_dimension(z[:10], k=9)
    with pytest.raises(ValueError, match="2 or more"):
        intrinsic_dimension(z, k=1)


def test_a_long_pass_over_rows_has_a_bar_and_a_short_one_none(monkeypatch, capsys):
    points = normal(700, 3)
    short = nearest(points)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(rows, "LONG", 700)
    assert all(torch.equal(a, b) for a, b in zip(nearest(points), short, strict=True))
    assert re.search(r"distances +700/700 .* rows/s", capsys.readouterr().out)
