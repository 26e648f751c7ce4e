"""Removing mark-up from titles, brands, categories and descriptions; the text of an item."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.features.ingest.text import (
    SEPARATOR,
    category_path,
    clean_brand,
    clean_html,
    clean_texts,
    clean_title,
    item_text,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain", "plain"),
        ("  two\n\t lines\r\n ", "two lines"),
        ("Disney &amp; Me", "Disney & Me"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("I&#39;m Sorry", "I'm Sorry"),
        ("a<br>b<BR/>c", "a b c"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ('<a href="x">link</a>', "link"),
        ("x<!-- not shown -->y", "x y"),
        ("x<script>var a = '<b>';</script>y", "x y"),
        ("x<STYLE type='text/css'>.a{}</style >y", "x y"),
        ("x<script>never closed", "x"),
        ('good <img src="cut off', "good"),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("I <3 you", "I <3 you"),
        ("nul\x00bell\x07", "nulbell"),
        ("half \ud83d emoji, whole 😀", "half emoji, whole 😀"),
        ("no\u00a0break", "no break"),
        ("<p></p>", ""),
    ],
)
def test_html_becomes_one_line_of_plain_text(raw: str, clean: str) -> None:
    assert clean_html(raw) == clean


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_becomes_one_line_that_can_be_stored(text: str) -> None:
    clean = clean_html(text)
    assert clean.encode("utf-8").decode("utf-8") == clean
    assert clean == " ".join(clean.split())


@given(st.text('<>&;/="ab !-', max_size=60))
def test_any_mark_up_becomes_one_line(text: str) -> None:
    clean = clean_html(text)
    assert clean == " ".join(clean.split())


def test_hostile_mark_up_does_not_stall() -> None:
    for text in ("<script>" * 50_000, "<a" + "=" * 400_000 + "<", "<" * 400_000, "&amp;" * 80_000, "<!--" * 100_000):
        assert len(clean_html(text)) <= len(text)
        assert len(clean_title(text) or "") <= len(text)


@pytest.mark.parametrize(
    "fragment",
    [
        '<span class="a-size-medium a-color-secondary"',
        '  <span class="a-size-medium a-color-secondary"',
        "<span",
        ' Magazines" />',
        'Vogue <span class="a-size-medium"',
        "var aPageStart = (new Date()).getTime();",
        "<br>",
        "",
        "  ",
        None,
    ],
)
def test_a_title_that_is_a_fragment_of_a_page_is_missing(fragment: str | None) -> None:
    assert clean_title(fragment) is None


@pytest.mark.parametrize(
    ("raw", "title"),
    [
        (" Amazon eGift Card", "Amazon eGift Card"),
        ("<b>Vogue</b>", "Vogue"),
        ('<span class="a-size-medium">Vogue</span>', "Vogue"),
        ("Cable < 5 m", "Cable < 5 m"),
        ("I <3 cats", "I <3 cats"),
        ('24" monitor', '24" monitor'),
        ("AC/DC", "AC/DC"),
    ],
)
def test_a_title_with_whole_tags_or_signs_stays(raw: str, title: str) -> None:
    assert clean_title(raw) == title


@pytest.mark.parametrize(
    ("raw", "brand"),
    [
        ("by\n    \n    Microsoft", "Microsoft"),
        ("\n  by\n    Apple", "Apple"),
        ("By Terry", "By Terry"),
        ("by Malene Birger", "by Malene Birger"),
        ("F&amp;W Publications", "F&W Publications"),
        ("by\n   ", None),
        ('<span class="x"', None),
        ("", None),
        (None, None),
    ],
)
def test_the_line_by_above_a_brand_is_dropped(raw: str | None, brand: str | None) -> None:
    assert clean_brand(raw) == brand


def test_repeated_category_levels_count_once() -> None:
    assert category_path(["Gift Cards", "Gift Cards", "Arts &amp; Music", "Gift Cards"]) == [
        "Gift Cards",
        "Arts & Music",
    ]


def test_a_level_of_closing_tags_ends_the_category_path() -> None:
    assert category_path(["Gift Cards", "</span></span></span>", "No fees."]) == ["Gift Cards"]


def test_empty_and_repeated_texts_are_left_out() -> None:
    assert clean_texts(["<br>", "No fees", " No fees ", ""]) == ["No fees"]


def test_parts_come_in_the_order_of_the_fields() -> None:
    parts = {"title": "Card", "category": ["Gifts", "Cards"], "brand": "Acme", "features": ["red", "small"]}
    assert item_text(parts, ("brand", "title", "category", "features")) == "Acme. Card. Gifts, Cards. red small"


def test_parts_that_are_not_asked_for_are_left_out() -> None:
    assert item_text({"title": "Card", "brand": "Acme"}, ("title",)) == "Card"


def test_missing_parts_leave_no_separator() -> None:
    assert (
        item_text({"title": None, "category": [], "brand": "Acme", "description": ""}, ("title", "category", "brand"))
        == "Acme"
    )


def test_a_full_stop_is_not_doubled() -> None:
    assert (
        item_text({"title": "By Rodale Inc.", "brand": "Acme"}, ("title", "brand")) == f"By Rodale Inc{SEPARATOR}Acme"
    )


def test_no_parts_give_an_empty_text() -> None:
    assert item_text({}, ("title", "brand")) == ""
