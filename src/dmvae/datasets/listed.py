"""dataset.json, the list of labels that EDM's, EDM2's and REPA's dataset tools leave beside what they have written.

Their folders (00000, 00001, ...) hold a thousand files each and are no classes.
"""

from __future__ import annotations

import json
from pathlib import Path

LIST = "dataset.json"
MOST_CLASSES = 2**20


def listed_labels(folder: Path) -> dict[str, int] | None:
    """Path of a file, relative to the folder and with forward slashes -> its label, as the folder's list says; {} for a
    list that says of no file anything. None where the folder has no such list: no file of that name, or one of another
    kind. Raises ValueError for labels that are no numbers of classes."""
    path = folder / LIST
    try:
        found = json.loads(path.read_text())["labels"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if found is None:
        return {}
    if not isinstance(found, list) or not all(isinstance(row, list) and len(row) == 2 for row in found):
        return None
    labels = {str(name).replace("\\", "/"): label for name, label in found}
    for name, label in labels.items():
        if type(label) is not int or not 0 <= label < MOST_CLASSES:
            raise ValueError(f"{path}: {name} has the label {label!r}; give the numbers of classes, from 0 on")
    return labels
