"""The stages, in order: the only list of them. Commands, checks, the dry run and the report follow from it.

A recipe's plugins may bring more (`@stage("name", after="decoder")`): `stages()` has those too.
"""

from __future__ import annotations

from dmvae.registry import find, names
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
    """STAGES and the stages of plugins, each behind the stage that it comes after.

    Raises ValueError for a plugin's stage whose `after` names no stage.
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
    return tuple(order)
