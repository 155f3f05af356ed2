"""The stages, in order: the only list of them. Commands, checks, the dry run and the report follow from it.

A recipe's plugins may bring more (`@stage("name", after="decoder")`): `stages()` has those too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import get_args

from dmvae.datasets import Split
from dmvae.registry import find, names
from dmvae.sections import Sections
from dmvae.spelling import nearest
from dmvae.stages.decoder import DecoderTrainingStage
from dmvae.stages.encoder import EncoderStage
from dmvae.stages.evaluate import EvaluateStage
from dmvae.stages.generator import GeneratorStage
from dmvae.stages.latents import LatentsStage
from dmvae.stages.matching import MatchingStage
from dmvae.stages.reference import ReferenceStage
from dmvae.stages.sample import SampleStage
from dmvae.stages.tokenizer import TokenizerStage
from dmvae.training.stage import AnyStage, Stage

STAGES: tuple[AnyStage, ...] = (
    EncoderStage,
    TokenizerStage,
    ReferenceStage,
    MatchingStage,
    DecoderTrainingStage,
    LatentsStage,
    GeneratorStage,
    SampleStage,
    EvaluateStage,
)


def stages() -> tuple[AnyStage, ...]:
    """STAGES and the stages of plugins, each behind the stage that its `after` names.

    Raises ValueError for a plugin's stage whose `after`, `reads`, `needs`, `uses` or `splits` names what does not
    exist.
    """
    order = list(STAGES)
    waiting = [found for name in names(Stage) if (found := find(Stage, name)) not in STAGES]
    while waiting:
        places = {known.name: place for place, known in enumerate(order)}
        ready = [(places[new.after] + 1, new) for new in waiting if new.after in places]
        if not ready:
            new = waiting[0]
            raise ValueError(
                f"stage {new.name!r}: it comes after {new.after!r}, which is no stage; known: {', '.join(places)}"
            )
        order.insert(*ready[0])
        waiting.remove(ready[0][1])
    for place, new in enumerate(order):
        if new not in STAGES:
            _require_known(new, [known.name for known in order[:place]])
    return tuple(order)


def _require_known(new: type[Stage[object]], before: Sequence[str]) -> None:
    """Raise ValueError for unknown names in a stage's declarations. Its fingerprint would silently lack what they mean,
    and outdated results would be used."""
    sections = [section.name for section in fields(Sections)]
    for what, known, kind in (
        ("reads", before, "stage before it"),
        ("needs", before, "stage before it"),
        ("uses", [*sections, *before], "section of recipes"),
        ("splits", get_args(Split), "split"),
    ):
        given: object = getattr(new, what)
        if not isinstance(given, tuple):
            raise ValueError(f"stage {new.name!r}: {what} is {given!r}; give a tuple of names")
        for name in given:
            if name.partition(".")[0] not in known:
                raise ValueError(f"stage {new.name!r}: {what} names {name!r}, which is no {kind}{nearest(name, known)}")
