"""README is short, and the pages build as a site without a warning."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="pip install 'antpipe[docs]'")
REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_readme_has_less_than_120_lines() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_every_flag_setting_and_function_has_a_place_in_the_site(site: Path) -> None:
    shown = {name: (site / f"{name}.html").read_text(encoding="utf-8") for name in ("cli", "settings", "api")}
    assert "<code>--users</code>" in shown["cli"]
    assert "antpipe recommend --run runs/shop" in shown["cli"]
    assert "ANTPIPE_TRAIN_LR" in shown["settings"]
    assert "<code>pretrain-drawn</code>" in shown["settings"]
    assert "recommend_to_file" in shown["api"]


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page.name
        assert 'rel="stylesheet" href="http' not in text, page.name
