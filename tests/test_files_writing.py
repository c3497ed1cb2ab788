"""The one way to write a file: what is there stays whole until the new one is, whatever the disk or the user does."""

import errno
import gzip
import os
import resource
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from tplab import files
from tplab.files import check_writable, read_text, replacing, write_text

AS_ROOT = os.geteuid() == 0


@contextmanager
def no_larger_than(num_bytes):
    """The real thing where no disk of a few bytes may be mounted: the system refuses to make files longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def only(folder):
    """What is in the folder, hidden or not."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_file_and_an_earlier_one(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "µ\n")
    assert path.read_bytes() == b"\xc2\xb5\n"
    write_text(str(path), "again\n")
    assert only(tmp_path) == {"a.txt": "again\n"}


def test_a_file_in_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("a.txt")
    write_text("a.txt", "here")
    assert only(tmp_path) == {"a.txt": "here"}


@pytest.mark.parametrize("fault", [ValueError("made on the way"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_what_ends_the_block_leaves_the_earlier_file(tmp_path, fault):
    path = tmp_path / "a.txt"
    path.write_text("earlier")

    def write():
        with replacing(path) as partial:
            partial.write_text("half of")
            assert path.read_text() == "earlier"
            raise fault

    with pytest.raises(type(fault)):
        write()
    assert only(tmp_path) == {"a.txt": "earlier"}


def test_a_file_that_may_not_grow(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    with no_larger_than(100), pytest.raises(OSError, match=r"ulimit -f\): '.*a\.txt'$") as caught:
        write_text(path, "x" * 101)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert only(tmp_path) == {"a.txt": "earlier"}
    with no_larger_than(100), pytest.raises(OSError, match="File too large"):
        check_writable(path)
    assert only(tmp_path) == {"a.txt": "earlier"}


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("earlier", [{}, {"a.txt": "earlier"}], ids=["new", "earlier"])
def test_a_disk_that_is_full_late(tmp_path, monkeypatch, call, earlier):
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match=r"No space left on device \(make room, .*\): '.*a\.txt'$"):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert only(tmp_path) == earlier


def test_an_interrupt_at_the_end(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("earlier")

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.txt", "new")
    assert only(tmp_path) == {"a.txt": "earlier"}


def test_the_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.txt"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    assert only(tmp_path) == {}


@pytest.mark.parametrize("call", [check_writable, lambda path: write_text(path, "new")], ids=["check", "write"])
@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("gone/a.txt", FileNotFoundError, r"there is no folder .*gone \(make it first\)"),
        ("file/a.txt", NotADirectoryError, "Not a directory"),
        (".", IsADirectoryError, r"it is a folder \(give the name of a file\)"),
        ("x" * 300, OSError, r"File name too long \(give a shorter name\)"),
        ("loop", OSError, "Too many levels of symbolic links"),
        pytest.param(
            "protected", PermissionError, r"Permission denied \(write to a folder of yours\)",
            marks=pytest.mark.skipif(AS_ROOT, reason="root may write to anything"),
        ),
        pytest.param(
            "closed/a.txt", PermissionError, r"Permission denied \(write to a folder of yours\)",
            marks=pytest.mark.skipif(AS_ROOT, reason="root may write anywhere"),
        ),
    ],
)  # fmt: skip
def test_paths_that_cannot_be_written(tmp_path, call, name, kind, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "protected").write_text("")
    (tmp_path / "protected").chmod(0o444)
    (tmp_path / "closed").mkdir(mode=0o555)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(kind, match=said) as caught:
        call(os.path.join(tmp_path, name))
    assert caught.value.filename == os.path.join(tmp_path, name)
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_is_touched_by_asking(tmp_path):
    path = tmp_path / "a.txt"
    check_writable(path)
    assert only(tmp_path) == {}
    path.write_text("earlier")
    check_writable(path)
    assert only(tmp_path) == {"a.txt": "earlier"}


def test_links_are_followed_and_stay(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("real", "not yet"):
        (tmp_path / "link").symlink_to(Path("there", name))
        (tmp_path / "there" / "real").write_text("earlier")
        write_text(tmp_path / "link", "new")
        assert (tmp_path / "there" / name).read_text() == "new"
        assert (tmp_path / "link").is_symlink()
        assert sorted(os.listdir(tmp_path)) == ["link", "there"]
        (tmp_path / "link").unlink()


def test_permissions_are_those_of_any_new_file_or_of_the_earlier_one(tmp_path):
    path, plain = tmp_path / "a.txt", tmp_path / "plain"
    write_text(path, "new")
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    write_text(path, "again")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(not AS_ROOT, reason="only root writes the files of others")
def test_the_owner_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    os.chown(path, 1234, 4321)
    write_text(path, "by root")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_the_ending_says_how_to_compress(tmp_path):
    with replacing(tmp_path / "a.csv.gz") as partial:
        pd.DataFrame({"a": [1]}).to_csv(partial, index=False)
    assert (tmp_path / "a.csv.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert pd.read_csv(tmp_path / "a.csv.gz")["a"].tolist() == [1]


def test_a_text_is_packed_by_its_name_and_the_same_every_time(tmp_path):
    text = "µ\n" * 1000
    for name in ("a.json.gz", "b.json.gz"):
        write_text(tmp_path / name, text)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()).decode() == text == read_text(tmp_path / "b.json.gz")


def test_many_writers_of_one_file(tmp_path):
    path = tmp_path / "a.txt"
    texts = [str(number) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_named_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join(timeout=10)
    assert read == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, Linux's disk without room")
def test_a_device_without_room(tmp_path):
    check_writable("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device \(make room.*\): '/dev/full'"):
        write_text("/dev/full", "text")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
@pytest.mark.parametrize("redirect", ["> {out}", ">> {out}", "| cat > {out}"])
def test_the_output_itself_however_it_is_redirected(tmp_path, redirect):
    out = tmp_path / "out.txt"
    out.write_text("earlier\n" if ">>" in redirect else "")
    code = (
        "from tplab.files import write_text, check_writable\n"
        "print('before'); check_writable('/dev/stdout'); write_text('/dev/stdout', 'table\\n'); print('after')"
    )
    line = f'"$0" -c "$1" {redirect.format(out=out)}'
    subprocess.run(["/bin/sh", "-c", line, sys.executable, code], check=True, timeout=60)
    assert out.read_text() == "earlier\n" * (">>" in redirect) + "before\ntable\nafter\n"
    assert os.listdir(tmp_path) == ["out.txt"]
