"""Fields that a recipe sets and that have no effect with its other settings. A run says so and goes on: a recipe that
extends another may have them from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from dmvae.config import default_of
from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.discriminators.features import FeatureGANConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.matching import Matching
from dmvae.recipe import Recipe
from dmvae.references import ReferenceConfig
from dmvae.references.data import DataConfig
from dmvae.references.features import FeaturesReference
from dmvae.references.mixture import MixtureReference
from dmvae.references.text import TextReference
from dmvae.registry import is_ours
from dmvae.runtime.words import few
from dmvae.sections import AutoencoderShape
from dmvae.stages.editing import DRAWN, EDITED
from dmvae.stages.elsewhere import is_linked
from dmvae.tokenizers.reshaped import ReshapedTokenizer
from dmvae.training.flow import FlowTraining
from dmvae.training.stage import TrainingStage


def part(recipe: Recipe, place: str) -> object:
    """What a recipe has in a place like "matching.model"; None without it."""
    found: object = recipe
    for name in place.split("."):
        found = getattr(found, name, None)
    return found


def sized(recipe: Recipe, place: str) -> bool:
    """Whether a flow model's `size` gives its width, depth, heads and patch size."""
    return getattr(part(recipe, place), "size", None) is not None


def _headless(recipe: Recipe, place: str) -> bool:
    found = part(recipe, place)
    return type(found) is FlowModelConfig and found.head_width is None


def _without(recipe: Recipe, *names: str) -> bool:
    """Whether a recipe has none of these stages, and none from a plugin, which may do the same work."""
    return all(is_ours(stage) and stage.name not in names for stage in recipe.stages())


def _users(recipe: Recipe) -> set[str]:
    """The stages that depend on `losses`."""
    found = {stage.name for stage in recipe.stages() if "losses" in {of.partition(".")[0] for of in stage.uses}}
    return found - {"matching"} if _reshaped(recipe) else found


def _reshaped(recipe: Recipe) -> bool:
    """Whether a matching trains a bijection alone, and so reconstructs nothing."""
    return isinstance(recipe.pretrained, ReshapedTokenizer)


def _unopposed(recipe: Recipe) -> bool:
    """Whether no decoder is trained against the adversary of `losses`."""
    apart = {"decoder"} if part(recipe, "decoder.adversarial") is not None else set()
    return _users(recipe) <= apart


def _weightless(recipe: Recipe, place: str) -> bool:
    """Whether decoders are trained against an adversary of weight 0, which is none. What is unopposed is told of all
    its fields, as this is of all but the weight."""
    unopposed = place == "losses.adversarial" and _unopposed(recipe)
    return not unopposed and getattr(part(recipe, place), "weight", 1) == 0


def _without_it(recipe: Recipe, place: str, by: str) -> bool:
    unopposed = _weightless(recipe, place) or (place == "losses.adversarial" and _unopposed(recipe))
    return not unopposed and not getattr(part(recipe, place), by, True)


def _too_late(recipe: Recipe, every: str, of: str) -> bool:
    """Whether every training whose stage says something in its attribute `of` has fewer steps than the field `every` of
    `run`."""
    trained = [stage for stage in recipe.stages() if issubclass(stage, TrainingStage) and getattr(stage, of)]
    return all(recipe.section(stage).steps < getattr(recipe.run, every) for stage in trained)


def _unflipped(recipe: Recipe) -> bool:
    """Whether no stage trains on images. The generator does where it encodes them itself."""
    on_latents = {"generator"} if recipe.latents.stored is None else set()
    flip = {s.name for s in recipe.stages() if issubclass(s, TrainingStage) and s.flips and not s.draws}
    return is_ours(type(recipe.data)) and flip <= on_latents


def _linked(recipe: Recipe) -> bool:
    """Whether latents lie in shards that are used as they are; False for data that cannot be opened."""
    with suppress(ValueError):
        return is_linked(recipe)
    return False


