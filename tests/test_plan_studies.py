"""`dmvae plan` of a study: seeds share a table, and the sum of all that is to do."""

import tiny
from dmvae.commands import plan
from dmvae.recipe import load
from plans import COST, count_only, rows

H100 = plan.Machine(1, 80 * 10**9, True, speed=1.0)


def test_seeds_share_a_table_while_they_have_come_as_far(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    recipes = load(tiny.write(tmp_path, variants={"one": {}, "two": {"seed": 5}}, seeds={"one": [0, 1]}))
    plan.print_plan(recipes, H100)
    out = capsys.readouterr().out
    assert "one@1: trains the same as one@0, from another seed" in out
    assert "two: trains the same as one@0, from another seed" in out
    assert len(rows(out, "generator")) == 2
    begun = plan._begun
    monkeypatch.setattr(plan, "_begun", lambda job: ("interrupted", 0) if job.variant == "one@1" else begun(job))
    plan.print_plan(recipes, H100)
    out = capsys.readouterr().out
    assert [row[-1] for row in rows(out, "generator")[::2]] == ["new", "interrupted"]


def test_what_is_to_do_is_summed_over_variants_and_what_they_share_counts_once(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch, others=COST)
    kl = tiny.RECIPE["variants"]["kl"]
    recipes = load(tiny.write(tmp_path, variants={"one": kl, "more": kl | {"sample": {"count": 24}}}))
    plan.print_plan(recipes, H100)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("to do"))
    # tokenizer and generator of 6 steps each, latents; two times sample and evaluate
    disk = 2 * (3 * (COST.saved + COST.state) + COST.saved)
    assert line == f"to do, shared stages once: 7 stages, 12.0 s of training, {disk / 2**30:.1f} GiB of disk"
    monkeypatch.setattr("dmvae.jobs.Job.state", "finished")
    plan.print_plan(recipes, H100)
    assert "to do, shared stages once: 0 stages\n" in capsys.readouterr().out
