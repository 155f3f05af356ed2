"""`dmvae measure latents`: figures of latents whose shape is known."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import entropy, gaussian_kde

from complaints import complain
from dmvae import cli
from dmvae.commands.latents import measure_latents
from dmvae.evaluation.shape import compared, shape
from dmvae.evaluation.uniformity import density_figures, uniformity
from dmvae.report.latent_map import class_colours
from dmvae.transport import two_sample


@pytest.fixture
def quick(monkeypatch):
    """Classifiers whose accuracy is not asked for."""
    monkeypatch.setattr(two_sample, "STEPS", 20)


def drawn(n=1500, classes=3, apart=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian latents [n, 4, 2, 2] of mean 1 and deviation 2, about the centres of their classes."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, 4, 2, 2, generator=rng)
    return 1 + 2 * torch.randn(n, 4, 2, 2, generator=rng) + apart * centres[labels], labels


@pytest.mark.slow
def test_gaussian_latents_are_at_the_gaussian_and_tell_no_class():
    found, arrival = shape(*drawn())
    assert arrival.arrived
    assert 0.7 < found["distance_whole"] < 1.3
    assert abs(found["token_accuracy"] - 0.5) < 0.06
    assert found["effective_rank"] == pytest.approx(4, abs=0.02)
    assert found["rank_whole"] == pytest.approx(16, abs=0.3)
    assert found["kurtosis"] == pytest.approx(3, abs=0.1)
    assert found["mean_max"] == pytest.approx(1, abs=0.1)
    assert (found["std_min"], found["std_max"]) == pytest.approx((2, 2), abs=0.1)
    assert found["knn"] < 0.45
    assert found["class_share"] < 0.01


def test_classes_show_and_move_latents_from_the_gaussian(quick):
    found, arrival = shape(*drawn(600, apart=6.0))
    assert not arrival.arrived
    assert min(found["knn"], found["linear_probe"]) > 0.95
    assert found["class_share"] > 0.5
    assert found["distance_whole"] > 2
    assert found["rank_to_reference"] < 0.8


@pytest.mark.slow
def test_a_constant_factor_is_seen_beside_other_latents_and_not_beside_the_gaussian(quick):
    z, labels = drawn(1000)
    assert shape(3 * z, labels)[1].spread == pytest.approx(shape(z, labels)[1].spread, rel=1e-4)
    beside = shape(3 * z[:400], None, z[400:])[0]
    assert beside["spread_to_reference"] == pytest.approx(3, rel=0.05)
    assert "knn" not in beside


def test_the_rank_of_latents_is_their_own_whatever_they_stand_beside(quick):
    z, _ = drawn(600)
    narrow = z[300:] * torch.tensor([1, 1, 1, 0.05]).view(4, 1, 1)
    alone, beside = shape(z[:300], None)[0], shape(z[:300], None, narrow)[0]
    assert beside["rank_whole"] == pytest.approx(alone["rank_whole"], rel=1e-4)
    assert beside["rank_to_reference"] < 0.5


def test_the_command_measures_checks_and_compares(tmp_path, capsys, quick):
    for name, apart in (("a", 0.0), ("b", 6.0)):
        z, labels = drawn(400, apart=apart)
        (tmp_path / name).mkdir()
        save_file({"latents": z, "labels": labels}, tmp_path / name / "x.safetensors")
        cli.main(["measure", "latents", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json")])
    told = capsys.readouterr().out
    assert "normalised by channel, to a standard Gaussian: arrived" in told
    assert "linear probe" in told
    held = json.loads((tmp_path / "a.json").read_text())
    assert held["metrics"]["effective_rank"] == pytest.approx(4, abs=0.1)
    assert f"{held['metrics']['kurtosis']:.4g} " in told
    assert f"{held['metrics']['kurtosis']:.5g}" not in told
    assert len(held["channels"]["mean"]) == 4
    cli.main(["measure", "--check", str(tmp_path / "a.json")])
    assert "agrees" in capsys.readouterr().out
    cli.main(["measure", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "kurtosis" in capsys.readouterr().out
    cli.main(["measure", "latents", str(tmp_path / "a"), str(tmp_path / "b"), "--limit", "300"])
    assert "300 latents against 300" in capsys.readouterr().out


def test_density_figures_are_those_of_the_densities_and_0_1_0_where_these_are_equal():
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    even = density_figures(np.stack([np.cos(turn), np.sin(turn)], 1))
    assert list(even.values()) == pytest.approx([0, 1, 0], abs=1e-6)
    points = np.random.default_rng(0).standard_normal((80, 2))
    density = gaussian_kde(points.T)(points.T)
    found = density_figures(points)
    assert found["density_cv"] == pytest.approx(density.std() / density.mean())
    assert found["density_entropy"] == pytest.approx(entropy(density) / np.log(80))
    apart = np.abs(density[:, None] - density).mean() / (2 * density.mean())
    assert found["density_gini"] == pytest.approx(apart)


def test_uniformity_is_of_a_vector_of_each_latent_and_by_channel(tmp_path, capsys, quick):
    z = drawn(300)[0]
    scales = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1)  # powers of 2, which round nothing
    assert uniformity(scales * z) == uniformity(z) != uniformity(z.flip(3))
    # as docs/measure.md warns
    clusters = 5 * torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(2))
    assert uniformity(z + clusters[torch.arange(300) // 100])["density_cv"] < uniformity(z)["density_cv"]
    with pytest.raises(ValueError, match="at least 100"):
        uniformity(z[:99])
    save_file({"latents": z}, tmp_path / "x.safetensors")
    file = tmp_path / "scores.json"
    cli.main(["measure", "latents", str(tmp_path), "--uniformity", "--json", str(file)])
    assert "Gini" in capsys.readouterr().out
    assert json.loads(file.read_text())["metrics"]["density_gini"] == pytest.approx(uniformity(z)["density_gini"])
    cli.main(["measure", "--check", str(file)])
    assert "agrees" in capsys.readouterr().out
    assert "takes no --uniformity" in complain(capsys, "measure", "folder", tmp_path, tmp_path, "--uniformity")[1]


def test_uniformity_of_collapsed_latents_is_refused():
    """t-SNE would end the process, or make a line of which there is no density."""
    z, along = drawn(100)[0], torch.arange(100.0).view(-1, 1, 1, 1)
    for flat, rank in ((torch.ones_like(z), 0), (z[:, :1], 1), (along.expand(100, 4, 2, 2), 1)):
        with pytest.raises(ValueError, match=f"vary in 2 directions, and these vary in {rank}; leave it out"):
            uniformity(flat)


@pytest.mark.slow
def test_of_wide_latents_no_more_samples_are_drawn_than_are_compared(monkeypatch):
    z = torch.randn(40, 4, 2, 2)
    assert len(compared(z, None)[2]) == 5120
    monkeypatch.setattr("dmvae.evaluation.shape.ROOM", 16 * 50)
    assert len(compared(z, None)[2]) == 101
    assert shape(z, None)[1].spread > 0.5


@pytest.mark.slow
def test_a_picture_shows_latents_beside_what_they_are_compared_with(tmp_path, monkeypatch, quick):
    monkeypatch.setattr("dmvae.report.latent_map.POINTS", 60)
    for name, classes in (("$a$", True), ("b", False)):
        z, labels = drawn(200, apart=6.0)
        (tmp_path / name).mkdir()
        save_file({"latents": z} | ({"labels": labels} if classes else {}), tmp_path / name / "x.safetensors")
    for words in (("$a$",), ("b", "$a$")):
        file = tmp_path / f"{len(words)}.svg"
        paths = [str(tmp_path / word) for word in words]
        cli.main(["measure", "latents", *paths, "--picture", str(file), "--json", str(tmp_path / "scores.json")])
        shown = file.read_text()
        assert f"beside {f'{tmp_path.name}/$a$' if paths[1:] else 'a standard Gaussian'}" in shown
        for colour in class_colours([0, 1, 2]).values():
            assert (colour in shown) == (words == ("$a$",))
    assert '"picture"' not in (tmp_path / "scores.json").read_text()  # else --check would draw again


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    save_file({"latents": torch.randn(40, 4, 2, 2)}, tmp_path / "a.safetensors")
    save_file({"latents": torch.randn(400, 3, 2, 2)}, tmp_path / "b.safetensors")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert (
        "latents [4, 2, 2] and reference [3, 2, 2]: give latents of one shape"
        in complain(capsys, "measure", "latents", a, b)[1]
    )
    assert "give at least 32" in complain(capsys, "measure", "latents", a, "--limit", 20)[1]
    assert "--limit must be at least 1, got 0" in complain(capsys, "measure", "latents", a, "--limit", 0)[1]
    assert "measure latents takes no --seed" in complain(capsys, "measure", "latents", a, "--seed", 0)[1]
    assert "measure latents takes no --size" in complain(capsys, "measure", "latents", a, "--size", 32)[1]
    assert (
        "name a file that ends in .png, .svg, .pdf"
        in complain(capsys, "measure", "latents", a, "--picture", tmp_path / "a.jpeg")[1]
    )
    assert (
        "measure folder takes no --picture"
        in complain(capsys, "measure", "folder", a, a, "--picture", tmp_path / "a.png")[1]
    )
    assert "does not exist" in complain(capsys, "measure", "latents", tmp_path / "nowhere")[1]


@pytest.mark.parametrize("numbers", [[0, 10**12, 7], [-1, 0, 1]])
def test_numbers_of_classes_are_names_alone(numbers, tmp_path, quick):
    z, labels = drawn(90, apart=6.0)
    save_file({"latents": z, "labels": labels}, tmp_path / "a.safetensors")
    save_file({"latents": z, "labels": torch.tensor(sorted(numbers))[labels]}, tmp_path / "b.safetensors")
    a, b = (measure_latents(str(tmp_path / name))["metrics"] for name in ("a.safetensors", "b.safetensors"))
    assert a == b
    assert a["linear_probe"] > 0.6
