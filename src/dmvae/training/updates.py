"""What a stage's `updates` gives, checked: the stage, and what it asks for a loss, may be a plugin's."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor

from dmvae.spelling import nearest
from dmvae.training.stage import Update


def as_turns(stage: str, found: object) -> Iterator[object]:
    """Raises ValueError, naming the stage, for what was returned in place of being yielded."""
    if not isinstance(found, Iterator):
        what = type(found).__name__
        raise ValueError(f"stage {stage}: updates returned {what}; yield each Update, and return nothing")
    return found


def as_update(stage: str, found: object, trains: Collection[str]) -> Update:
    """The update. Raises ValueError, naming the stage, unless it is one of those that there are, and its loss a scalar
    that depends on something which trains."""
    if not isinstance(found, Update):
        raise ValueError(f"stage {stage}: updates yielded {type(found).__name__}; give Update(name, loss, figures)")
    if found.trains not in trains:
        unknown = f"an Update is called {found.trains!r}, which networks.trains does not have"
        raise ValueError(f"stage {stage}: {unknown}{nearest(found.trains, trains)}")
    loss: object = found.loss
    if not isinstance(loss, Tensor) or loss.ndim:
        told = f"has shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
        raise ValueError(f"{stage}: the loss of {found.trains!r} {told}; give a scalar")
    if not loss.requires_grad:
        raise ValueError(f"{stage}: the loss of {found.trains!r} depends on nothing that trains; is it detached?")
    return found
