"""Which images of each method the map of latents shows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmvae.models.whitening import mapped, whitening
from dmvae.report import latent_map
from dmvae.report.run import Run
from dmvae.runtime.done import write_done


def places_of(counts, classes=10):
    """Those of a reference and of methods with so many images, whose classes follow one another in turn."""
    clouds = [
        latent_map.Cloud(str(i), str(i), np.zeros((n, 3)), np.arange(n) % classes, is_reference=i == 0)
        for i, n in enumerate(counts)
    ]
    (group,) = latent_map.planes(clouds)
    return [cloud.places for cloud in group]


def test_a_reference_in_units_of_its_own_is_drawn_in_those_of_the_latents():
    """Latents of the reference's own law, which are normalised, lie where its samples do."""
    z = torch.randn(400, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(400, dtype=torch.int64)
    there = {
        "reference": {"a": {"latents": 3 + 5 * z[:200], "labels": labels[:200]}},
        "evaluate": {"a": {"map_latents": z[200:].flatten(1), "map_labels": labels[200:]}},
    }
    recipes = {"a": SimpleNamespace(seed=0, data="here")}
    run = SimpleNamespace(
        variants=["a"],
        recipes=recipes,
        folders=lambda stage: {"a": "here"},
        tensors=lambda stage, name: there.get(stage, {}),
    )
    reference, own = latent_map.clouds_of(run)
    assert own.reference is reference
    assert np.abs(reference.latents.mean(0)).max() < 0.3
    assert reference.latents.std() == pytest.approx(own.latents.std(), rel=0.05)
    assert latent_map._note(own, [reference, own]) in [
        f"mixing with the reference, scale aside: {share} %" for share in range(45, 51)
    ]


@pytest.mark.parametrize("whitened", [True, False])
def test_latents_that_a_generator_learns_otherwise_are_drawn_as_they_are_encoded(whitened):
    """The reference's samples are not whitened, and have no statistics that somebody gave."""
    z = torch.randn(300, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    z[:, 1] = z[:, 0] + 0.02 * z[:, 1]
    labels = torch.zeros(300, dtype=torch.int64)
    statistics = {"mean": torch.tensor([1.0, 2.0]), "std": torch.tensor([5.0, 0.1])}
    if whitened:
        statistics |= {"mean": z.mean((0, 2, 3)), "std": z.std((0, 2, 3))}
        statistics["whitening"] = whitening(torch.cov(z.transpose(0, 1).flatten(1)), 1.0)
    learned = (z - statistics["mean"].view(-1, 1, 1)) / statistics["std"].view(-1, 1, 1)
    learned = mapped(statistics["whitening"], learned) if whitened else learned
    there = {
        "reference": {"a": {"latents": z, "labels": labels}},
        "latents": {"a": statistics},
        "evaluate": {"a": {"map_latents": learned.flatten(1), "map_labels": labels}},
    }
    run = SimpleNamespace(
        variants=["a"],
        recipes={"a": SimpleNamespace(seed=0, data="here")},
        folders=lambda stage: {"a": "here"},
        tensors=lambda stage, name: there[stage],
    )
    reference, own = latent_map.clouds_of(run)
    np.testing.assert_allclose(own.latents, reference.latents, atol=1e-3)


@pytest.mark.parametrize(("distance", "began"), [(0.03, True), (0.09, True), (0.35, False), (70.0, False)])
def test_a_page_tells_where_latents_began(tmp_path, distance, began):
    (tmp_path / "report.json").write_text(json.dumps({"distance": distance, "floor": 0.05}))
    run = Run(tmp_path, [])
    run.folders = lambda stage: {"a": tmp_path, "b": tmp_path, "none": tmp_path / "other"}
    (told,) = latent_map._began(run)
    assert "the latents of <b>a</b>, <b>b</b> were" in told
    apart = {0.03: "0.60", 0.09: "1.80", 0.35: "7.00", 70.0: "1,400"}[distance]
    assert f"{apart} times as far" in told
    assert ("so they began at it" in told) == began


def test_what_was_measured_before_matching_is_as_it_was_written(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"distance": 0.03, "floor": 0.05}))
    write_done(tmp_path, {"seconds": 1.0})
    run = Run(tmp_path, [])
    run.folders = lambda stage: {"a": tmp_path}
    assert len(latent_map._began(run)) == 1
    (tmp_path / "report.json").write_text(json.dumps({"distance": 9.03, "floor": 0.05}))
    with pytest.raises(ValueError, match=r"report\.json is corrupt"):
        latent_map._began(run)


