"""What a matching objective needs and the recipe lacks; checked before any stage runs."""

from __future__ import annotations

from collections.abc import Iterator

from dmvae.inputs import Inputs
from dmvae.matching import Matching
from dmvae.matching.between import BetweenSamples
from dmvae.stages.reference import ReferenceTraining


def unmet(objective: Matching, reference: ReferenceTraining, label_dropout: float, inputs: Inputs) -> Iterator[str]:
    """Messages for what an objective needs and this reference, or `label_dropout` of the matching, does not give."""
    distribution = reference.distribution
    labelled = distribution.labelled_for(inputs)
    for name, part in objective.parts().items():
        place = f"matching.objective{name}"
        if getattr(part, "labels", False) and distribution.labelled and not labelled:  # else `problems` says so
            yield (
                f"{place}.labels: {distribution.type!r} gives latents without labels, so there are no classes to match "
                "one by one; set it to false"
            )
        if isinstance(part, BetweenSamples) and set(part.views) == {"pair"} and inputs.latent_shape[1:] == (1, 1):
            yield (
                f"{place}.views: latents of this tokenizer have a single token (data.size {inputs.data.size}), and so "
                "no pairs of neighbours; give whole or token"
            )
        guidance = getattr(part, "guidance", 1.0)
        teacher = part.needs_teacher and not distribution.closed_form
        if not labelled:  # then teacher and student get "no label" only
            if teacher and reference.label_dropout == 0:
                yield (
                    f"reference.label_dropout: labels of {distribution.type!r} mean nothing, so its teacher is asked "
                    "without one, and 0 teaches it no such velocities; give a share such as 0.1"
                )
            continue
        learned = {
            "reference.label_dropout": (reference.label_dropout, teacher),
            "matching.label_dropout": (label_dropout, part.has_student and part.learns_velocity),
        }
        for field, (share, asked) in learned.items():
            if asked and share == 1 and guidance != 0:
                yield f"{field}: 1 teaches no velocity with a label, and those are asked for; give a share such as 0.1"
            if asked and share == 0 and guidance != 1:
                yield (
                    f"{place}.guidance: {guidance:g} asks for velocities without a label, which {field}: 0 teaches "
                    f"nobody; give {field} a share such as 0.1, or guidance 1"
                )
