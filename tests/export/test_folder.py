"""The folder of an export: complete or absent, and never in place of anything else."""

import json
import socket
from pathlib import Path

import pytest

from antpipe.errors import DataError, SameCommand
from antpipe.export import folder
from antpipe.export.folder import exporting
from antpipe.runtime import files
from antpipe.runtime.files import sweep
from antpipe.store.files import file_sha256

GONE = 2**22 + 1  # beyond the numbers of processes
HOST = socket.gethostname()[:32]


def export(out: Path, content: str, *, force: bool = False) -> None:
    with exporting("vectors", out, force=force) as draft:
        draft.text("a.txt", content)


def test_an_export_lists_its_files_with_sizes_and_hashes(tmp_path: Path) -> None:
    export(tmp_path / "out", "abc")
    about = json.loads((tmp_path / "out" / "export.json").read_text(encoding="utf-8"))
    assert about["kind"] == "vectors"
    assert about["files"] == {"a.txt": {"bytes": 3, "sha256": file_sha256(tmp_path / "out" / "a.txt")}}


def test_an_export_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    export(tmp_path / "out", "first")
    with pytest.raises(DataError, match="already exists") as caught:
        export(tmp_path / "out", "second")
    assert caught.value.next_command == SameCommand({"--force": None})
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == "first"
    export(tmp_path / "out", "third", force=True)
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_is_not_replaced_even_by_force(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine", encoding="utf-8")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="holds something else") as caught:
        export(out, "new", force=True)
    assert caught.value.next_command == SameCommand({"--out": str(tmp_path / "out-2")})


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", "abc")
    assert (tmp_path / "out" / "export.json").is_file()


def test_an_export_and_its_name_are_on_the_disk_before_an_earlier_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "out", "first")
    seen: list[tuple[str, int, str]] = []

    def note(what: str) -> None:
        aside = sum(one.name.endswith(".old") for one in tmp_path.iterdir())
        seen.append((what, aside, (tmp_path / "out" / "a.txt").read_text(encoding="utf-8")))

    monkeypatch.setattr(folder, "flush_tree", lambda _: note("content"))
    monkeypatch.setattr(folder, "flush", lambda _: note("name"))
    export(tmp_path / "out", "second", force=True)
    assert seen == [("content", 0, "first"), ("name", 1, "second")]


@pytest.mark.parametrize("form", [".out.{gone}", ".out.{gone}-{gone}@{host}"])  # of 0.1.0, and of now
def test_the_next_export_puts_back_what_a_killed_one_had_moved_aside(tmp_path: Path, form: str) -> None:
    export(tmp_path / "out", "first")
    name = form.format(gone=GONE, host=HOST)
    (tmp_path / "out").rename(tmp_path / f"{name}.old")
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="already exists"):
        export(tmp_path / "out", "second")
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C arrives once so many folders have been renamed."""
    rename = Path.replace
    done: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if moved.is_dir():
            done.append(moved)
            if len(done) == after:
                raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize(("after", "content"), [(1, "first"), (2, "second")])
def test_an_interrupt_while_folders_are_renamed_leaves_one_whole_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, content: str
) -> None:
    export(tmp_path / "out", "first")
    interrupted(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", "second", force=True)
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_leaves_what_another_machine_is_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with exporting("vectors", tmp_path / "out", force=False) as draft:
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        monkeypatch.setattr(files, "_is_alive", lambda _: False)  # this process is not one of that machine
        sweep(tmp_path, "out")
        assert draft.path.is_dir()


def test_an_export_leaves_what_was_moved_aside_of_one_with_a_longer_name(tmp_path: Path) -> None:
    other = tmp_path / f".out.2.{GONE}-{GONE}@{HOST}.old"
    other.mkdir()
    export(tmp_path / "out", "abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out"]


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    export(tmp_path / "out", "first")
    with pytest.raises(OSError, match="disk full"), exporting("vectors", tmp_path / "out", force=True) as draft:
        draft.text("a.txt", "half")
        raise OSError("disk full")
    assert (tmp_path / "out" / "a.txt").read_text(encoding="utf-8") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