def _unloaded(recipe: Recipe) -> bool:
    """Whether nothing takes the weights that the tokenizer's encoder could begin with."""
    own, tokenizer = recipe.section("encoder"), recipe.section("tokenizer")
    if recipe.pretrained is not None:  # all of the encoder is idle then
        return False
    if own is not None or tokenizer is None:  # what the stage `encoder` has trained is taken
        return _without(recipe) and getattr(own, "start", None) != "public"
    start = tokenizer.start or ("scratch" if tokenizer.train_encoder else "pretrained")
    aligned = tokenizer.alignment is not None and tokenizer.alignment.target is None  # to the encoder as it was
    return _without(recipe) and start == "scratch" and not aligned


def _untaught(recipe: Recipe) -> bool:
    """Whether no teacher is trained, though the recipe does not say so itself: the velocity has a closed form."""
    reference = recipe.section("reference")
    return bool(reference.teacher and not reference.trains)


def _unlabelled(recipe: Recipe) -> bool:
    """Whether the reference's labels mean nothing, so that matching tells its networks "no label"."""
    found: ReferenceConfig = recipe.section("reference").distribution
    return is_ours(type(found)) and not found.labelled


def _unreduced(recipe: Recipe, place: str) -> bool:
    """Whether a reference made from data learns no MLP that reduces channels; `features` has the tokenizer's."""
    found = part(recipe, place)
    if not isinstance(found, DataConfig) or not is_ours(type(found)):
        return False
    return found.reduction != "bottleneck" or isinstance(found, FeaturesReference)


def _mixed(recipe: Recipe, place: str, by: str) -> bool:
    """Whether the reference is a mixture that this field says."""
    found = part(recipe, place)
    return isinstance(found, MixtureReference) and bool(getattr(found, by))


def _captioned(recipe: Recipe, place: str, *, files: bool) -> bool:
    """Whether the reference is of captions in files, or of those that templates make."""
    found = part(recipe, place)
    return isinstance(found, TextReference) and (found.captions is not None) == files


def _objective(recipe: Recipe) -> Matching:
    found: Matching = recipe.section("matching").objective
    return found


def _ours(recipe: Recipe) -> bool:
    """Whether the objective and those in it are the package's, of which it is known what they read."""
    found = _objective(recipe)
    return all(is_ours(type(part)) for part in (found, *found.parts().values()))


def _no_velocity(recipe: Recipe) -> bool:
    """Whether the matching trains no velocity."""
    parts = _objective(recipe).parts().values()
    return _ours(recipe) and not any(part.has_student and part.learns_velocity for part in parts)


def _copied(recipe: Recipe) -> bool:
    matching, reference = recipe.section("matching"), recipe.section("reference")
    return matching.model != reference.model and (_no_velocity(recipe) or (_ours(recipe) and reference.trains))


def _of_one_density(recipe: Recipe, place: str) -> bool:
    return getattr(part(recipe, place), "divergence", None) == "reverse_kl"


def _unread(recipe: Recipe, name: str) -> bool:
    """Whether the sampler does not read a field."""
    return name in recipe.section("sample").unread()


def _unguided(recipe: Recipe, place: str) -> bool:
    """Whether velocities are guided by themselves. A scale of 1 does something: it asks for them once, not twice."""
    found = part(recipe, place)
    return is_ours(type(found)) and getattr(found, "guidance", 1.0) != 1 and _unlabelled(recipe)


