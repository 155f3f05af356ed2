"""The grid of generated images."""

import pytest
from fake_run import build

from dmvae.datasets.shapes import Shapes
from dmvae.report.pictures import samples
from dmvae.report.run import Run


@pytest.mark.parametrize(("classes", "rows"), [(1, 4), (3, 3)])
def test_one_class_has_several_rows_of_samples(tmp_path, classes, rows):
    """One row of six pictures tells too little."""
    data = Shapes(size=16, num_classes=classes, count=8, test_count=40)
    jobs = build(tmp_path, ("matched", "kl", "a", "b"), ("sample",), data=data)
    page = samples(Run(tmp_path, jobs)).split("<details>")[0]
    assert page.count('alt="matched: samples of') == page.count('alt="kl: samples of') == rows
    assert page.count('<span class="class"></span>') == rows - classes
    assert ("Each row is one class" in page) == (classes > 1)
