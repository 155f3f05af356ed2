"""Proxies of gFD: closed forms, invariances, and the order that they put easy and hard latents in."""

import math

import pytest
import torch

from dmvae.datasets.pixels import to_uint8
from dmvae.evaluation import probe, proxies
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.interpolation import interpolated_frechet, slerp
from dmvae.evaluation.online import class_share, linear_flow_loss, neighbour_distance, online_proxies
from dmvae.evaluation.probe import generator_probe
from dmvae.evaluation.proxies import latent_proxies, linear_probe
from dmvae.evaluation.sensitivity import equivariance, smoothness
from draws import normal, rotation


def rotated(z):
    return (z.flatten(1) @ rotation(z[0].numel())).view_as(z)


def clustered(n: int, shape=(4, 2, 2), classes: int = 3, spread: float = 0.3):
    """Latents of unit variance about a centre of each class, and their labels."""
    labels = torch.arange(n) % classes
    z = normal(classes, *shape, seed=1)[labels] + spread * normal(n, *shape, seed=2)
    return (z - z.mean(0)) / z.std(0), labels


def test_linear_probe_separates_what_is_separable_and_nothing_else():
    z, labels = clustered(600)
    assert linear_probe(z[:400], labels[:400], z[400:], labels[400:]) == 1
    noise = normal(600, 4, 2, 2)
    assert linear_probe(noise[:400], labels[:400], noise[400:], labels[400:]) < 0.5


def test_linear_probe_does_not_see_rotation_scale_and_shift():
    z, labels = clustered(900, spread=3)
    split = [labels[:500], z[500:], labels[500:]]
    plain = linear_probe(z[:500], *split)
    assert 0.4 < plain < 1
    moved = 1e-3 * rotated(z) + 5
    assert linear_probe(moved[:500], split[0], moved[500:], split[2]) == pytest.approx(plain, abs=0.01)


def test_linear_probe_in_its_dual_form_is_the_same(monkeypatch):
    z, labels = clustered(700, shape=(18, 2, 2), spread=3)
    split = z[:60], labels[:60], z[60:], labels[60:]
    primal = linear_probe(*split)
    assert 0.4 < primal < 0.9
    monkeypatch.setattr("dmvae.evaluation.proxies.WIDE", 60)
    assert linear_probe(*split) == primal
    every = torch.linspace(0, 119, 60).long()  # of more latents than that, as many, evenly spaced
    thinned = linear_probe(z[every], labels[every], z[120:], labels[120:])
    assert linear_probe(z[:120], labels[:120], z[120:], labels[120:]) == thinned


def test_smoothness_of_a_linear_decoder_of_white_latents_is_the_noise():
    z, weight = normal(2000, 2, 3, 3), normal(18, 4 * 4, seed=1)

    def decode(z):
        return 0.04 * (z.flatten(1) @ weight).view(-1, 1, 4, 4)

    assert smoothness(decode, z, 0.2)["smoothness"] == pytest.approx(0.2, rel=0.03)
    cut = smoothness(decode, z, 0.2, batch_size=70)["smoothness"]
    assert cut == pytest.approx(float(smoothness(decode, z, 0.2)["smoothness"]), rel=1e-5)
    figures = smoothness(decode, z, 0.1, extractor=lambda images: images.flatten(1).float())
    assert figures["smoothness_features"] == pytest.approx(0.1, rel=0.1)


