"""The page as HTML: what is escaped and cut, the order of headings, names of figures, contrast of colours."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from antpipe.api.reporting import write_report
from antpipe.report.page import style
from antpipe.report.theme import DARK, LIGHT, SERIES
from antpipe.report.transfer import STRONGEST
from antpipe.report.write import LARGE, WrittenReport
from tests.report.conftest import EVIL, LONG


class Outline(HTMLParser):
    """Headings, ids, the elements that load something, images and figures of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.alts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] += 1
        self.ids += [found["id"] or ""] if "id" in found else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg" and "aria-hidden" not in found:
            assert found["role"] == "img"
            self.alts.append(found["aria-label"] or "")
        places = [found.get(name) or "" for name in ("src", "href", "xlink:href", "data", "action")]
        self.loads += [place for place in places if place and not place.startswith(("#", "data:"))]


@pytest.fixture(scope="module")
def page(report: WrittenReport) -> str:
    return report.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_the_report_has_the_sections_whose_data_are_there(report: WrittenReport) -> None:
    assert list(report.sections) == [
        "Arms",
        "Who is served well",
        "Beyond accuracy",
        "Training",
        "Catalogues",
        "Map of the items",
        "Example users",
    ]
    assert set(report.missing) == {"Transfer between shops", "Learning curves"}
    assert report.bytes == report.path.stat().st_size < LARGE


def test_the_verdict_comes_first(page: str, report: WrittenReport) -> None:
    assert report.headline.startswith("Transfer ")
    text = re.sub("<style>.*?</style>|<[^>]+>", " ", page.partition("<body>")[2], flags=re.DOTALL)
    assert text.index(report.headline[:40]) < text.index("Arms")


def test_what_is_missing_names_the_command_that_makes_it(page: str) -> None:
    assert re.search(r"<dt>Learning curves</dt>.*?<code>antpipe compare --store \S+ --target Kites", page, re.DOTALL)


def test_titles_and_categories_never_become_markup(page: str, outline: Outline) -> None:
    assert outline.tags["script"] == 1
    assert outline.tags["img"] == 0
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert re.search("onerror=&(#34|quot);document.title", page)


def test_direction_marks_go_and_long_titles_are_cut(page: str) -> None:
    assert not re.search("[\u202a-\u202e\u200e\u200f\u2066-\u2069]", page)
    assert "abc def" in page
    assert LONG[:100] not in page
    assert LONG[:79] in page


def test_nothing_is_loaded(outline: Outline, page: str) -> None:
    assert outline.loads == []
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_headings_are_in_order(outline: Outline) -> None:
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))


def test_ids_are_unique(outline: Outline) -> None:
    assert [name for name, count in Counter(outline.ids).items() if count > 1] == []


def test_every_figure_says_what_it_shows(outline: Outline) -> None:
    assert len(outline.alts) >= 12
    assert all(len(alt) > 20 for alt in outline.alts)


def test_a_damaged_picture_is_left_out_and_it_is_said(compared_shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(compared_shop / "store", comparisons=compared_shop / "cmp", out=out, users=100, k=30, map_items=0)
    page = out.read_text(encoding="utf-8")
    assert "1 picture is gone or damaged." in page
    assert len(re.findall(r'<symbol id="p\d+"', page)) == 7  # of the 8 that the catalogue names


# -- colours ----------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def over(colour: str, ground: str, opacity: float) -> str:
    """The colour that a half-transparent one has on a ground."""
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(top * opacity + below * (1 - opacity)):02x}" for top, below in pairs)


def shades() -> dict[str, str]:
    return dict(zip(("light", "dark"), re.findall(r"--shade: (#\w+)", style()), strict=True))


@pytest.mark.parametrize(("scheme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_text_has_a_contrast_of_at_least_4_5(scheme: str, colours: dict[str, str]) -> None:
    for ground in (colours["paper"], shades()[scheme]):
        for name in ("ink", "soft", "good", "c0"):
            assert contrast(colours[name], ground) >= 4.5, (name, ground)
    for name in ("good", "bad"):
        cell = over(colours[name], colours["paper"], STRONGEST)
        assert contrast(colours["ink"], cell) >= 4.5, name


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_marks_have_a_contrast_of_at_least_3(colours: dict[str, str]) -> None:
    for name in (*SERIES, "good", "bad", "plain", "faint"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def test_both_schemes_define_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert re.findall(r"\{\{", style()) == []
    used = set(re.findall(r"var\(--([\w]+)\)", style()))
    assert used <= LIGHT.keys() | {"shade", "focus"}
