"""Words of messages."""

from __future__ import annotations


def counted(count: int, one: str, many: str = "") -> str:
    """ "1 image", "12,000 images"; `many` where it is not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
