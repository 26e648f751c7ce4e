"""Replacing a file in one step."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from antpipe.runtime import files
from antpipe.runtime.files import atomic


@pytest.mark.parametrize("durable", [False, True])
def test_the_new_content_is_there_at_the_end_of_the_block_and_not_before(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with atomic(path, durable=durable) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_stays_if_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_absent_if_the_block_raises_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), atomic(tmp_path / "x.txt"):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
    assert path.read_text() == "old"


def test_a_new_folder_and_those_above_it_are_flushed_into_the_folders_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(files, "flush", flushed.append)
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "file")


@pytest.mark.parametrize("host", ["another.4194305", socket.gethostname()[:32]])
def test_a_scratch_file_that_another_machine_or_a_live_process_writes_stays(tmp_path: Path, host: str) -> None:
    other = tmp_path / f".x.txt.{os.getpid()}-1@{host}"
    other.touch()
    with atomic(tmp_path / "x.txt") as scratch:
        scratch.touch()
    assert other.exists()


def test_several_threads_may_replace_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    inside = threading.Barrier(2, timeout=10)

    def write(content: str) -> None:
        with atomic(path) as scratch:
            scratch.write_text(content)
            inside.wait()
            assert scratch.read_text() == content

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "two"]))
    assert path.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [path]
