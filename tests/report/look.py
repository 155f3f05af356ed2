"""`python tests/report/look.py FOLDER [N]`: write the report of a made-up run with N methods, to look at."""

import sys
from pathlib import Path

from fake_run import build

from dmvae.report import write_report

NAMES = (
    "matched",
    "kl",
    "matched-w1",
    "plain",
    "gaussian",
    "kl-weak",
    "no-gan",
    "wide",
    "deep",
    "lambda-1",
    "lambda-30",
    "late",
)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(write_report(folder, build(folder, NAMES[: int(sys.argv[2]) if len(sys.argv) > 2 else 2])))