def images(n: int = 40, size: int = 16):
    return torch.randint(256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_equivariant_encoders_have_no_error():
    figures = equivariance(lambda x: torch.nn.functional.avg_pool2d(x.float(), 4), images(), stride=4)
    assert figures == {"equivariance_flip": 0, "equivariance_shift": 0}


def test_borders_are_left_out_and_both_axes_count():
    def edges(x):  # which adds the place at the borders alone
        z = torch.nn.functional.avg_pool2d(x.float(), 4)
        z[..., 0, :] += 9999
        z[..., -1, :] -= 9999
        z[..., 0] += 9999
        z[..., -1] -= 9999
        return z

    assert equivariance(edges, images(), stride=4)["equivariance_shift"] == 0

    def rows(x):  # and one that knows the row
        z = torch.nn.functional.avg_pool2d(x.float(), 4)
        return z + 100 * torch.arange(4.0).view(4, 1)

    assert equivariance(rows, images(), stride=4)["equivariance_shift"] > 0.1


def test_encoders_that_depend_on_position_do_not_commute():
    weight = normal(256, 3 * 16)
    figures = equivariance(
        lambda x: ((x.flatten(1).float() - 127.5) @ weight).view(-1, 3, 4, 4), images(2000), stride=4
    )
    assert figures == pytest.approx({"equivariance_flip": 2**0.5, "equivariance_shift": 2**0.5}, rel=0.05)
    assert set(equivariance(lambda x: x[..., :1, :1].float(), images(), stride=16)) == {"equivariance_flip"}


def decode_tiny(z):
    """[n, 2, 2, 2] -> images in [-1, 1] of 1 channel."""
    return torch.tanh(z.sum(1, keepdim=True)).repeat_interleave(2, 2).repeat_interleave(2, 3)


def pixels(images):
    return images.flatten(1).float()[:, ::5] / 255


def test_interpolated_distance_of_identical_neighbours_is_the_reconstructions():
    z, real = normal(300, 2, 2, 2), Statistics.of(normal(300, 4))
    reconstruction = frechet_distance(real, Statistics.of(pixels(to_uint8(decode_tiny(z)))))
    for path in ("linear", "slerp"):
        same = interpolated_frechet(decode_tiny, z, z.clone(), real, pixels, path=path, batch_size=70)
        assert same == pytest.approx(reconstruction, rel=1e-6)
    unmoved = interpolated_frechet(decode_tiny, z, None, real, pixels, alpha=0)
    assert unmoved == pytest.approx(reconstruction, rel=1e-9)
    assert interpolated_frechet(decode_tiny, z, None, real, pixels) != pytest.approx(reconstruction, rel=1e-3)
    with pytest.raises(ValueError, match="'cubic'"):
        interpolated_frechet(decode_tiny, z, None, real, pixels, path="cubic")


def test_interpolation_between_two_clusters_stays_in_them():
    """Neighbours are of one's own cluster, so the decoded pixels keep the two values that the clusters decode to."""
    z = torch.cat([torch.full((50, 2, 2, 2), -9.0), torch.full((50, 2, 2, 2), 9.0)]) + 0.01 * normal(100, 2, 2, 2)
    real = Statistics.of(pixels(to_uint8(decode_tiny(z))))
    assert interpolated_frechet(decode_tiny, z, None, real, pixels) == pytest.approx(0, abs=1e-9)


def test_slerp_keeps_to_the_circle():
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[0.5**0.5, 0.5**0.5], [3.0, 0.0]]))
    torch.testing.assert_close(slerp(a, b, 0.0), a)


def test_linear_flow_loss_of_noise_is_half_pi():
    assert float(linear_flow_loss(normal(20000, 4, 2, 2))) == pytest.approx(math.pi / 2, rel=1e-3)
    assert float(linear_flow_loss(3 * normal(20000, 4, 2, 2) + 7, over="all")) == pytest.approx(math.pi / 2, rel=1e-2)


def test_linear_flow_loss_is_the_best_linear_velocitys():
    """Regress the velocity on z_t, time by time, of correlated latents."""
    z = normal(4000, 3, 1, 1).flatten(1) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 1.0]])
    z = (z - z.mean(0)) / z.std(0)
    noise, losses = normal(4000, 3, seed=1), []
    for t in (torch.arange(40) + 0.5) / 40:
        z_t, velocity = (1 - t) * noise + t * z, z - noise
        fit = torch.linalg.lstsq(z_t, velocity).solution
        losses.append((velocity - z_t @ fit).square().mean())
    measured = float(linear_flow_loss(z.view(-1, 3, 1, 1)))
    assert measured == pytest.approx(float(torch.stack(losses).mean()), rel=0.02)


