import half_run
import pytest

from dmvae.report import latent_map


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return half_run.build(tmp_path_factory.mktemp("serve"))


@pytest.fixture(autouse=True)
def few_points(monkeypatch):
    """A map of fewer points: to lay out 2000 takes seconds."""
    monkeypatch.setattr(latent_map, "POINTS", 30)
