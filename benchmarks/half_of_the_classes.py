"""Every second class of a Hugging Face data set, as a folder of parquet files: of Tiny ImageNet the hundred classes
that the published study is of.

    python -m benchmarks.half_of_the_classes DIR [--root zh-plus/tiny-imagenet]

They are the first, third, fifth ... in the order of the labels, which is that of the WordNet ids. Needs the
extra `huggingface`. Rows keep the data set's order; in another order a training would differ as with another seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

PLACES = {"train": "train", "valid": "validation", "val": "validation", "validation": "validation", "test": "test"}
"""Split -> the name of its file, by which `data: {type: huggingface}` finds it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the parquet files go")
    parser.add_argument("--root", default="zh-plus/tiny-imagenet", help="hub id or folder (default: %(default)s)")
    parser.add_argument("--label", default="label", help="column of the labels (default: %(default)s)")
    known = parser.parse_args()
    try:
        import datasets
    except ImportError:
        parser.error('the package datasets is not installed: pip install "dmvae[huggingface]"')
    try:
        found = datasets.load_dataset(known.root)
    except OSError as error:
        parser.error(f"{known.root}: {error}; or give --root FOLDER, with parquet files of the data set")
    for split, rows in found.items():
        if split not in PLACES:
            continue
        if not isinstance(rows.features.get(known.label), datasets.ClassLabel):
            parser.error(f"--label: {known.label} is no column of classes; columns are {', '.join(rows.features)}")
        names = rows.features[known.label].names[::2]
        half = rows.filter(lambda label: label % 2 == 0, input_columns=known.label)
        features = half.features.copy()
        features[known.label] = datasets.ClassLabel(names=names)
        half = half.map(lambda label: {known.label: label // 2}, input_columns=known.label, features=features)
        file = known.folder / f"{PLACES[split]}.parquet"
        known.folder.mkdir(parents=True, exist_ok=True)
        half.to_parquet(file)
        print(f"{file}: {len(half):,} images of {len(names)} classes")


if __name__ == "__main__":
    main()
