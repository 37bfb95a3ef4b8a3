import errno
import os
import signal
import subprocess
import sys

import pytest

from cdcd.data.files import (
    StorageError,
    atomic_directory,
    atomic_path,
    is_disk_full,
    sha256_file,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_linked_copy_of_the_earlier_file_is_not_written_through(tmp_path):
    path, cached = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("old")
    cached.hardlink_to(path)
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), cached.read_text()) == ("new", "old")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "stale").write_text("old")
    with atomic_directory(path) as temporary:
        (temporary / "fresh").write_text("new")
        assert names(path) == ["stale"]
    assert names(path) == ["fresh"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_folder_keeps_the_earlier_one(tmp_path, error):
    path = tmp_path / "out"
    path.mkdir()
    (path / "kept").write_text("old")
    with pytest.raises(type(error)), atomic_directory(path) as temporary:  # noqa: PT012
        (temporary / "half").write_text("half")
        raise error
    assert names(path) == ["kept"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_with_the_remedy(tmp_path, code):
    told = r"out must fit on its disk.*free some space"
    with pytest.raises(StorageError, match=told) as info, atomic_directory(tmp_path / "out"):
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(info.value)
    assert names(tmp_path) == []


def test_a_full_disk_is_recognised_behind_other_errors():
    wrapped = RuntimeError("cannot serialise")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_disk_full(wrapped)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.ENOENT, "no such file"))


def test_what_a_killed_run_left_behind_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from cdcd.data.files import atomic_directory\n"
        "with atomic_directory(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "out"
    died = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert not path.exists()
    with atomic_directory(path):
        pass
    assert names(tmp_path) == ["out"]


def test_a_living_writer_is_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as first:
        first.write_text("first")
        with atomic_path(path) as second:
            second.write_text("second")
        assert first.exists()
    assert path.read_text() == "first"


def test_json_bytes_do_not_depend_on_the_order_of_keys(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": {"d": 2, "c": 3}})
    write_json(tmp_path / "b.json", {"a": {"c": 3, "d": 2}, "b": 1})
    assert sha256_file(tmp_path / "a.json") == sha256_file(tmp_path / "b.json")


def test_sha256_of_the_standard_example(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "abc") == expected


def test_two_runs_never_work_in_one_folder(tmp_path):
    from cdcd.data.files import guarded_folder

    with guarded_folder(tmp_path / "shards") as work:
        (work / "kept").touch()
        with (
            pytest.raises(ValueError, match="one run at a time: another one is at it; wait"),
            guarded_folder(tmp_path / "shards"),
        ):
            raise AssertionError
        assert (work / "kept").exists()
    with guarded_folder(tmp_path / "shards") as work:
        assert (work / "kept").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".shards.work"]
