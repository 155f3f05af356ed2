"""Stage `evaluate`: reconstructions, samples and latents, measured against the test set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch

from dmvae.evaluation.features import LOGITS, FeaturesConfig
from dmvae.evaluation.metrics import INCEPTION, measured_pairs
from dmvae.evaluation.passes import PARTS
from dmvae.evaluation.probe import HELD_OUT
from dmvae.inputs import Inputs
from dmvae.losses.perceptual import LPIPSPerceptual
from dmvae.registry import is_ours, place_of
from dmvae.runtime import distributed
from dmvae.runtime.files import remove, write_text
from dmvae.runtime.words import counted
from dmvae.sections import Sections
from dmvae.stages.measuring import EvaluateConfig, Measuring
from dmvae.stages.sample import SampleConfig
from dmvae.training.stage import Buildable, Facts, Stage, stage


@stage("evaluate")
class EvaluateStage(Stage[EvaluateConfig]):
    Config = EvaluateConfig
    reads = ("reference", "latents", "generator", "sample")
    splits = ("train", "test")

    def run(self) -> Facts:
        metrics = Measuring(self.config, self.inputs).all()
        if distributed.is_main():
            write_text(self.inputs.out / "metrics.json", json.dumps(metrics, indent=1))
            for parts in self.inputs.out.glob(f"{PARTS}*"):
                remove(parts)
        distributed.barrier()
        return {}

    @classmethod
    def parts(cls, config: EvaluateConfig, sections: Sections) -> Iterator[tuple[str, Buildable]]:
        yield from (("evaluate", features) for features in (config.features, *config.also))
        if config.lpips:
            yield "evaluate.lpips", LPIPSPerceptual()

    @classmethod
    def code(cls, config: EvaluateConfig) -> tuple[type, ...]:
        return (cls, *map(type, config.measured()))

    @classmethod
    def problems(cls, config: EvaluateConfig, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        if len(inputs.test_set) < 2:
            found = counted(len(inputs.test_set), "test image")
            yield f"evaluate: sets of images are compared, and there is {found}; give 2 or more, or set evaluate: null"
        for name, section in (("evaluate", config), ("sample", others.get("sample"))):
            if isinstance(section, EvaluateConfig | SampleConfig) and section.count < 2:
                yield f"{name}.count: 1 image is no set, and sets are compared; give 2 or more, or set evaluate: null"
        blank = torch.zeros(2, inputs.data.channels, inputs.data.size, inputs.data.size, dtype=torch.uint8)
        for metric in config.measured():
            if not is_ours(type(metric)):  # a mistake there would show at the very end
                try:
                    measured_pairs(metric, blank, blank)
                except ValueError as error:
                    yield f"evaluate.metrics: {error}{place_of(error)}"
        if inputs.data.are_latents and "memorisation" in config.metrics:
            yield "evaluate.metrics: memorisation needs training images, and data.type: latents has none; leave it out"
        if "score" in config.metrics and not any(map(_gives_score, (config.features, *config.also))):
            yield (
                "evaluate.metrics: score needs features of type inception with the published weights, those of the "
                "logits among them (docs/measure.md says where they are), and no others give it; leave it out"
            )
        stored = inputs.sections.latents.stored
        latents = min(config.knn_count, len(inputs.train_set), stored or config.knn_count)
        if config.neighbours > latents:
            yield (
                f"evaluate.neighbours: {config.neighbours} neighbours are sought among {counted(latents, 'latent')}; "
                f"use at most {latents}"
            )
        if config.probe and latents < (least := 2 * HELD_OUT):
            yield f"evaluate.probe: it learns from {least} latents or more, and there are {latents}; set it to false"


def _gives_score(features: FeaturesConfig) -> bool:
    """Whether the Inception Score is measured in these features; also where weights are missing, which is told by
    itself."""
    if features.name != INCEPTION:
        return False
    try:
        extractor = features.build()
    except ValueError:
        return True
    return extractor.name == INCEPTION and LOGITS in extractor.widths
