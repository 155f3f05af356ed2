"""What tests of `dmvae plan` share: options, how its tables are read, and a cost that stands for any stage's."""

from dmvae.training.counting import Cost

PLAN = ("--gpus", "2", "--variant", "kl", "--memory")
COST = Cost(
    trained=1, frozen=0, weights=2, state=2**31, working=4, saved=2**30, spread=0, spread_gradients=0, flops=1.0
)


def rows(text, word):
    """Cells of the rows of that stage, in both tables."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith(f"│ {word} ")]