def test_labels_that_explain_lower_the_linear_flow_loss():
    z, labels = clustered(900)
    conditional = float(linear_flow_loss(z, labels))
    assert conditional < 0.6 * float(linear_flow_loss(z))
    assert float(linear_flow_loss(z, torch.zeros_like(labels))) == pytest.approx(float(linear_flow_loss(z)), rel=0.1)
    alone = torch.arange(900)
    assert torch.equal(linear_flow_loss(z, alone), linear_flow_loss(z))


def test_linear_flow_loss_of_wide_latents_is_the_same(monkeypatch):
    z, labels = clustered(15)
    plain, conditional = linear_flow_loss(z, over="all"), linear_flow_loss(z, labels, "all")
    monkeypatch.setattr("dmvae.evaluation.latents.WIDE", 15)
    torch.testing.assert_close(linear_flow_loss(z, over="all"), plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(linear_flow_loss(z, labels, "all"), conditional, rtol=1e-5, atol=0)


def test_class_share_is_unbiased_and_bounded():
    z, labels = clustered(60, spread=1.0)
    noise = torch.stack([class_share(normal(12, 4, 2, 2, seed=s), torch.arange(12) % 5) for s in range(200)])
    assert abs(float(noise.mean())) < 0.02
    assert 0.2 < float(class_share(z, labels)) < 0.8
    assert float(class_share(z[:3][labels], labels)) == pytest.approx(1, abs=1e-6)
    assert float(class_share(z, torch.arange(len(z)))) == 0, "a class of one latent shows no variance within"
    assert float(class_share(torch.ones_like(z), labels)) == 0, "no variance, and so none that labels explain"


def test_neighbour_distance_knows_repetition_and_dimension():
    z = normal(128, 4, 2, 2)
    assert float(neighbour_distance(torch.cat([z, z]))) == pytest.approx(0, abs=1e-5)
    flat = (normal(128, 2) @ rotation(16)[:2]).view_as(z)
    assert float(neighbour_distance(z[:1])) == 0
    assert float(neighbour_distance(z[:2])) == pytest.approx(1), "two latents are as far as two latents are"
    assert float(neighbour_distance(flat)) < 0.3 * float(neighbour_distance(z)) < 1


def test_rotation_changes_no_distance_and_no_share():
    z, labels = clustered(64)
    torch.testing.assert_close(neighbour_distance(rotated(z)), neighbour_distance(z))
    torch.testing.assert_close(class_share(rotated(z), labels), class_share(z, labels))


def test_online_proxies_are_functions_of_the_batch_without_gradient():
    z, labels = clustered(32)
    z.requires_grad_()
    before = torch.get_rng_state()
    figures = online_proxies(z, labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(v.ndim == 0 and v.isfinite() and not v.requires_grad for v in figures.values())
    again = online_proxies(z.detach().clone(), labels)
    assert all(torch.equal(again[name], value) for name, value in figures.items())
    moved = online_proxies(torch.tensor([5.0, 1.0, 0.1, -2.0]).view(-1, 1, 1) * z.detach() + 1, labels)
    assert all(torch.allclose(moved[name], value, rtol=1e-3) for name, value in figures.items())
    assert all(v.isfinite() for v in online_proxies(torch.zeros(4, 2, 2, 2), torch.arange(4)).values())


def test_one_vector_has_no_online_proxies():
    assert online_proxies(torch.randn(1, 8, 1, 1), torch.zeros(1, dtype=torch.long)) == {}
    assert all(map(torch.isfinite, online_proxies(torch.randn(1, 8, 1, 2), torch.zeros(1, dtype=torch.long)).values()))


def test_online_smoothness_is_that_of_normalised_latents():
    z, labels = clustered(32, shape=(2, 2, 2))
    z = (z - z.mean((0, 2, 3), keepdim=True)) / z.std((0, 2, 3), keepdim=True)
    figures = online_proxies(5 * z + 1, labels, lambda wide: decode_tiny((wide - 1) / 5), images=20)
    expected = float(smoothness(decode_tiny, z[:20])["smoothness"])
    assert figures["proxy/smoothness"] == pytest.approx(expected, rel=1e-3)


def test_probe_is_a_function_of_latents_and_seed():
    z, labels = clustered(200)
    before = torch.get_rng_state()
    first = generator_probe(z, labels, steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert generator_probe(z, labels, steps=3) == first
    assert generator_probe(z, labels, steps=3, seed=1) != first
    with torch.inference_mode():
        assert generator_probe(z.clone(), labels, steps=3) == first
    with pytest.raises(ValueError, match="square"):
        generator_probe(z[..., :1], labels)


@pytest.mark.slow
def test_probe_finds_clusters_and_low_rank_easier_than_noise(monkeypatch):
    monkeypatch.setattr(probe, "BATCH", 64)
    monkeypatch.setattr(probe, "HELD_OUT_MOST", 250)
    noise = normal(2000, 4, 2, 2)
    low = (normal(2000, 2) @ rotation(16)[:2]).view_as(noise)
    easy, labels = clustered(2000)
    one = torch.zeros_like(labels)
    of_easy, of_low, of_noise = (
        generator_probe(z, y, steps=40)["probe_loss"]
        for z, y in ((easy, labels), (low / low.std(0), one), (noise, one))
    )
    assert max(of_easy, of_low) < 0.9 * of_noise
    assert of_noise > 0.95 * math.pi / 2  # what no velocity does better than


def test_probe_samples_are_measured_through_the_decoder(monkeypatch):
    monkeypatch.setattr(probe, "SAMPLES", 60)
    z, labels = clustered(200, shape=(2, 2, 2))
    real = Statistics.of(pixels(to_uint8(decode_tiny(z))))
    figures = generator_probe(z, labels, steps=3, decode=decode_tiny, extractor=pixels, real=real)
    assert set(figures) == {"probe_loss", "probe_gfd"}
    assert figures["probe_gfd"] > 0


def test_latent_proxies_are_numbers():
    z, labels = clustered(200)
    assert all(math.isfinite(value) for value in latent_proxies(z, labels).values())
    collapsed = latent_proxies(torch.zeros(50, 4, 2, 2), labels[:50])
    assert all(math.isfinite(value) for value in collapsed.values())


@pytest.mark.parametrize("take_turns", [False, True])
def test_the_probe_learns_all_classes_and_is_tested_on_all(monkeypatch, take_turns):
    seen = []
    monkeypatch.setattr(probe, "_train", lambda z, labels, *of: seen.append(labels) or torch.nn.Identity())
    monkeypatch.setattr(probe, "_loss", lambda network, z, labels, seed: seen.append(labels) or 0.0)
    labels = torch.arange(128) % 8 if take_turns else torch.arange(128) // 16
    generator_probe(torch.randn(128, 2, 2, 2), labels)
    assert [part.bincount(minlength=8).tolist() for part in seen] == [[14] * 8, [2] * 8]


@pytest.mark.parametrize("take_turns", [False, True])
def test_latent_proxies_are_of_all_classes(monkeypatch, take_turns):
    """Of 90 latents, 50 are taken: 5 or 6 of each class, whether classes follow one another or take turns."""
    monkeypatch.setattr(proxies, "POINTS", 50)
    seen = []
    monkeypatch.setattr(proxies, "class_share", lambda z, labels: seen.append(labels) or torch.zeros(()))
    labels = torch.arange(90) % 9 if take_turns else torch.arange(90) // 10
    z = torch.randn(90, 2, 2, 2, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    latent_proxies(z, labels)
    assert set(seen[0].bincount(minlength=9).tolist()) == {5, 6}
    assert len(seen[0]) == 50


def test_latent_proxies_of_very_wide_latents_take_no_square_of_their_width():
    z, labels = clustered(64, shape=(50000, 1, 1))
    assert all(math.isfinite(value) for value in latent_proxies(z, labels).values())
    assert linear_probe(z[:50], labels[:50], z[50:], labels[50:]) == 1
    white = linear_flow_loss(normal(64, 50000, 1, 1), over="all")  # 63 of 50,000 variances
    assert float(white) == pytest.approx(math.pi / 2 * (63 / 50000) ** 0.5, rel=1e-2)
