"""A hub that does not answer: its cache is looked into at once, and the error says what is the matter."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from dmvae.encoders.timm import TimmEncoder
from dmvae.runtime import hub as module
from dmvae.runtime.hub import hub, hub_file
from dmvae.tokenizers.diffusers import DiffusersTokenizer

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """The hub is asked, without waiting between questions; how often it was."""
    questions = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()  # before 1.0 what was made offline stays so
    session = huggingface_hub.get_session()

    def head(url, **options):
        questions.append(url)
        return session.head(url, **options)

    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: type("Session", (), {"head": staticmethod(head)}))
    module._answers.cache_clear()
    yield questions
    module._answers.cache_clear()


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)


def test_without_an_answer_the_cache_is_all_and_only_within(nobody, asked, capsys):
    for _ in range(2):
        with hub():
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
    assert asked == [NOBODY] * 2  # twice by the first, and within the minute not again
    assert f"{NOBODY} does not answer: taken from its cache" in capsys.readouterr().out


def test_what_the_cache_lacks_is_an_error_that_names_the_hub(nobody):
    with pytest.raises(ConnectionError, match=f"{NOBODY} does not answer, and its cache here, .* lacks"), hub():
        raise FileNotFoundError("cannot find the requested files in the local cache")
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(PermissionError, match="cache"), hub():  # of a file that is there
        raise PermissionError(13, "Permission denied", "cache")
    with pytest.raises(ValueError, match="an argument"), hub():
        raise ValueError("an argument")


def test_any_answer_counts(monkeypatch, asked):
    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(503)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with hub():
            assert not constants.HF_HUB_OFFLINE
        server.shutdown()
    assert len(asked) == 1


def test_nothing_is_asked_for_what_is_here_or_where_the_user_said_so(nobody, asked, tmp_path, monkeypatch):
    with hub(tmp_path):
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub():
        pass
    assert not asked
    assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "fetch",
    [
        lambda: TimmEncoder(model="resnet10t").build(size=32, channels=3, pretrained=True),
        lambda: DiffusersTokenizer(path="nobody/nothing").read_config(),
    ],
)
def test_networks_of_the_hub_are_looked_for_once(nobody, asked, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{NOBODY} does not answer.*HF_HUB_CACHE"):
        fetch()
    assert len(asked) == 2


def test_a_file_is_one_here_or_of_the_hub(nobody, asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "org/repo").mkdir(parents=True)
    (tmp_path / "org/repo/a.pt").touch()
    for here in ("org/repo/a.pt", "org/repo", "a.pt", "../org/repo/a.pt", "/org/repo/b.pt", "runs/x/main/folder"):
        assert str(hub_file(here)) == here
    assert not asked
    with pytest.raises(ValueError, match=rf"org/repo/b\.pt is no file, and on the hub: {NOBODY} does not answer"):
        hub_file("org/repo/b.pt")


def test_a_file_of_the_hub_may_lie_in_folders(tmp_path, monkeypatch):
    """As RAE's released generators, which docs/diffusers.md names, do."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: tmp_path / repository / name)
    place = "nyu-visionx/RAE-collections/DiTs/Dinov2/wReg_base/ImageNet256/DiTDH-XL/stage2_model.pt"
    assert place in (Path(__file__).parents[1] / "docs/diffusers.md").read_text()
    assert hub_file(place) == tmp_path / place
