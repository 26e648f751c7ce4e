"""A report in headless Chromium, at the width of a desktop and of a phone, in both colour schemes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from antpipe.report.write import WrittenReport
from tests.report.conftest import EVIL
from tests.support.browser import Page

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SHOWN_USERS = "[...document.querySelectorAll('.user')].filter(one => one.offsetHeight).length"
TABS = "[...document.querySelectorAll('#users ~ .tabs [role=tab]')]"
# Texts with less contrast than they need against the nearest ground, by the formula of WCAG 2.2.
PALE = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return parts(getComputedStyle(document.body).backgroundColor);
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const inside = one.closest("svg") !== null;
    if (inside && one.tagName !== "text") continue;
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.getClientRects().length || one.closest("[aria-hidden=true], :disabled, script, style")) continue;
    const style = getComputedStyle(one);
    const pair = [light(parts(inside ? style.fill : style.color)), light(ground(one))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < 4.5) found.push(one.textContent.trim().slice(0, 40) + ": " + contrast.toFixed(2));
  }
  return found;
})()"""


@pytest.fixture(params=SIZES)
def page(browser: Page, report: WrittenReport, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The report, freshly opened at a width; afterwards, nothing was fetched and no error was logged."""
    browser.resize(*SIZES[request.param], phone=request.param == "phone")
    for domain in ("Network", "Log", "Runtime"):
        browser.ask(f"{domain}.enable")
    browser.browser.events.clear()
    browser.open(report.path.as_uri())
    browser.wait("document.querySelectorAll('[role=tablist]').length > 0")
    yield browser
    events = browser.browser.events
    errors = [one for one in events if one["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    errors += [one for one in events if one["method"] == "Runtime.consoleAPICalled"]
    asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    assert errors == []
    assert [url for url in asked if not url.startswith("data:")] == [report.path.as_uri()]
    for domain in ("Network", "Log", "Runtime"):
        browser.ask(f"{domain}.disable")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_or_too_pale(page: Page, scheme: str) -> None:
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
    assert page.run(PALE) == []
    dark = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
    assert dark == (scheme == "dark")
    if folder := os.environ.get("ANTPIPE_TEST_SCREENSHOTS"):
        width, height = page.run("[innerWidth, document.documentElement.scrollHeight]")
        page.resize(width, height, phone=width < 800)
        page.photograph(Path(folder, f"report-{width}-{scheme}.png"))
    page.ask("Emulation.setEmulatedMedia", features=[])


def test_a_screen_shows_each_figure_once_in_its_width(page: Page) -> None:
    wide = page.run("innerWidth") > 800
    shown = "[...document.querySelectorAll('.drawing .{}')].filter(one => one.offsetHeight).length"
    assert (page.run(shown.format("wide")) > 0) == wide
    assert (page.run(shown.format("narrow")) > 0) != wide


def test_tabs_are_reached_and_changed_by_keyboard(page: Page) -> None:
    tabs = "[...document.querySelector('[role=tablist]').querySelectorAll('[role=tab]')]"
    assert page.run(f"{tabs}.map(one => one.getAttribute('aria-selected'))")[:2] == ["true", "false"]
    page.run(f"{tabs}[0].focus()")
    page.press("ArrowRight", 39)
    assert page.run(f"{tabs}.map(one => one.getAttribute('aria-selected'))")[:2] == ["false", "true"]
    assert page.run(f"document.activeElement === {tabs}[1]")
    panel = f"document.getElementById({tabs}[1].getAttribute('aria-controls'))"
    assert page.run(f"{panel}.offsetHeight > 0")
    assert page.run(f"document.getElementById({tabs}[0].getAttribute('aria-controls')).offsetHeight") == 0
    page.press("Home", 36)
    assert page.run(f"document.activeElement === {tabs}[0]")


def test_users_are_turned_over_and_filtered(page: Page) -> None:
    users = "document.querySelector('.users')"
    shown = f"[...{users}.querySelectorAll('.user')].filter(one => one.offsetHeight)"
    pager = f"{users}.previousElementSibling"
    first = page.run(f"{shown}[0].querySelector('h4').textContent")
    assert page.run(f"{shown}.length") == 1
    page.run(f"{pager}.querySelectorAll('button')[1].click()")
    assert page.run(f"{shown}[0].querySelector('h4').textContent") != first
    assert "User 2 of 4" in page.run(f"{pager}.textContent")
    page.run(f"{pager}.previousElementSibling.querySelector('input[type=search]').focus()")
    page.type(first.removeprefix("User "))
    assert "User 1 of 1" in page.run(f"{pager}.textContent")
    assert page.run(f"{shown}[0].querySelector('h4').textContent") == first
    page.type("no such words")
    assert page.run(f"{pager}.textContent").endswith("No user is left.")
    assert page.run(f"{shown}.length") == 0


def test_only_users_with_a_hit_can_be_shown(page: Page) -> None:
    users = "document.querySelector('.users')"
    pager = f"{users}.previousElementSibling"
    hits = page.run(f"{users}.querySelectorAll('.user[data-hit=yes]').length")
    page.run(f"{pager}.previousElementSibling.querySelector('input[type=checkbox]').click()")
    text = page.run(f"{pager}.textContent")
    assert text.endswith(f"User 1 of {hits}" if hits else "No user is left.")


def test_items_of_a_map_are_found_by_their_titles(page: Page) -> None:
    figure = "document.querySelector('figure[data-searched]')"
    page.run(f"{figure}.querySelector('input').focus()")
    page.type("KITES thing 1")
    found = page.run(f"[...{figure}.querySelectorAll('.matches li')].map(one => one.textContent)")
    assert "Kites thing 10 · Kind 1" in found
    assert page.run(f"{figure}.querySelector('[role=status]').textContent") == f"{len(found)} items found"
    assert page.run(f"{figure}.querySelectorAll('.wide .found').length") == len(found)


def test_a_mark_says_what_it_is_under_the_pointer(page: Page) -> None:
    bars = "[...document.querySelectorAll('#arms ~ * .drawing [aria-roledescription=bar]')]"
    mark = f"{bars}.find(one => one.getBoundingClientRect().width)"
    page.run(f"{mark}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scrolling hides it
    left, top = page.run(f"[{mark}.getBoundingClientRect()].flatMap(at => [at.left, at.top])")
    page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=left + 3, y=top + 3)
    page.wait("!document.getElementById('tip').hidden")
    assert page.run("document.getElementById('tip').textContent") == page.run(f"{mark}.getAttribute('aria-label')")


def test_titles_are_shown_as_text_and_never_run(page: Page) -> None:
    assert page.run("document.title").startswith("Report on Kites")
    assert page.run("document.querySelectorAll('script').length") == 1
    figure = "document.querySelector('figure[data-searched]')"
    page.run(f"{figure}.querySelector('input').focus()")
    page.type("<script>")
    found = page.run(f"[...{figure}.querySelectorAll('.matches li')].map(one => one.textContent)")
    assert any(one.startswith(EVIL[:60]) for one in found)
    assert page.run("document.querySelectorAll('.matches script, .matches img').length") == 0
    assert page.run("document.title").startswith("Report on Kites")


def test_every_control_has_a_name(page: Page) -> None:
    controls = "[...document.querySelectorAll('button, input, select')]"
    unnamed = f"{controls}.filter(one => !one.labels?.length && !one.ariaLabel && !one.textContent.trim())"
    assert page.run(f"{unnamed}.map(one => one.outerHTML)") == []


def test_a_print_shows_every_panel_and_table(page: Page) -> None:
    page.run("dispatchEvent(new Event('beforeprint'))")
    page.ask("Emulation.setEmulatedMedia", media="print")
    hidden = "[...document.querySelectorAll('.panel, .user, details > .scroll')].filter(one => !one.offsetHeight)"
    assert page.run(f"{hidden}.length") == 0
    assert page.run("document.querySelectorAll('.tabs, .tools, .pager').length") > 0
    assert page.run("[...document.querySelectorAll('.tabs, .tools, .pager')].every(one => !one.offsetHeight)")
    page.ask("Emulation.setEmulatedMedia", media="")
