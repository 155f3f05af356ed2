"""Files are there whole or not at all."""

import errno
import fcntl
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import processes
from dmvae.runtime.files import (
    atomic_write,
    flush,
    held,
    locked,
    locked_if_it_can,
    read_head,
    read_sealed,
    require_place,
    sweep,
    together,
    within,
    write_sealed,
    write_tensors,
)


def test_a_file_and_a_folder_take_the_place_of_what_was_there(tmp_path):
    for content in ("one", "two"):
        with atomic_write(tmp_path / "deep/file") as part:
            part.write_text(content)
        with atomic_write(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).touch()
    assert (tmp_path / "deep/file").read_text() == "two"
    assert os.listdir(tmp_path / "folder") == ["two"]
    assert sorted(os.listdir(tmp_path)) == ["deep", "folder"]


def test_two_processes_of_one_number_write_the_same_file_whole(tmp_path, monkeypatch):
    """In containers the first process has the number 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with atomic_write(tmp_path / "x") as mine:
        mine.write_text("half of mine, ")
        with atomic_write(tmp_path / "x") as theirs:
            theirs.write_text("theirs")
        assert (tmp_path / "x").read_text() == "theirs"
        mine.write_text("mine")
    assert (tmp_path / "x").read_text() == "mine"
    assert os.listdir(tmp_path) == ["x"]


def test_a_place_that_may_not_be_written_is_refused_before_it_is_asked_for(tmp_path, monkeypatch):
    require_place("--out", Path("/"), folder=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "s.json").touch()
    monkeypatch.setattr(os, "access", lambda place, how: place not in (tmp_path, tmp_path / "out"))
    for what, folder in (("s.json", False), ("new.json", False), ("out", True), ("new/deep", True)):
        with pytest.raises(ValueError, match=r"^--x .*cannot be written; name a"):
            require_place("--x", tmp_path / what, folder)


def test_a_file_system_without_locks_costs_no_more_than_time(tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    with locked_if_it_can(tmp_path / "new" / "folder") as mine:
        assert mine
    (tmp_path / "file").touch()
    with locked_if_it_can(tmp_path / "file" / "folder") as mine:
        assert not mine
    monkeypatch.setattr(fcntl, "flock", none)
    with locked_if_it_can(tmp_path) as mine:
        assert not mine


def test_a_lock_file_of_another_user_is_held_along(tmp_path, monkeypatch):
    (tmp_path / "lock").touch()
    real = os.open

    def denied(path, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", denied)
    with together(tmp_path / "lock") as alone:
        assert alone


def test_a_lock_file_can_be_locked_over_nfs(tmp_path, monkeypatch):
    """Which refuses an exclusive lock of a file that is open to be read alone (EBADF)."""
    flock = fcntl.flock

    def strict(handle, how):
        writes = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if how & fcntl.LOCK_EX and not writes:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", strict)
    with together(tmp_path / "lock") as alone:
        assert alone


def test_who_holds_a_lock_file_beside_another_is_told(tmp_path):
    with together(tmp_path / "lock") as first, together(tmp_path / "lock") as second:
        assert (first, second) == (True, False)
    with together(tmp_path / "lock") as again:
        assert again


def test_a_file_takes_the_place_of_no_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(IsADirectoryError, match="that is a folder"), atomic_write(tmp_path / "mine") as part:
        part.write_text("{}")
    with pytest.raises(IsADirectoryError):
        write_tensors(tmp_path / "mine", {"a": torch.zeros(1)})
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["mine"]


def half(path):
    path.write_text("half")
    raise RuntimeError


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("one")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "file") as part:
        half(part)
    assert (tmp_path / "file").read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_an_error_of_the_system_also_in_safetensors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises(OSError, match=r"tensors could not be written .*is the disk full"),
            atomic_write(tmp_path / "tensors") as part,
        ):
            save_file({"x": torch.zeros(100_000)}, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / "a/b.12.part").mkdir(parents=True)
    (tmp_path / "a/c.13.part").touch()
    (tmp_path / "a/.tmpaB3xYz").touch()  # safetensors'
    (tmp_path / "a/d").touch()
    sweep(tmp_path)
    assert os.listdir(tmp_path / "a") == ["d"]


def test_what_a_killed_safetensors_leaves_is_swept_with_the_rest(tmp_path):
    with atomic_write(tmp_path / "tensors") as part:
        assert part.parent != tmp_path
        assert part.parent.suffix == ".part"
        part.touch()


@pytest.fixture
def calls(monkeypatch):
    """What reaches the disk and what changes names, in order: ("flush", name) and ("rename", name)."""
    made, flushed, rename = [], processes.FSYNC, os.replace

    def fsync(handle):
        made.append(("flush", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        flushed(handle)

    def replace(self, target):
        made.append(("rename", Path(target).name))
        rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return made


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, calls):
    with atomic_write(tmp_path / "file") as part:
        part.write_text("x")
    assert calls == [("flush", "file"), ("rename", "file"), ("flush", tmp_path.name)]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    with atomic_write(tmp_path / "folder") as part:
        (part / "deep").mkdir(parents=True)
        (part / "deep/file").touch()
    names = [name for _, name in calls]
    assert names == ["file", "deep", "folder", "folder", tmp_path.name]
    assert calls[3] == ("rename", "folder")


def test_flushing_passes_over_what_is_no_file(tmp_path, calls):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    flush(tmp_path)
    assert calls == [("flush", tmp_path.name)]


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "tensors", {"x": torch.zeros(3)})
        with atomic_write(tmp_path / "folder") as part:
            part.mkdir(0o700)
            save_file({"x": torch.zeros(3)}, part / "tensors")
    finally:
        os.umask(before)
    rights = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert rights == {"tensors": 0o640, "folder": 0o750, "folder/tensors": 0o640}


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/file").touch()
    (tmp_path / "a").symlink_to("precious")
    (tmp_path / "b").symlink_to("others")
    with atomic_write(tmp_path / "a") as part:
        part.write_text("new")
    with atomic_write(tmp_path / "b") as part:
        part.mkdir()
    assert (tmp_path / "precious").read_text() == "mine"
    assert os.listdir(tmp_path / "others") == ["file"]
    assert not (tmp_path / "a").is_symlink()
    assert not (tmp_path / "b").is_symlink()


def test_a_path_that_leads_out_of_its_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/out").symlink_to(tmp_path)
    assert within(tmp_path / "run/a/b", tmp_path / "run") == tmp_path / "run/a/b"
    for path in ("run/out/file", "run/../file"):
        with pytest.raises(ValueError, match=r"out of .*run: nothing is written there"):
            within(tmp_path / path, tmp_path / "run")


def test_what_a_killed_process_forked_does_not_keep_its_lock(tmp_path):
    """A holds the lock, forks B, which lives on, and dies."""
    told, tell = os.pipe()
    if (a := os.fork()) == 0:
        with locked(tmp_path):
            if (b := os.fork()) == 0:
                os.write(tell, b".")
                time.sleep(60)
                os._exit(0)
            os.read(told, 1)
            os.write(tell, b"%d" % b)
            os._exit(0)
    os.waitpid(a, 0)
    try:
        with locked(tmp_path, wait=False) as mine:
            assert mine
    finally:
        os.kill(int(os.read(told, 20)), signal.SIGKILL)


def test_a_tensors_file_that_is_cut_anywhere_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    assert read_head(path) is None
    for told in ({}, {"start": "0"}):
        write_tensors(path, {"x": torch.ones(3), "y": torch.arange(2)}, told)
        good = path.read_bytes()
        assert read_head(path) == told
        for length in range(len(good)):
            path.write_bytes(good[:length])
            assert read_head(path) is None
        path.write_bytes(bytes(len(good)))  # as a file system may leave it after a power cut
        assert read_head(path) is None


def test_every_bit_of_a_sealed_file_counts(tmp_path):
    path = tmp_path / "x"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}
    write_sealed(path, tensors, {"name": "value"})
    good = path.read_bytes()
    found, about = read_sealed(path)
    assert about == {"name": "value"}
    for place in range(0, len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            found, about = read_sealed(path)
        except ValueError:
            continue
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)  # the name of the seal itself
        assert about["name"] == "value"
    save_file(tensors, path)
    assert read_sealed(path)[1] == {}


def test_who_only_looks_whether_a_stage_runs_is_not_seen(tmp_path):
    looking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not held(tmp_path)
    fcntl.flock(looking, fcntl.LOCK_EX)
    assert held(tmp_path)
    os.close(looking)
    assert not held(tmp_path)
    assert not held(tmp_path / "none")


def test_tensors_with_metadata_are_the_same_bytes_each_time(tmp_path):
    """safetensors keeps its metadata in a hash map, whose order differs from file to file."""
    x = {"b": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.int64)}
    metadata = {name: f'{name} ä \n\x1f"\\/\x7f' for name in ("first", "classes", "zeta", "statistics", "seven")}
    for i in range(8):
        write_tensors(tmp_path / f"{i}.safetensors", x, metadata)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)}) == 1
    assert read_head(tmp_path / "0.safetensors") == metadata
    assert all(torch.equal(x[name], value) for name, value in load_file(tmp_path / "0.safetensors").items())
