"""The server of `dmvae serve`: what it answers, what it keeps to itself, and what the command refuses to serve."""

import http.client
import json
import shutil
import socket
import sys
from urllib.parse import urlencode

import pytest
import yaml
from half_run import opened, served

from dmvae import cli
from dmvae.serve import views
from dmvae.serve.server import is_local

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(run_dir):
    """Asks the running server: (path, headers) -> (status, headers, body)."""
    with served(run_dir) as port:

        def ask(path, method="GET", **headers):
            talk = http.client.HTTPConnection("127.0.0.1", port)
            talk.putrequest(method, path, skip_host="host" in headers)  # as it is: `..` is not resolved before
            for name, value in headers.items():
                talk.putheader(name.replace("_", "-"), value)
            talk.endheaders()
            answer = talk.getresponse()
            body = answer.read()
            talk.close()
            return answer.status, answer.headers, body

        yield ask


def api(name, **values):
    return f"/api/{name}?{urlencode(values)}"


def test_every_address_answers(server):
    asked = {"method": "kl", "label": 0, "guidance": 1.5, "steps": 2, "sampler": "heun", "seed": 3, "count": 2}
    paths = (
        *("/", "/page.js", "/page.css", "/report.css"),
        *(api(name) for name in ("run", "map", "progress", "results")),
        api("image", index=1),
        api("copies", method="kl", index=1),
        api("between", method="kl", a=0, b=1, path="slerp"),
        api("point", method="kl", place=2, reference=0),
        api("curves", stage="tokenizer"),
        api("samples", **asked),
    )
    for path in paths:
        status, headers, body = server(path)
        assert status == 200, (path, body)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
    lines = [json.loads(line) for line in body.splitlines()]
    assert [list(line) for line in lines] == [["step", "of"], ["step", "of"], ["images"]]


def test_the_page_names_no_other_machine(server):
    for path in ("/", "/page.js", "/page.css", "/report.css"):
        assert b"//" not in server(path)[2].replace(b"// ", b""), path  # `// ` opens a comment of the script


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
        "/page.js/../folder.py",
        "/stages",
        "/kl/recipe.yaml",
        "/file=/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/api/../page.py",
        "/api/image/../../recipe.yaml",
        "/static/x",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    assert server(path)[0] == 404


def test_values_are_no_paths(server):
    for name, values in {
        "copies": {"method": "../../kl", "index": 0},
        "between": {"method": "kl", "a": 0, "b": 1, "path": "/etc/passwd"},
        "curves": {"stage": "../../../etc"},
        "image": {"index": "../secret"},
        "point": {"method": "/etc", "place": 0, "reference": 0},
    }.items():
        status, _, body = server(api(name, **values))
        assert status == 400
        assert json.loads(body)["error"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"steps": 0}, "steps is 0: use 1 to 1000"),
        ({"steps": 10**9}, "use 1 to 1000"),
        ({"count": 65}, "count is 65: use 1 to 64"),
        ({"count": 1.5}, "use a whole number"),
        ({"guidance": "nan"}, "guidance is nan"),
        ({"seed": "x"}, "seed: 'x' is no number"),
        ({"seed": ""}, "seed: a number is missing"),
        ({"seed": -4}, "seed is -4: use 0 to 2147483648"),
        ({"label": -1}, "label is -1"),
        ({"sampler": "eular"}, "no sampler is called 'eular'"),
    ],
)
def test_what_cannot_be_drawn_is_told(server, over, message):
    asked = {"method": "kl", "label": 0, "guidance": 1, "steps": 2, "sampler": "euler", "seed": 0, "count": 1}
    status, _, body = server(api("samples", **asked | over))
    assert status == 400
    assert message in json.loads(body)["error"]
    assert json.loads(server(api("samples"))[2]) == {"error": "method is missing"}


def test_other_sites_are_refused(server):
    assert server("/api/run", host="evil.example")[0] == 403
    for here in ("localhost", "127.0.0.2:7860", "[::1]", "[::1]:80"):
        assert server("/", host=here)[0] == 200
    for other in ("[::2]:80", "[::1]evil.example", "::1", "", "10.0.0.1:7860"):
        assert server("/", host=other)[0] == 403
    assert server("/", host="127.0.0.1.evil.example:7860")[0] == 403
    assert server("/api/run", sec_fetch_site="cross-site")[0] == 403
    assert server("/api/run", sec_fetch_site="same-origin")[0] == 200
    assert server("/api/run", host="localhost:7860")[0] == 200
    assert server("/api/run", host="[::1]:7860")[0] == 200
    assert server("/api/run", method="POST")[0] == 405


@pytest.fixture
def complain(capsys, monkeypatch):
    """Runs the command, which is to end in one line: (exit code, the line)."""

    def run(*arguments):
        # a command that is not refused would serve for ever
        monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("the run is served"))
        with pytest.raises(SystemExit) as stop:
            cli.main(["serve", *map(str, arguments)])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return stop.value.code, error

    return run


def test_mistakes_end_in_a_line(run_dir, tmp_path, complain):
    assert "no such folder" in complain(tmp_path / "none")[1]
    assert f"lies in a run's folder; give {run_dir}" in complain(run_dir / "kl")[1]
    assert f"lies in a run's folder; give {run_dir}" in complain(run_dir / "variants.json")[1]
    assert "not a run's folder" in complain(tmp_path)[1]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, error = complain(run_dir, "--port", port)
        assert (code, f"port {port} of 127.0.0.1 is taken; use another: --port {port + 1}" in error) == (2, True)
    assert "use 0 to 65535" in complain(run_dir, "--port", 70000)[1]
    assert "--host 192.0.2.1" in complain(run_dir, "--host", "192.0.2.1")[1]  # of no machine, by RFC 5737


def test_what_is_not_installed_is_named(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        cli.main(["serve", str(run_dir)])
    assert 'uvicorn is not installed: pip install "dmvae[app]"' in capsys.readouterr().err


def test_code_of_the_folder_is_not_run(run_dir, tmp_path, complain):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dmvae.flow.samplers import Sampler\nfrom dmvae.registry import register\n\n\n"
        '@register("mine")\nclass Mine(Sampler):\n    def trajectory(self, *a): ...\n'
    )
    recipe = tmp_path / "run/kl/recipe.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"plugins": [str(plugin)]}))
    code, error = complain(tmp_path / "run")
    assert (code, "code that would be run" in error) == (2, True)
    assert "mine" not in views.overview(opened(run_dir))["samplers"]
    assert "mine" in views.overview(opened(tmp_path / "run", trust=True))["samplers"]


def test_links_that_lead_out_of_the_run_are_refused(run_dir, tmp_path, complain):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    pictures = (tmp_path / "run/kl/evaluate").resolve() / "pictures.safetensors"
    shutil.move(pictures, tmp_path / "secret.safetensors")
    pictures.symlink_to(tmp_path / "secret.safetensors")
    code, error = complain(tmp_path / "run")
    assert (code, "pictures.safetensors leads out of the run" in error) == (2, True)
    assert opened(tmp_path / "run", trust=True).image_count == 24


def test_addresses_of_this_machine_alone():
    assert all(map(is_local, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.1.2", "example.org")))
