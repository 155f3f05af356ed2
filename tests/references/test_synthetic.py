"""Synthetic references: norms, bounds, moments, what the mixture takes from files and from fits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmvae import config as configs
from dmvae.matching import Matching
from dmvae.references.data import initial_latents
from dmvae.references.mixture_fit import _maximise, _plus_plus, fit_mixture
from dmvae.runtime.random import Random
from dmvae.stages.unmet import unmet

CLASSES, SHAPE = 3, (4, 3, 3)  # of the tiny recipe


def draw(reference, n=4000):
    return reference.sample(n, Random("draw"))


def test_sphere_of_channel_vectors(make):
    z, labels = draw(make.build(type="sphere"))
    assert torch.allclose(z.square().sum(1), torch.full((4000, 3, 3), 4.0), atol=1e-4)
    assert torch.allclose(z.var((0, 2, 3)), torch.ones(4), atol=0.05)
    assert z.pow(4).mean() == pytest.approx(3 * 4 / (4 + 2), rel=0.03), "uniform on it: E z^4 = 3 C / (C + 2)"
    assert torch.bincount(labels).tolist() == pytest.approx([1333] * CLASSES, rel=0.1)


def test_sphere_of_whole_latents_with_a_radius(make):
    z, _ = draw(make.build(type="sphere", over="all", radius=2.5))
    assert torch.allclose(z.flatten(1).norm(dim=1), torch.full((4000,), 2.5), atol=1e-4)


def test_cube(make):
    z, _ = draw(make.build(type="cube"))
    assert z.abs().max() <= 3**0.5
    assert z.var() == pytest.approx(1, abs=0.02)
    assert z.pow(4).mean() == pytest.approx(9 / 5, rel=0.03), "uniform in it"
    assert draw(make.build(type="cube", half_width=0.5))[0].abs().max() <= 0.5


def test_synthetic_references_are_at_the_scale_of_the_initial_latents_or_raw(make):
    inputs = make(type="gaussian")
    reference = inputs.sections.reference.distribution.build(inputs)
    initial = initial_latents(inputs)
    assert torch.equal(reference.mean, initial.mean)
    assert torch.equal(reference.std, initial.std)
    assert initial.std.max() < 0.9  # an untrained tokenizer's are of no special scale
    raw = make.build(type="gaussian", scale="raw")
    assert raw.mean.tolist() == [0] * 4
    assert raw.std.tolist() == [1] * 4


def test_random_mixture_has_unit_variance_and_components_per_class(make):
    reference = make.build(type="mixture", components=20, std=0.4)
    assert reference.means.shape == (60, *SHAPE)
    z, labels = draw(reference)
    assert z.var() == pytest.approx(1, abs=0.1)
    assert (reference.joint > 0).sum(1).tolist() == [20] * 3
    assert torch.equal(labels.unique(), torch.arange(3))
    free = make.build(type="mixture", components=5, conditional=False)
    assert free.means.shape == (5, *SHAPE)
    assert torch.allclose(free.joint, torch.full_like(free.joint, 1 / 15))


def test_mixture_from_a_file(make, tmp_path):
    path = tmp_path / "mixture.safetensors"
    means = torch.tensor([[1.0, 0, 0, 0], [0, -2, 0, 0], [0, 0, 3, 0]])
    tensors = {"means": means, "variances": torch.full((3, 4), 0.01), "labels": torch.tensor([0, 1, 2])}
    save_file(tensors | {"weights": torch.tensor([1.0, 1, 2])}, path)
    z, labels = draw(make.build(type="mixture", file=str(path)))
    assert (labels == 2).float().mean() == pytest.approx(0.5, abs=0.03)
    for label in range(3):
        assert torch.allclose(z[labels == label].mean((0, 2, 3)), means[label], atol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"means": torch.zeros(3, 5)}, "needs means of shape"),
        ({"variances": torch.zeros(3, 4)}, "variances and weights positive"),
        ({"labels": torch.tensor([0, 1, 7])}, "0 to 2"),
        ({"weights": torch.ones(2)}, "2 weights"),
    ],
)
def test_what_is_wrong_with_a_mixture_file(make, tmp_path, change, words):
    path = tmp_path / "mixture.safetensors"
    save_file({"means": torch.zeros(3, 4), "variances": torch.ones(3, 4)} | change, path)
    with pytest.raises(ValueError, match=words):
        make.build(type="mixture", file=str(path))
    with pytest.raises(ValueError, match=r"no such file.*nowhere"):
        make.build(type="mixture", file=str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": "mixture", "components": 0}, "components: expected a whole number, 1 to 100000, got 0"),
        ({"type": "mixture", "std": 1.5}, "std: expected a number, above 0, to below 1, got 1.5"),
        ({"type": "mixture", "file": "a", "fit": {"type": "features"}}, "one or the other"),
        ({"type": "sphere", "radius": -1}, r"radius: expected a number, above 0, to 10\^6, got -1"),
        ({"type": "cube", "half_width": 0}, "half_width: expected a number, above 0"),
        ({"type": "noise_states", "time": 1.5}, "time: expected a number, 0 to 1, got 1.5"),
    ],
)
def test_impossible_fields(make, fields, words):
    with pytest.raises(ValueError, match=words):
        make.read(**fields)


def test_expectation_maximisation_finds_separate_components():
    generator = torch.Generator().manual_seed(0)
    centres, stds = torch.tensor([[3.0, 0], [-3, 1], [0, -4]]), torch.tensor([[0.5, 1], [1, 0.3], [0.7, 0.7]])
    label = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 6000, replacement=True, generator=generator)
    x = centres[label] + stds[label] * torch.randn(6000, 2, generator=generator)
    means, variances, weights = fit_mixture(x, 3, seed=1)
    order = torch.cdist(centres.double(), means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert torch.allclose(means[order], centres.double(), atol=0.1)
    assert torch.allclose(variances[order].sqrt(), stds.double(), atol=0.06)
    assert torch.allclose(weights[order], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), atol=0.02)


def test_centres_are_drawn_far_from_all_that_there_are():
    """Two places are near each other, and as good as equally far from a third: the last one drawn is not enough."""
    x = torch.tensor([0.0, 1.0, 1000.0]).double().repeat_interleave(5)[:, None]
    for seed in range(8):
        centres = _plus_plus(x, 3, torch.Generator().manual_seed(seed))
        assert sorted(centres.flatten().tolist()) == [0, 1, 1000], seed


def test_a_variance_counts_the_whole_set_s_as_one_more_sample():
    x, share = torch.tensor([[0.0], [2.0], [10.0]]).double(), torch.tensor([[1.0, 0], [1, 0], [0, 1]]).double()
    means, variances, weights = _maximise(x, share, torch.tensor([6.0]).double())
    assert means.flatten().tolist() == [1, 10]
    assert variances.flatten().tolist() == pytest.approx([(2 * 1 + 6) / 3, (0 + 6) / 2])
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_fit_of_few_and_equal_samples_is_finite():
    means, variances, weights = fit_mixture(torch.ones(3, 2), 5, seed=0)
    assert means.shape == (3, 2)
    assert means.isfinite().all()
    assert (variances >= 1e-3).all(), "a component is not a point"
    assert weights.sum() == pytest.approx(1)


def test_fitted_mixture_has_the_classes_moments(make):
    inputs = make(type="mixture", fit={"type": "features"})
    reference = inputs.sections.reference.distribution.build(inputs)
    data = inputs.sections.reference.distribution.fit.build(inputs)
    z, _ = data.latents.__getitems__(torch.arange(len(data.latents)))
    for label in range(CLASSES):
        assert torch.allclose(reference.means[label], z[data.latents.labels == label].mean(0), atol=1e-4)
    assert torch.equal(reference.mean, data.mean)
    before = (inputs.out / "mixture.safetensors").stat().st_mtime_ns
    again = inputs.sections.reference.distribution.build(inputs)
    assert torch.equal(again.means, reference.means)
    assert (inputs.out / "mixture.safetensors").stat().st_mtime_ns == before


def test_a_mixture_is_fitted_to_data_only(make):
    with pytest.raises(ValueError, match="made from data, which 'sphere' is not"):
        make.build(type="mixture", fit={"type": "sphere"})


@pytest.mark.parametrize(("names", "labelled"), [(None, False), ("labels.npy", True)])
def test_a_mixture_has_the_labels_of_what_it_is_fitted_to(make, tmp_path, names, labelled):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "latents.npy", rng.normal(size=(60, *SHAPE)))
    np.save(tmp_path / "labels.npy", np.arange(60) % 4 % CLASSES)
    array = {"type": "array", "path": str(tmp_path / "latents.npy"), "labels": names and str(tmp_path / names)}
    assert make.read(type="mixture", fit=array).labelled == labelled
    assert not make.read(type="mixture", fit=array, conditional=False).labelled
    joint = make.build(type="mixture", fit=array).joint
    assert bool((joint == joint[0]).all()) == (not labelled)
    shares = [1 / 2, 1 / 4, 1 / 4] if labelled else [1 / 3] * 3
    assert joint.sum(1).tolist() == pytest.approx(shares), "each class as often as it is among the data"


def test_a_function_has_labels_where_it_returns_some(make, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def bare(n, shape, num_classes, rng):\n"
        "    return rng.normal(n, *shape)\n"
        "def none(n, shape, num_classes, rng):\n"
        "    return rng.normal(n, *shape), None\n"
        "def both(n, shape, num_classes, rng):\n"
        "    return rng.normal(n, *shape), rng.integers(num_classes, n)\n"
        "def three(n, shape, num_classes, rng):\n"
        "    return 1, 2, 3\n"
    )
    for name, labelled in {"bare": False, "none": False, "both": True}.items():
        own = {"type": "function", "function": f"{tmp_path / 'mine.py'}:{name}"}
        for distribution in (own, {"type": "noise_states", "of": own}):
            assert make.read(**distribution).labelled_for(make(**distribution)) == labelled
        inputs = make(**own)
        classwise = configs.read(Matching, {"type": "transport", "labels": True})
        found = list(unmet(classwise, inputs.sections.reference, 0.1, inputs))
        assert [problem.partition(":")[0] for problem in found] == ([] if labelled else ["matching.objective.labels"])
        always = replace(inputs.sections.reference, label_dropout=0.0)
        found = list(unmet(configs.read(Matching, {"type": "dmd", "guidance": 1.0}), always, 0.0, inputs))
        assert [problem.partition(":")[0] for problem in found] == ([] if labelled else ["reference.label_dropout"])
    with pytest.raises(ValueError, match=r"three returned 3 values; give latents alone, or \(latents, labels\)"):
        make.build(type="function", function=f"{tmp_path / 'mine.py'}:three")


def test_function_from_a_file(make, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def ring(n, shape, num_classes, generator):\n"
        "    labels = generator.integers(num_classes, n)\n"
        "    return labels.view(-1, 1, 1, 1) + 0 * generator.normal(n, *shape), labels\n"
        "def plain(n, shape, num_classes, generator):\n"
        "    return torch.randn(n, *shape, generator=generator)\n"
        "def wrong(n, shape, num_classes, generator):\n"
        "    return torch.zeros(n, 2)\n"
        "def labels(n, shape, num_classes, generator):\n"
        "    return torch.zeros(n, *shape), torch.full((n,), 9)\n"
        "def beside(n, shape, num_classes, generator):\n"
        "    return torch.randn(n, *shape)\n"
    )
    place = str(tmp_path / "mine.py")
    z, labels = draw(make.build(type="function", function=f"{place}:ring"))
    assert torch.equal(z[:, 0, 0, 0].long(), labels)
    z, labels = draw(make.build(type="function", function=f"{place}:plain"))
    assert z.shape == (4000, *SHAPE)
    assert torch.equal(labels.unique(), torch.arange(CLASSES))
    for function, words in {
        f"{place}:wrong": "latents \\[2, 2\\]",
        f"{place}:labels": "labels from 9 to 9",
        f"{place}:beside": "beside: the same `rng` gave other samples the second time, so no run could be repeated",
        f"{place}:rong": "did you mean 'wrong'",
        f"{tmp_path}/no.py:ring": "cannot be imported",
        "nowhere.at_all:ring": "cannot be imported",
        "ring": "is not package.module:name",
    }.items():
        with pytest.raises(ValueError, match=words):
            make.build(type="function", function=function)


def test_a_function_s_file_is_read_once_and_again_when_it_changes(make, tmp_path):
    for place in (tmp_path / "a" / "b.py", tmp_path / "a_b.py"):  # as one name, were / written as _
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"open({str(tmp_path / 'read')!r}, 'a').write('{place.name}\\n')\nimport torch\n{CONSTANT}")
    here, there = (make.read(type="function", function=f"{p}:constant") for p in (tmp_path / "a/b.py", place))
    inputs = make(type="gaussian")
    for config in (here, there, here, there):
        config.check(inputs)
        assert config.labelled_for(inputs) is False
        assert config.fingerprint()
        assert draw(config.build(inputs), 3)[0].unique().tolist() == [1.0]
    assert (tmp_path / "read").read_text().split() == ["b.py", "a_b.py"]
    before = there.fingerprint()
    place.write_text(place.read_text().replace("torch.ones", "torch.zeros"))
    assert draw(there.build(inputs), 3)[0].unique().tolist() == [0.0]
    assert there.fingerprint() != before


CONSTANT = "def constant(n, shape, num_classes, rng):\n    return torch.ones(n, *shape)\n"


@pytest.mark.parametrize("wrong", ["boom", "raise SystemExit(3)", "1 +", "import nowhere_at_all"])
def test_a_function_s_file_that_fails_is_told_with_its_line(make, tmp_path, wrong):
    (tmp_path / "mine.py").write_text(f"\n{wrong}\n")
    with pytest.raises(ValueError, match=r"^function: '.*mine\.py' cannot be imported \(.*mine\.py, line 2: ") as told:
        make.build(type="function", function=f"{tmp_path / 'mine.py'}:draw")
    assert "plugin" not in str(told.value)


def test_function_by_import_path(make):
    reference = make.build(type="function", function="fixed_reference:zeros")
    z, _ = draw(reference, 3)
    assert torch.equal(z, torch.zeros(3, *SHAPE))
    assert make.read(type="function", function="fixed_reference:zeros").fingerprint()
