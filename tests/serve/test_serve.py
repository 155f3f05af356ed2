"""The page of `dmvae serve` on a half finished run: what it shows, what it names, and what it keeps to itself."""

import base64
import http.client
import io
import json
import re
import shutil
import socket
import sys
from dataclasses import replace
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import yaml
from half_run import opened, served
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

from dmvae import cli
from dmvae.datasets import open_dataset
from dmvae.evaluation.pairs import psnr
from dmvae.report import latent_map
from dmvae.serve import views
from dmvae.serve.server import is_local

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(run_dir):
    return opened(run_dir)


def pixels(uri):
    return pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def close(a, b):
    """Equal to one grey level: batches of other sizes round differently."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def kept(run_dir):
    return load_file(run_dir / "kl/evaluate/pictures.safetensors")


def test_what_is_not_there_yet_is_named(folder):
    found = views.overview(folder)
    assert [m["tokenizer"] for m in found["methods"]] == ["tokenizer", "latents"]
    assert found["missing"]["map"] == ["matched: its stage evaluate is not finished"]
    assert found["missing"]["samples"] == ["matched: no generator is finished yet"]
    assert found["missing"]["between"] == found["missing"]["results"] == []
    assert "Not finished: matched. Their rows in the table are" in views.results(folder)["html"]
    assert found["images"] == {"count": 24, "source": "test images of shapes"}
    names = open_dataset(folder.run.recipes["kl"].data, "test").classes
    assert found["classes"] == [{"label": label, "name": name} for label, name in enumerate(names)]


def test_a_run_that_has_not_begun_is_shown_with_all_that_it_lacks(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/stages")
    empty = opened(tmp_path / "run", data=False)
    found = views.overview(empty)
    assert all(found["missing"].values())
    assert views.latents(empty)["panels"] == []
    assert views.results(empty) == {"html": ""}
    assert {stage["text"] for stage in views.progress(empty)["stages"]} == {"not begun"}
    with pytest.raises(ValueError, match="kl has no tokenizer yet"):
        empty.tokenizer("kl")
    with pytest.raises(ValueError, match="there is no image 0; there are 0"):
        empty.image(0)


def test_reconstructions_are_those_that_were_measured(folder, run_dir):
    found = views.copies(folder, "kl", 5)
    copy, original = (kept(run_dir)[name][5] for name in ("reconstructions", "originals"))
    assert close(pixels(found["copy"]), copy)
    assert torch.equal(pixels(views.image(folder, 5)["original"]), original)
    assert found["psnr"] == f"PSNR {psnr(original[None], pixels(found['copy'])[None]).item():.2f} dB"
    assert views.copies(folder, "matched", 5)["stage"] == "tokenizer"


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_the_way_between_two_images_begins_and_ends_at_their_reconstructions(folder, run_dir, path):
    found = views.between(folder, "kl", 2, 7, path)
    frames = pixels(found["strip"]).chunk(views.FRAMES, dim=2)
    assert close(frames[0], kept(run_dir)["reconstructions"][2])
    assert close(frames[-1], kept(run_dir)["reconstructions"][7])
    with pytest.raises(ValueError, match="neither 'linear' nor 'slerp'"):
        views.between(folder, "kl", 2, 7, "arc")


def test_samples_are_those_of_the_stage_and_come_with_their_steps(folder, run_dir):
    made = load_file(run_dir / "kl/sample/guidance-1/samples-00000.safetensors")
    label = int(made["labels"][0])
    asked = {"count": 2, "guidance": 1.0, "steps": 2, "seed": 0, "sampler": "euler"}
    *steps, last = views.samples(folder, "kl", label, **asked)
    assert steps == [{"step": 1, "of": 2}, {"step": 2, "of": 2}]
    first, second = map(pixels, last["images"])
    assert close(first, made["images"][0])
    assert not torch.equal(first, second)
    other = list(
        views.samples(folder, "kl", None, **asked | {"seed": 1, "sampler": "sde", "guidance": 2.0})
    )  # of no class
    assert other[-2] == {"step": 3, "of": 3}  # its last step, without noise, comes on top
    for wrong, message in (
        ({"label": 3}, "class 3 is not one that kl's generator has learned; those are 0, 1, 2"),
        ({"method": "matched"}, "matched has no generator yet"),
        ({"method": "k"}, "no method is called 'k'"),
        ({"sampler": "eul"}, "did you mean 'euler'"),
    ):
        with pytest.raises(ValueError, match=message):
            views.samples(folder, **{"method": "kl", "label": 0} | asked | wrong)


def test_a_point_of_the_map_shows_its_own_image(folder, run_dir):
    found = views.latents(folder)
    reference, kl = found["panels"]
    assert reference["reference"]
    assert (kl["method"], kl["reference"], kl["behind"]) == ("kl", False, 0)
    assert len(kl["points"]) == len(kl["labels"]) == len(kl["places"]) == 24
    assert all(0 <= x <= 1 for panel in found["panels"] for point in panel["points"] for x in point)
    labels = open_dataset(folder.run.recipes["kl"].data, "test").labels
    assert kl["labels"] == labels[torch.tensor(kl["places"])].tolist()
    point = views.point(folder, "kl", 9, reference=False)
    assert torch.equal(pixels(point["original"]), kept(run_dir)["originals"][9])
    assert close(pixels(point["copy"]), kept(run_dir)["reconstructions"][9])
    assert pixels(views.point(folder, "matched", 0, reference=True)["copy"]).shape == (3, 12, 12)
    for method, message in (("kl", "no point 24"), ("matched", "matched has no map")):
        with pytest.raises(ValueError, match=message):
            views.point(folder, method, 24, reference=False)
    with pytest.raises(ValueError, match="kl has no reference"):
        views.point(folder, "kl", 0, reference=True)


def test_planes_of_two_kinds_are_both_told(folder, monkeypatch):
    """Where the latents of one method are too few for t-SNE, say."""
    kinds = iter(["t-SNE", "PCA"])

    def embed(group):
        for cloud in group:
            cloud.plane = np.zeros((len(cloud.places), 2))
        return next(kinds)

    monkeypatch.setattr(latent_map, "planes", lambda clouds: [[cloud] for cloud in clouds])
    monkeypatch.setattr(latent_map, "embed", embed)
    assert views.latents(folder)["how"] == "t-SNE or PCA"


def test_curves_of_a_training_that_goes_on(run_dir, folder):
    found = views.progress(folder)
    assert found["order"].index("matching") < found["order"].index("decoder") < found["order"].index("latents")
    state = {(stage["method"], stage["stage"]): stage for stage in found["stages"]}
    assert state["matched", "matching"]["text"].startswith("step 4 of 8, written ")
    assert state["matched", "matching"]["share"] == 0.5
    assert state["matched", "decoder"]["state"] == "new"
    assert "matching" in found["logged"]
    found = views.curves(folder, "matching")["html"]
    assert "student/loss" in found
    assert "<img" not in found
    for step in (2, 4):
        place = run_dir / "matched/matching/pictures" / f"step-{step:08d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (step, 1)).save(place)
    (uri,) = re.findall(r'src="(data:[^"]*)"', views.curves(folder, "matching")["html"])
    assert pixels(uri).shape == (3, 1, 4), "the newest one"
    assert "matched, step-00000004" in views.curves(folder, "matching")["html"]
    with pytest.raises(ValueError, match="did you mean 'matching'"):
        views.curves(folder, "matchin")


def test_without_the_data_set_the_pictures_that_the_run_keeps(run_dir, folder):
    shut = opened(run_dir, data=False)
    assert shut.classes == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert "the data set is not opened" in shut.image_source
    assert torch.equal(shut.image(3), kept(run_dir)["originals"][3])
    assert views.copies(shut, "kl", 3) == views.copies(folder, "kl", 3)


def test_a_run_that_was_copied_without_its_latents_is_shown(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    for shard in (tmp_path / "run").glob("stages/latents-*/latents/*"):
        shard.unlink()
    found = views.overview(opened(tmp_path / "run"))
    assert [known["label"] for known in found["classes"]] == [0, 1, 2]


def test_without_the_data_set_it_is_not_opened_for_the_table_either(run_dir, monkeypatch):
    shut = opened(run_dir, data=False)
    monkeypatch.setattr("dmvae.report.run.open_dataset", lambda *_: pytest.fail("the data set is opened"))
    assert "This run has 2 methods" in views.results(shut)["html"]


def test_a_point_of_a_method_with_data_of_its_own_has_no_image_of_another_s(run_dir):
    other = opened(run_dir)
    data = other.run.recipes["kl"].data
    other.run.recipes["matched"] = replace(other.run.recipes["matched"], data=replace(data, seed=data.seed + 1))
    first = next(iter(other.run.recipes))
    assert first == "matched"
    assert views.point(other, "kl", 9, reference=False)["original"] is None
    assert (other.image_source, other.image_count) == ("test images of shapes", 24)
    assert not torch.equal(other.image(0), kept(run_dir)["originals"][0])


# ------------------------------------------------------------------ over HTTP


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


# ------------------------------------------------------------------ the command


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