MODELS = ("reference.model", "matching.model", "generator.model", "tokenizer.alignment.model")
"""Where a recipe has flow models."""
DISTRIBUTIONS = ("reference.distribution", "reference.distribution.of", "reference.distribution.fit")
"""Where it has references."""
OBJECTIVES = ("matching.objective", "matching.objective.far", "matching.objective.near")
"""Where it has objectives."""
SHAPE, ADVERSARY, TEACHING = (
    "|".join(dict.fromkeys(field.name for cls in classes for field in dataclasses.fields(cls) if field.name != "steps"))
    for classes in ((AutoencoderShape,), (PatchGANConfig, FeatureGANConfig), (FlowTraining,))
)
"""All their fields but `steps`: whoever tries a Gaussian in a recipe with a teacher need not be told of them."""
AGAINST = ADVERSARY.replace("weight|", "")
"""What an adversary has besides its weight."""
IDLE: Mapping[str, tuple[Callable[[Recipe], bool], str]] = {
    "run.shard_bf16|shard_in_node|reshard": (lambda r: not r.run.shard, "it only acts with run.shard: true"),
    **{
        f"run.{every}": (partial(_too_late, every=every, of=of), f"{who} trains for so many steps")
        for every, of, who in (
            ("picture_every", "shows", "no stage that makes pictures"),
            ("measure_every", "measured", "no stage that is measured"),
            ("keep_every", "name", "no stage"),
        )
    },
    "run.measure_samples": (
        lambda r: not 0 < r.run.measure_every <= getattr(r.section("generator"), "steps", 0),
        "no generator is measured while it trains (run.measure_every)",
    ),
    "data.valid_fraction": (lambda r: getattr(r.data, "apart", False), "data.root has train and test images apart"),
    "data.flip": (_unflipped, "no stage trains on images; latents.mirrored stores mirrored ones"),
    f"autoencoder.{SHAPE}": (lambda r: r.pretrained is not None, "`pretrained` is the tokenizer"),
    "autoencoder.bottleneck_width": (
        lambda r: part(r, "autoencoder.latent_channels") is None,
        "latent_channels: null is no bottleneck",
    ),
    "autoencoder.detail_width": (
        # a tokenizer that is not measured may be made for another recipe to train on
        lambda r: part(r, "evaluate") is not None and _without(r, "matching") and not part(r, "tokenizer.train_detail"),
        "the network stays at zero; a matching trains it, or tokenizer.train_detail: true",
    ),
    "autoencoder.encoder.checkpoint": (_unloaded, "the encoder begins with random weights"),
    "losses.l1|l2|perceptual": (lambda r: not _users(r), "no stage trains a decoder"),
    f"losses.adversarial.{ADVERSARY}": (
        _unopposed,
        "no stage trains a decoder against it; what decoder.adversarial gives is the decoder's own",
    ),
    "losses.adversarial.start|learn_from": (
        lambda r: r.section("tokenizer") is None and not _unopposed(r) and not _weightless(r, "losses.adversarial"),
        "it is a share of the stage tokenizer, which there is not",
    ),
    **{
        f"{place}.{names}": (partial(unread, place=place), why)
        for place in ("losses.adversarial", "decoder.adversarial")
        for names, unread, why in (
            (AGAINST, _weightless, "weight: 0 trains no discriminator"),
            ("cutout", partial(_without_it, by="augment"), "augment: false blanks nothing"),
            ("adaptive_most", partial(_without_it, by="adaptive"), "adaptive: false is `weight` as it stands"),
        )
    },
    "latents.dtype|shard_size": (_linked, "the shards of data.root are used as they lie"),
    "latents.whitening": (lambda r: part(r, "autoencoder.latent_channels") == 1, "one channel has no correlations"),
    "latents.drawn": (lambda r: part(r, "matching.noise") in DRAWN, "matching.noise draws them already"),
    "tokenizer.alignment.m1|m2|pairs": (lambda r: part(r, "tokenizer.alignment.kind") == "l2", "they are of kind: vf"),
    f"reference.{TEACHING}": (_untaught, "no teacher is trained"),
    "reference.drawn": (
        lambda r: r.pretrained is None and not part(r, "autoencoder.variational"),
        "the tokenizer has no posteriors (autoencoder.variational)",
    ),
    **{
        f"{place}.{names}": (partial(unread, place=place), why)
        for place in DISTRIBUTIONS
        for names, unread, why in (
            ("reduction_width|reduction_steps", _unreduced, "no MLP is learned that reduces channels"),
            ("std|scale", partial(_mixed, by="fit"), "a mixture with `fit` has what it is fitted to"),
            ("components|std|conditional", partial(_mixed, by="file"), "the file says it"),
            ("dilated", lambda r, place: part(r, f"{place}.stride") == 32, "stride 32 is the network's own"),
            ("templates", partial(_captioned, files=True), "captions are in their place"),
            ("column|label_column", partial(_captioned, files=False), "they are of captions in files"),
        )
    },
    "matching.train_encoder|decoded": (_reshaped, "a `reshaped` tokenizer's bijection trains alone"),
    "matching.model": (_copied, "the student is a copy of the teacher (reference.model), or no velocity is trained"),
    "matching.student_steps": (lambda r: not _objective(r).has_student, "its objective trains no student"),
    "matching.time_shift|time_distribution|time_mean|time_std": (_no_velocity, "its objective trains no velocity"),
    "matching.label_dropout": (
        lambda r: _no_velocity(r) or (_ours(r) and _unlabelled(r)),
        "its objective trains no velocity, or the reference's labels mean nothing",
    ),
    "matching.target": (
        lambda r: r.section("matching").balance != "distance" and r.section("matching").until is None,
        "it only acts with matching.balance: distance or matching.until: arrived",
    ),
    "matching.noise_width|noise_bank": (
        lambda r: r.section("matching").noise not in EDITED,
        "no samples are edited (matching.noise: reference or assigned)",
    ),
    **{
        f"{place}.{names}": (partial(unread, place=place), why)
        for place in OBJECTIVES
        for names, unread, why in (
            ("ratio_width|ratio_depth", _of_one_density, "it only acts with a divergence other than reverse_kl"),
            ("guidance", _unguided, "the reference's labels mean nothing, and nothing is asked with one"),
        )
    },
    **{
        f"sample.{name}": (partial(_unread, name=name), why)
        for names, why in (
            (("last_step", "diffusion"), "it only acts with sample.method: sde"),
            (("last_step_kind",), "it only acts with sample.method: sde and a last step"),
            (("atol", "rtol"), "it only acts with sample.method: dopri5"),
            (("time_shift",), "sample.method: dopri5 chooses its times"),
        )
        for name in names
    },
    "sample.guidance_interval|guidance_channels": (
        lambda r: set(r.section("sample").guidance) == {1.0},
        "a guidance scale of 1 guides nothing",
    ),
    **{
        f"{place}.{names}": (partial(unread, place=place), why)
        for place in MODELS
        for names, unread, why in (
            ("width|depth|heads|patch_size", sized, f"{place}.size says it"),
            ("head_depth|head_heads", _headless, "head_width: null is no head"),
        )
    },
}
"""Field, or several of one section (`a|b`) -> (whether nothing reads it in a recipe with that section, why). Most
fields whose default is null are not here: the `problems` of their stages refuse them."""


