"""Statistics on disk, ours and other projects', and manifests that say what may be compared."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dmvae import cli
from dmvae.commands.score_files import read_scores
from dmvae.evaluation.feature_set import FeatureSet
from dmvae.evaluation.features import POOL, SPATIAL
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.manifest import differences, require_comparable, require_same, unknown
from dmvae.evaluation.reference_statistics import read_statistics

FEATURES = "effnet-lite0@32"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / name / f"{i}.png")
    return tmp_path / "a", tmp_path / "b"


def run(*arguments):
    cli.main(["measure", *map(str, arguments)])


def test_a_kept_reference_gives_the_same_figures(folders, tmp_path):
    common = ["--features", FEATURES, "--workers", 0, "--json"]
    left = [tmp_path / f"{name}.99.part" for name in ("b.safetensors", "one.json", "another")]
    for part in left:  # of processes that were killed
        part.mkdir()
    run("folder", *folders, "--save-reference", tmp_path / "b.safetensors", *common, tmp_path / "one.json")
    assert [part.exists() for part in left] == [False, False, True], "what belongs to these files is swept"
    run("folder", folders[0], tmp_path / "b.safetensors", *common, tmp_path / "two.json")
    one, two = read_scores(tmp_path / "one.json"), read_scores(tmp_path / "two.json")
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-9)
    assert one["manifest"]["reference"] == two["manifest"]["reference"]
    run("--compare", tmp_path / "one.json", tmp_path / "two.json")


@pytest.mark.slow
def test_what_was_made_differently_is_not_compared(folders, tmp_path, capsys):
    common = ["--workers", 0, "--json"]
    kept = tmp_path / "b.safetensors"
    run("folder", *folders, "--features", FEATURES, "--save-reference", kept, *common, tmp_path / "one.json")
    other = ["folder", folders[0], kept, "--features", "effnet-lite0@48", *common, tmp_path / "two.json"]
    with pytest.raises(SystemExit):
        run(*other)
    said = capsys.readouterr().err
    assert "features.name: 'effnet-lite0@32', 'effnet-lite0@48'" in said
    assert "--force" in said
    with pytest.warns(UserWarning, match="features.resolution: 32, 48"):
        run(*other, "--force")
    run("folder", folders[0], folders[0], "--features", FEATURES, *common, tmp_path / "three.json")
    with pytest.raises(SystemExit):
        run("--compare", tmp_path / "one.json", tmp_path / "three.json")
    assert "reference.fingerprint" in capsys.readouterr().err


@pytest.fixture
def moments():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Statistics.of(x)


def test_statistics_of_adm_and_jit(tmp_path, moments):
    arrays = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    np.savez(tmp_path / "jit.npz", **arrays)
    np.savez(tmp_path / "adm.npz", **arrays, mu_s=np.ones(3), sigma_s=np.eye(3), arr_0=np.zeros((2, 4, 4, 3), "uint8"))
    for name in ("jit", "adm"):
        read = read_statistics(tmp_path / f"{name}.npz")
        assert torch.equal(read.moments(POOL).covariance, moments.covariance)
        assert read.moments(POOL).n is None
        assert read.pool is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert frechet_distance(read.moments(POOL), moments) == pytest.approx(0, abs=1e-9)
    assert read.moments(SPATIAL).covariance.equal(torch.eye(3).double())


def test_statistics_of_torch_fidelity(tmp_path, moments):
    torch.save({"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}, tmp_path / "cached.pt")
    assert torch.equal(read_statistics(tmp_path / "cached.pt").moments(POOL).mean, moments.mean)


def test_files_that_hold_no_statistics_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(ValueError, match="no mu and sigma"):
        read_statistics(tmp_path / "other.npz")
    np.savez(tmp_path / "shapes.npz", mu=np.ones(2), sigma=np.ones((3, 3)))
    with pytest.raises(ValueError, match="not statistics"):
        read_statistics(tmp_path / "shapes.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        read_statistics(tmp_path / "nan.npz")
    for name, content in (("no.npz", b"no"), ("empty.npz", b""), ("no.pt", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no"):
            read_statistics(tmp_path / name)


def test_foreign_statistics_measure_with_a_warning_of_what_they_do_not_tell(folders, tmp_path):
    generator = torch.Generator().manual_seed(0)
    foreign = Statistics.of(torch.randn(1300, 1280, generator=generator))
    np.savez(tmp_path / "b.npz", mu=foreign.mean.numpy(), sigma=foreign.covariance.numpy())
    with pytest.warns(UserWarning, match="only one of the two tells features"):
        run(
            "folder",
            folders[0],
            tmp_path / "b.npz",
            "--features",
            FEATURES,
            "--workers",
            0,
            "--json",
            tmp_path / "x.json",
        )
    assert list(read_scores(tmp_path / "x.json")["metrics"]) == [f"fd_{FEATURES}"]


def test_saved_features_come_back(tmp_path):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    found = FeatureSet({"images": {"count": 9}}, {POOL: x, "other": x}, labels=torch.arange(9))
    found.save(tmp_path / "x.safetensors")
    back = FeatureSet.load(tmp_path / "x.safetensors")
    assert torch.equal(back.pool, x)
    assert torch.equal(back.labels, torch.arange(9))
    assert back.manifest == found.manifest
    assert back.statistics[POOL].n == 9
    assert "other" not in back.rows


def test_differences_name_their_place():
    a = {"reference": {"path": "/x", "count": 3, "size": 32}, "versions": {"torch": "2"}}
    b = {"reference": {"path": "/y", "count": 4}, "versions": {"torch": "2", "timm": "1"}}
    assert differences(a, b) == ["reference.count: 3, 4"]
    assert unknown(a, b) == ["reference.size"]
    with pytest.raises(ValueError, match=r"do not compare: reference\.count: 3, 4\. --force"):
        require_same(a, b, "these")
    sampled = {"measured": {"steps": 5}}, {"measured": {"steps": 9}}
    require_comparable(*sampled)


def test_scores_of_another_version_of_dmvae_compare_with_a_word():
    a, b = ({"count": 3, "versions": {"dmvae": dmvae, "torch": "2"}} for dmvae in ("0.1.0", "0.2.0"))
    with pytest.warns(UserWarning, match=r"the scores differ: versions\.dmvae: '0\.1\.0', '0\.2\.0'"):
        require_comparable(a, b)
    for other in (b | {"count": 4}, {"count": 3, "versions": {"dmvae": "0.1.0", "torch": "3"}}):
        with pytest.raises(ValueError, match=r"the scores do not compare: (count|versions\.torch)"):
            require_comparable(a, other)
