import pytest


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No test sees or writes the user's caches, data folder or the Debian package."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("DMVAE_DATA", raising=False)
    return cache / "dmvae"


@pytest.fixture
def private_hub(tmp_path_factory, monkeypatch):
    """Hugging Face's packages without the user's caches."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
    datasets.disable_progress_bars()


@pytest.fixture
def root(tmp_path):
    """A folder of parquet files, of 15 training images and 4 others."""
    from packed import animals

    return animals(tmp_path / "animals")
