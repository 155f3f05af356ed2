"""One table over finished runs of one recipe, as a rule its seeds, with each method's gFD against the last one's:

for s in 0 1 2; do dmvae run recipes/demo.yaml --seed $s --run_dir runs/demo-$s; done
python -m benchmarks.seeds runs/demo-0 runs/demo-1 runs/demo-2
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

COLUMNS = ("psnr", "ssim", "rfd", "gfd", "coverage", "generator_loss", "knn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    summaries = {run: json.loads((run / "summary.json").read_text()) for run in parser.parse_args().runs}
    methods = list(next(iter(summaries.values()))["methods"])
    print("| run | method | " + " | ".join(COLUMNS) + " | gfd ratio |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    for run, summary in summaries.items():
        base = summary["methods"][methods[-1]]["gfd"]
        for method in methods:
            row = summary["methods"][method]
            cells = [f"{row[c]:.4g}" for c in COLUMNS]
            print(f"| {run} | {method} | {' | '.join(cells)} | {row['gfd'] / base:.2f} |")
    for method in methods:
        cells = [_spread([s["methods"][method][c] for s in summaries.values()]) for c in COLUMNS]
        ratios = [s["methods"][method]["gfd"] / s["methods"][methods[-1]]["gfd"] for s in summaries.values()]
        print(f"| mean and spread | {method} | {' | '.join(cells)} | {_spread(ratios)} |")


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


if __name__ == "__main__":
    main()
