"""What a run left on the disk and is not as it was written: it is named, or made anew, and never used in silence."""

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import pytest

from dmvae import tidying
from dmvae.models.artifact import save_network
from dmvae.runtime import done
from dmvae.runtime.done import damage, read_done, require_intact, write_done, write_source
from dmvae.runtime.files import locked
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.training.logging import read_figures
from hostile import flip


@pytest.fixture
def stage(tmp_path):
    """A finished stage's folder."""
    (tmp_path / "stage/sub").mkdir(parents=True)
    (tmp_path / "stage/map.safetensors").write_bytes(b"a map of latents")
    (tmp_path / "stage/sub/with space.json").write_bytes(b"{}")
    write_done(tmp_path / "stage", {"seconds": 1.5, "config": {"steps": 3}, "odd": (0.1, 1e-300)})
    return tmp_path / "stage"


def unfinished_or(stage):
    """The facts, or None after a warning that names the file."""
    done._warn.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        facts = read_done(stage)
    assert (facts is None) == any("done.json is damaged" in str(w.message) for w in warned)
    return facts


def test_every_byte_of_done_json_counts(stage):
    file = stage / "done.json"
    good, facts = file.read_bytes(), read_done(stage)
    assert facts["config"] == {"steps": 3}
    for place in range(0, len(good), 4):
        flip(file, place)
        found = unfinished_or(stage)
        assert found is None or facts.items() <= found.items()  # the checksum's own name, and white space
        file.write_bytes(good)
    for text in (b"", b"[" * 5000, b"3", b'{"config": 1}', good[:-9]):
        file.write_bytes(text)
        assert unfinished_or(stage) is None


def test_done_json_of_before_has_no_checksum(stage):
    facts = {"seconds": 2, "files": {}}
    (stage / "done.json").write_text(json.dumps(facts))
    assert read_done(stage) == facts
    (stage / "done.json").write_text(json.dumps({"seconds": 2}))
    assert damage(stage, read_done(stage)) is None
    assert require_intact(stage) == stage


def test_the_first_file_that_is_not_as_it_was_written_is_told(stage):
    facts = read_done(stage)
    assert damage(stage, facts) is None
    flip(stage / "sub/with space.json")
    assert damage(stage, facts) == ("sub/with space.json", "is corrupt")
    assert damage(stage, facts, "map.safetensors") is None
    (stage / "map.safetensors").write_bytes(b"a map")
    assert damage(stage, facts) == ("map.safetensors", "has 5 bytes of 16")
    (stage / "map.safetensors").write_bytes(b"a map of latents, and more")
    assert damage(stage, facts) == ("map.safetensors", "has 26 bytes of 16")
    (stage / "map.safetensors").unlink()
    assert damage(stage, facts, "map.safetensors") == ("map.safetensors", "is missing")


def test_a_snapshot_s_network_is_verified_as_its_stage_lists_it(tmp_path):
    folder = tmp_path / "stage/snapshots/step-00000002/generator"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"as they were")
    write_done(tmp_path / "stage", {"seconds": 1.0})
    assert require_intact(folder) == folder
    flip(folder / "weights")
    with pytest.raises(ValueError, match=r"generator.weights is corrupt: it is not as it was written"):
        require_intact(folder)


def test_a_file_is_read_again_when_it_has_changed(stage):
    """A library's user may run, damage and run again in one process."""
    file, facts = stage / "map.safetensors", read_done(stage)
    good = file.read_bytes()
    for _ in range(2):
        assert damage(stage, facts) is None
        flip(file)
        assert damage(stage, facts) is not None
        shutil.copy2(file, stage.parent / "other")
        file.write_bytes(good)


@pytest.mark.parametrize(
    "files",
    [
        {"../precious": [0, 0]}, {"a/../../precious": [0, 0]}, {"": [0, 0]}, ["precious"], {"x": 3}, {"x": [1]},
        {"x": [1, "a"]}, 7,
    ],
)  # fmt: skip
def test_a_list_of_somebody_else_s_files_removes_nothing(stage, files):
    precious = stage.parent / "precious"
    precious.write_text("mine")
    for given in (files, {str(precious): [0, 0]}):
        (stage / "done.json").write_text(json.dumps({"seconds": 1, "files": given}))
        done._warn.cache_clear()
        with pytest.warns(UserWarning, match="counts as unfinished"):
            tidying.tidy([stage], verify=True)
    assert precious.read_text() == "mine"


