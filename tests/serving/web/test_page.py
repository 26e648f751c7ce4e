"""The page of the service in headless Chromium, at the width of a desktop and of a phone."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from antpipe.serving.web.held import HeldRun
from antpipe.serving.web.reloading import Loaded
from antpipe.settings.serving import ServeConfig
from tests.serving.web.conftest import Loads, Serving
from tests.support.browser import Page, browsing, find_browser

EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
SIZES = {"desktop": (1280, 900), "phone": (375, 800)}
TOKEN = "a-token-of-the-shop"
BUTTONS = "[...document.querySelectorAll('#found button')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with browsing(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def titled(loaded: Loads) -> Loaded:
    """The run `strong`, whose first item has a title of HTML, and the second a long one without blanks."""
    before = loaded("strong")
    held = HeldRun(**{field.name: getattr(before.held, field.name) for field in dataclasses.fields(before.held)})
    held.__dict__ |= before.held.__dict__ | {"shown": [EVIL, "Wort" * 60, *before.held.shown[2:]]}
    return dataclasses.replace(before, held=held)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_goes_from_a_search_to_what_comes_next(
    page: Page, serving: Serving, titled: Loaded, size: str
) -> None:
    with serving(titled) as url:
        page.resize(*SIZES[size], phone=size == "phone")
        page.open(f"{url}/")
        page.wait("document.querySelectorAll('.card').length === 12")
        assert "Popular here" in page.run("document.querySelector('.why').textContent")
        page.run("document.getElementById('search').focus()")
        page.type("thing 1")
        page.wait(f"{BUTTONS}.length > 5")
        page.press("Tab", 9)  # to the filter
        page.press("Tab", 9)  # to the first item found
        first = page.run("document.activeElement.getAttribute('aria-label')")
        assert first.startswith("Add to history: ")
        page.press("Enter", 13)
        page.wait("document.querySelector('.why')?.textContent.startsWith('Why: ')")
        assert first.removeprefix("Add to history: ") in page.run("document.getElementById('history').textContent")
        page.run("document.querySelector('.card button').click()")
        page.wait("document.querySelectorAll('#history li').length === 2")
        page.run("document.getElementById('where').value = 'stock < 6'")
        page.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        page.wait("document.querySelectorAll('.card').length <= 6")
        assert "items are left to recommend" in page.wait("document.getElementById('status').textContent")
        if folder := os.environ.get("ANTPIPE_TEST_SCREENSHOTS"):
            page.photograph(Path(folder, f"page-{size}.png"))
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
        unnamed = "[...document.querySelectorAll('button, input')].filter(one => !one.labels?.length && !one.ariaLabel)"
        assert page.run(f"{unnamed}.map(one => one.outerHTML)") == []
        page.run("document.querySelector('#history button').click()")
        page.wait("document.querySelectorAll('#history li').length === 1")


def test_titles_are_shown_as_text_and_never_run(page: Page, serving: Serving, titled: Loaded) -> None:
    with serving(titled) as url:
        page.open(f"{url}/")
        page.wait("document.querySelectorAll('.card').length === 12")
        page.run("document.getElementById('where').value = 'stock = 0'")
        page.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        page.wait("document.querySelectorAll('.card').length === 1")
        assert page.run("document.querySelector('.title').textContent") == f"1. {EVIL}"
        page.run("document.querySelector('.card button').click()")
        page.wait("document.querySelector('#history').textContent.includes('onerror')")
        assert page.run("document.querySelectorAll('main img, main script').length") == 0
        assert page.run("document.title") == "What comes next?"


def test_a_wrong_condition_and_a_missing_token_are_shown(page: Page, serving: Serving) -> None:
    with serving(config=ServeConfig(port=0), token=TOKEN) as url:
        page.open(f"{url}/")
        page.wait("!document.getElementById('token-box').hidden")
        assert "no valid token" in page.run("document.getElementById('status').textContent")
        page.run(f"document.getElementById('token').value = '{TOKEN}'")
        page.run("document.getElementById('token').dispatchEvent(new Event('change'))")
        page.wait("document.querySelectorAll('.card').length === 12")
        page.run("document.getElementById('where').value = 'weight < 5'")
        page.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        assert "unknown column weight" in page.wait("document.querySelector('#status.wrong')?.textContent")