def test_methods_show_different_images():
    reference, first, second = places_of([40, 40, 41])
    assert reference.tolist() == [*range(40)]
    assert sorted([*first, *second]) == [*range(41)]
    assert abs(len(first) - len(second)) < 5
    again = places_of([40, 40, 41])
    assert all(np.array_equal(a, b) for a, b in zip(again, (reference, first, second), strict=True))


@pytest.mark.parametrize("methods", [2, 5])
def test_every_method_shows_every_class(methods):
    """With every second image of classes in turn, a method of two would show half of ten classes."""
    for places in places_of([1000] * (1 + methods)):
        assert len({*(places % 10)}) == 10
        assert len(places) > 100


def clouds_of(variants, there, data=None, seeds=None):
    """The map's clouds, (title, title of the reference), of a run whose variants have these tensors."""
    recipes = {v: SimpleNamespace(seed=(seeds or {}).get(v, 0), data=(data or {}).get(v, "x")) for v in variants}
    run = SimpleNamespace(
        variants=variants,
        recipes=recipes,
        folders=lambda stage: {v: v for v in there.get(stage, ())},
        tensors=lambda stage, name: there.get(stage, {}),
    )
    return [(cloud.title, cloud.reference and cloud.reference.title) for cloud in latent_map.clouds_of(run)]


def test_every_method_has_a_cloud_by_the_first_of_its_seeds_that_was_measured():
    z = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(40, dtype=torch.int64)
    reference, own = {"latents": z, "labels": labels}, {"map_latents": z.flatten(1), "map_labels": labels}
    both = {"reference": {"x@4": reference, "x@16": reference}, "evaluate": {"x@4": own, "x@16": own}}
    assert [title for title, _ in clouds_of(["x@4", "x@16"], both)] == [
        *("reference of x@4", "reference of x@16", "x@4", "x@16")
    ]
    second = {"reference": {"m@1": reference}, "evaluate": {"m@1": own}}
    assert clouds_of(["m@0", "m@1"], second, seeds={"m@1": 1}) == [("reference", None), ("m@1", "reference")]


def test_methods_that_differ_in_their_generators_alone_share_a_panel():
    """They had one each, of different images of the same latents, which looked like different latents."""
    z = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    own = {"map_latents": z.flatten(1), "map_labels": torch.zeros(40, dtype=torch.int64)}
    names = ["small", "other", "large"]
    run = SimpleNamespace(
        variants=names,
        recipes={name: SimpleNamespace(seed=0, data="x") for name in names},
        folders=lambda stage: {"small": "a", "other": "b", "large": "a"} if stage == "latents" else {},
        tensors=lambda stage, name: dict.fromkeys(names, own) if stage == "evaluate" else {},
    )
    assert [(c.variant, c.title) for c in latent_map.clouds_of(run)] == [("small", "small, large"), ("other", "other")]


def test_latents_of_other_data_are_not_set_beside_a_reference_that_they_never_had():
    z = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(40, dtype=torch.int64)
    own = {"map_latents": z.flatten(1), "map_labels": labels}
    there = {"reference": {"a": {"latents": z, "labels": labels}}, "evaluate": {"a": own, "kl": own, "far": own}}
    found = dict(clouds_of(["a", "kl", "far"], there, data={"far": "other"}))
    assert found == {"reference": None, "a": "reference", "kl": "reference", "far": None}


def test_planes_that_were_made_in_two_ways_are_told_of_both():
    text = latent_map._how(["t-SNE", "PCA"], 2)
    assert "The plane is t-SNE or PCA; each row" in text
    assert "neighbours together" in text
    assert "the flat view" in text