def test_a_damaged_file_that_a_link_leads_to_is_left_where_it_is(stage, tmp_path):
    (tmp_path / "others").mkdir()
    (tmp_path / "others/thesis.tex").write_text("years of work")
    (stage / "link").symlink_to(tmp_path / "others")
    (stage / "done.json").write_text(json.dumps({"seconds": 1.0, "files": {"link/thesis.tex": [1, 1]}}))
    with pytest.raises(ValueError, match=r"thesis\.tex leads to .*, out of .*remove the link"):
        tidying.tidy([stage], verify=True)
    assert (tmp_path / "others/thesis.tex").read_text() == "years of work"


def test_a_finished_stage_with_a_damaged_file_is_named_and_unfinished(stage, capsys):
    (stage / "checkpoints/step-00000003").mkdir(parents=True)  # a kill at the very end leaves these
    (stage / "sub/.tmpAb12Cd").touch()
    (stage / "sub/x.12.part").mkdir()
    tidying.tidy([stage], verify=True)
    assert {p.name for p in stage.rglob("*")} == {"done.json", "map.safetensors", "sub", "with space.json"}
    flip(stage / "sub/with space.json")
    tidying.tidy([stage], verify=False)
    assert read_done(stage) is not None
    tidying.tidy([stage], verify=True)
    assert "sub/with space.json is corrupt; the stage is run again" in capsys.readouterr().out
    assert read_done(stage) is None
    assert not (stage / "sub/with space.json").exists()


def test_a_stage_that_another_process_checks_now_is_waited_for(stage, monkeypatch, capsys):
    """As each of several that begin at once does: none goes on with what another is about to find."""
    held, check = Event(), Event()
    monkeypatch.setattr(tidying, "QUIET", 0.1)
    flip(stage / "map.safetensors")

    def other():
        with locked(stage):
            held.set()
            check.wait(60)
            tidying.tidy_stage(stage, verify=True)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(other)
        assert held.wait(60)
        tidied = pool.submit(tidying.tidy, [stage], verify=True)
        assert not wait([tidied], 0.3).done
        check.set()
        tidied.result(60)
    assert f"waits for another process, which checks {stage}\n" in capsys.readouterr().out
    assert read_done(stage) is None


def test_a_tokenizer_of_a_run_is_as_its_stage_wrote_it(tmp_path):
    model = Autoencoder(
        encoder={"type": "conv", "width": 8, "multipliers": [1], "stride": 4, "out_channels": 8},
        image_size=16,
        latent_channels=3,
        bottleneck_width=8,
        decoder={"type": "conv", "width": 8, "multipliers": [1], "blocks": 1},
    )
    folder = tmp_path / "stage/autoencoder"
    save_network(model, folder)
    write_done(tmp_path / "stage", {"seconds": 1.0})
    (tmp_path / "link").symlink_to("stage")
    load_tokenizer(tmp_path / "link/autoencoder")
    flip(folder / "diffusion_pytorch_model.safetensors")
    for place in ("stage", "link"):
        with pytest.raises(
            ValueError, match=r"autoencoder/diffusion_pytorch_model.safetensors is corrupt: it is not as"
        ):
            load_tokenizer(tmp_path / place / "autoencoder")
    shutil.copytree(folder, tmp_path / "copy")  # which no stage vouches for
    load_tokenizer(tmp_path / "copy")


def test_a_damaged_list_of_a_pipeline_s_files_is_named(tmp_path):
    (tmp_path / "x").touch()
    write_source(tmp_path, {"generator": "here"})
    assert require_intact(tmp_path / "x") == tmp_path / "x"
    good = (tmp_path / "source.json").read_bytes()
    for text in (b"", b"[" * 5000, b"3", b'{"files": 1}', good[:-9], good.replace(b"here", b"heRe")):
        (tmp_path / "source.json").write_bytes(text)
        done._warn.cache_clear()
        with pytest.warns(UserWarning, match=r"source.json is damaged: .*nothing is known of the files beside it"):
            assert require_intact(tmp_path / "x") == tmp_path / "x"


def test_lines_of_a_log_that_are_damaged_are_named(tmp_path):
    file = tmp_path / "log.jsonl"
    rows = [{"step": i, "loss": 0.5} for i in range(1, 4)]
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n" + '{"step": 4, "lo')
    assert read_figures(file) == rows
    for bad in ("{", "3", "[1]", '{"loss": 1}', '{"step": 2, "loss": "x"}', "\x00", "[" * 5000, ""):
        file.write_text("\n".join([lines[0], bad, lines[2]]) + "\n")
        with pytest.warns(UserWarning, match=r"log.jsonl, line 2 is damaged"):
            assert read_figures(file) == [rows[0], rows[2]]
    file.write_bytes(lines[0].encode() + b"\n\xff\n")
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        assert read_figures(file) == rows[:1]
