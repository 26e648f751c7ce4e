"""Libraries are loaded in the order named, and each is announced before it is loaded."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from antpipe.runtime.libraries import load_libraries
from antpipe.runtime.progress import Update


def test_each_library_is_named_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("heavy_one", "heavy_two"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[tuple[float, int, str, bool]] = []

    @contextmanager
    def progress(label: str) -> Iterator[Update]:
        assert label == "loading libraries"
        yield lambda done, total, note="": seen.append((done, total, note, note in sys.modules))

    load_libraries(["heavy_one", "heavy_two"], progress)
    assert seen == [(0, 2, "heavy_one", False), (1, 2, "heavy_two", False), (2, 2, "", False)]
    assert {"heavy_one", "heavy_two"} <= set(sys.modules)
