"""The page of the service in headless Chromium, at the width of a desktop and of a phone."""

import dataclasses
import os
from pathlib import Path

import pytest

from antpipe.serving.web.held import HeldRun
from antpipe.serving.web.reloading import Loaded
from antpipe.settings.serving import ServeConfig
from tests.serving.web.conftest import Loads, Serving
from tests.support.browser import Page

EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
SIZES = {"desktop": (1280, 900), "phone": (375, 800)}
TOKEN = "a-token-of-the-shop"
BUTTONS = "[...document.querySelectorAll('#found button')]"


@pytest.fixture(scope="module")
def titled(loaded: Loads) -> Loaded:
    """The run `strong`, whose first item has a title of HTML, and the second a long one without blanks."""
    before = loaded("strong")
    held = HeldRun(**{field.name: getattr(before.held, field.name) for field in dataclasses.fields(before.held)})
    held.__dict__ |= before.held.__dict__ | {"shown": [EVIL, "Wort" * 60, *before.held.shown[2:]]}
    return dataclasses.replace(before, held=held)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_goes_from_a_search_to_what_comes_next(
    browser: Page, serving: Serving, titled: Loaded, size: str
) -> None:
    with serving(titled) as url:
        browser.resize(*SIZES[size], phone=size == "phone")
        browser.open(f"{url}/")
        browser.wait("document.querySelectorAll('.card').length === 12")
        assert "Popular here" in browser.run("document.querySelector('.why').textContent")
        browser.run("document.getElementById('search').focus()")
        browser.type("thing 1")
        browser.wait(f"{BUTTONS}.length > 5")
        browser.press("Tab", 9)  # to the filter
        browser.press("Tab", 9)  # to the first item found
        first = browser.run("document.activeElement.getAttribute('aria-label')")
        assert first.startswith("Add to history: ")
        browser.press("Enter", 13)
        browser.wait("document.querySelector('.why')?.textContent.startsWith('Why: ')")
        assert first.removeprefix("Add to history: ") in browser.run("document.getElementById('history').textContent")
        browser.run("document.querySelector('.card button').click()")
        browser.wait("document.querySelectorAll('#history li').length === 2")
        browser.run("document.getElementById('where').value = 'stock < 6'")
        browser.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        browser.wait("document.querySelectorAll('.card').length <= 6")
        assert "items are left to recommend" in browser.wait("document.getElementById('status').textContent")
        if folder := os.environ.get("ANTPIPE_TEST_SCREENSHOTS"):
            browser.photograph(Path(folder, f"page-{size}.png"))
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
        unnamed = "[...document.querySelectorAll('button, input')].filter(one => !one.labels?.length && !one.ariaLabel)"
        assert browser.run(f"{unnamed}.map(one => one.outerHTML)") == []
        browser.run("document.querySelector('#history button').click()")
        browser.wait("document.querySelectorAll('#history li').length === 1")


def test_titles_are_shown_as_text_and_never_run(browser: Page, serving: Serving, titled: Loaded) -> None:
    with serving(titled) as url:
        browser.open(f"{url}/")
        browser.wait("document.querySelectorAll('.card').length === 12")
        browser.run("document.getElementById('where').value = 'stock = 0'")
        browser.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        browser.wait("document.querySelectorAll('.card').length === 1")
        assert browser.run("document.querySelector('.title').textContent") == f"1. {EVIL}"
        browser.run("document.querySelector('.card button').click()")
        browser.wait("document.querySelector('#history').textContent.includes('onerror')")
        assert browser.run("document.querySelectorAll('main img, main script').length") == 0
        assert browser.run("document.title") == "What comes next?"


def test_a_wrong_condition_and_a_missing_token_are_shown(browser: Page, serving: Serving) -> None:
    with serving(config=ServeConfig(port=0), token=TOKEN) as url:
        browser.open(f"{url}/")
        browser.wait("!document.getElementById('token-box').hidden")
        assert "no valid token" in browser.run("document.getElementById('status').textContent")
        browser.run(f"document.getElementById('token').value = '{TOKEN}'")
        browser.run("document.getElementById('token').dispatchEvent(new Event('change'))")
        browser.wait("document.querySelectorAll('.card').length === 12")
        browser.run("document.getElementById('where').value = 'weight < 5'")
        browser.run("document.getElementById('where').dispatchEvent(new Event('change'))")
        assert "unknown column weight" in browser.wait("document.querySelector('#status.wrong')?.textContent")
