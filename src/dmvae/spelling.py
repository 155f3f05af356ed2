"""The known word that a misspelt one may mean, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' or the full list, to close an error about an unknown word."""
    known = list(known)
    found = close(word, known)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known) or 'none'}"


def close(word: str, known: Iterable[str]) -> list[str]:
    """The known word that is most like this one, if any is."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
