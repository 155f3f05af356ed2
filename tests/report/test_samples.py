"""The grid of generated images, and the blocks of reconstructions."""

from dataclasses import replace

import numpy as np
import pytest
from fake_run import build

from dmvae.datasets import open_dataset
from dmvae.datasets.latents import LatentsData
from dmvae.datasets.shapes import Shapes
from dmvae.report.pictures import reconstructions, samples
from dmvae.report.run import Run
from dmvae.report.table import summary


@pytest.mark.parametrize(("classes", "rows"), [(1, 4), (3, 3)])
def test_one_class_has_several_rows_of_samples(tmp_path, classes, rows):
    """One row of six pictures tells too little."""
    data = Shapes(size=16, num_classes=classes, count=8, test_count=40)
    jobs = build(tmp_path, ("matched", "kl", "a", "b"), ("sample",), data=data)
    page = samples(Run(tmp_path, jobs)).split("<details>")[0]
    assert page.count('alt="matched: samples of') == page.count('alt="kl: samples of') == rows
    assert page.count('<span class="class"></span>') == rows - classes
    assert ("Each row is one class" in page) == (classes > 1)


def test_methods_of_other_data_have_rows_and_names_of_their_own(tmp_path):
    data = [Shapes(size=16, num_classes=n, count=8, test_count=40) for n in (3, 4)]
    jobs = [job for n, of in zip("ab", data, strict=True) for job in build(tmp_path / n, (n,), ("sample",), data=of)]
    run = Run(tmp_path, jobs)
    assert run.class_name(0) == "class 0", "which has two names"
    a, b = samples(run).split("Each row is one class")[1:]
    for page, own, other, classes in ((a, "a", "b", data[0]), (b, "b", "a", data[1])):
        assert f'alt="{other}: ' not in page
        names = open_dataset(classes, "test").classes
        assert all(f'<span class="class">{name}</span>' in page for name in names)
        assert f'alt="{own}: samples of {names[-1]}"' in page
    assert "(16 × 16 pixels, 3 classes) and <b>shapes</b> (16 × 16 pixels, 4 classes): <b>a</b>" in summary(run)


def test_classes_have_their_names_where_there_are_no_test_images(tmp_path):
    root = tmp_path / "latents"
    for name in ("cat", "dog", "eel"):
        (root / name).mkdir(parents=True)
        np.save(root / name / "0.npy", np.ones((2, 3, 3), np.float32))
    (job,) = build(tmp_path, ("a",), ("sample",), data=Shapes(size=32, num_classes=3, count=8, test_count=40))
    job.recipe = replace(job.recipe, data=LatentsData(root=str(root)))
    run = Run(tmp_path, [job])
    assert run.classes == ("cat", "dog", "eel")
    assert '<span class="class">dog</span>' in samples(run)
    assert "(32 × 32 pixels, 3 classes)" in summary(run)


def test_methods_that_differ_in_their_generators_alone_share_a_row_of_reconstructions(tmp_path):
    jobs = build(tmp_path, ("short", "other", "long"), ("latents", "evaluate"))
    first, _, last = (job for job in jobs if job.stage.name == "latents")
    last.folder = first.folder
    page = reconstructions(Run(tmp_path, jobs))
    assert page.count('alt="short, long: reconstructions"') == page.count('alt="other: reconstructions"') == 3
    assert page.count("<img") == 9