def idle(recipes: Mapping[str, Recipe], beside: Mapping[str, Recipe] | None = None) -> list[str]:
    """A line on each field that is not at its default and has no effect; it names the variants unless these are all.

    A field whose value another variant reads, of these or of those `beside` them, is left out: what several variants
    use stands at the top of a recipe."""
    given = {variant: list(_given(recipe)) for variant, recipe in recipes.items()}
    all_of = [*given.values(), *(list(_given(recipe)) for recipe in (beside or {}).values())]
    read = [(place, item) for of in all_of for place, unread, items in of if not unread for item in items]
    found: dict[str, list[str]] = {}
    for variant, of in given.items():
        for place, unread, items in of:
            alone = [(name, value) for name, value in items if unread and (place, (name, value)) not in read]
            told = [f"{name}{_shown(value)}" for name, value in alone]
            if told:
                what = f"{place.rpartition('.')[0]}.{', '.join(told)} {'change' if told[1:] else 'changes'} nothing"
                found.setdefault(f"{what}: {IDLE[place][1]}", []).append(variant)
    return [line + (f" ({few(of)})" if len(of) < len(recipes) else "") for line, of in found.items()]


def _given(recipe: Recipe) -> Iterator[tuple[str, bool, list[tuple[str, object]]]]:
    """(entry of the table, whether nothing reads it, (field, value) of all that are not at their default)."""
    for place, (unread, _) in IDLE.items():
        section, _, names = place.rpartition(".")
        owner = part(recipe, section)
        fields = {f.name: f for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}
        known = [(name, getattr(owner, name), fields[name]) for name in names.split("|") if name in fields]
        if items := [(name, value) for name, value, field in known if value != default_of(field)]:
            yield place, unread(recipe), items


def _shown(value: object) -> str:
    """ ": 3" of what is short; a section or a path is known by its field."""
    if isinstance(value, tuple):
        return f": {list(value)}"
    return f": {value}" if isinstance(value, bool | int | float) else ""
