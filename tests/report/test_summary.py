"""What a summary adds up over the stages of its methods."""

from pathlib import Path
from types import SimpleNamespace

from dmvae.report.summary import summary_of


def job(variant, stage, folder, seconds, **images):
    facts = {"seconds": seconds, "images_seen": images}
    recipe, named = SimpleNamespace(name="mine", seed=0), SimpleNamespace(name=stage)
    of = {"variant": variant, "stage": named, "folder": Path(folder), "recipe": recipe}
    return SimpleNamespace(**of, finished=True, facts=lambda: facts)


def test_a_stage_that_methods_share_counts_for_each_of_them_and_takes_its_time_once():
    shared = ("tokenizer", "shared", 2.0)
    jobs = [
        job("a", *shared, tokenizer=80, discriminator=80),
        job("b", *shared, tokenizer=80, discriminator=80),
        job("b", "generator", "own", 3.0, generator=500),
    ]
    summary = summary_of(jobs, {})
    assert summary["seconds"] == {"tokenizer": 2.0, "generator": 3.0}
    assert summary["methods"] == {
        "a": {"seconds": 2.0, "images_seen": 80},
        "b": {"seconds": 5.0, "images_seen": 80},
    }, "images are those that the tokenizer's own updates have seen"
