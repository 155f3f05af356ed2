"""What tests of `dmvae plan` share: options, how its tables are read, and costs that stand for any stage's."""

from dataclasses import replace

from dmvae.commands import plan
from dmvae.training.counting import Cost

PLAN = ("--gpus", "2", "--variant", "kl", "--memory")
COST = Cost(
    trained=1, frozen=0, weights=2, state=2**31, working=4, saved=2**30, spread=0, spread_gradients=0, flops=1.0
)
LITTLE = replace(COST, state=1, saved=1)
"""Which fits every machine."""


def count_only(monkeypatch, *stages, others=LITTLE):
    """Plans count a step of these stages alone, and say that the others take `others`: a stage takes about a second."""
    count = plan._cost
    monkeypatch.setattr(plan, "_cost", lambda stage, *of: count(stage, *of) if stage.name in stages else others)


def rows(text, word):
    """Cells of the rows of that stage, in both tables."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith(f"│ {word} ")]
