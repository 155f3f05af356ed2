"""Words of messages."""

from dmvae.report.figures import of_few
from dmvae.runtime.words import counted


def test_one_thing_is_told_in_the_singular():
    assert [counted(n, "image") for n in (0, 1, 2, 12_000)] == ["0 images", "1 image", "2 images", "12,000 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert of_few([{"count": 1}]).startswith("They rest on 1 image: ")
    assert of_few([{"count": 1}, {"count": 9000, "reference": {"count": 5}}]).startswith("They rest on 1 to 5 images: ")
