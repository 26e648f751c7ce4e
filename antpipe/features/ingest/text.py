"""The text of an item: without mark-up and remains of web pages, its parts in a fixed order."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

# What programs write for a missing value. Not NA, which also abbreviates names.
MISSING_WORDS = frozenset(
    ("nan", "NaN", "NAN", "None", "none", "NULL", "null", "Null", "\\N", "<NA>", "NaT", "#N/A", "N/A", "n/a")
)
# Between the parts of an item's text: encoders were trained on sentences.
SEPARATOR = ". "

# A script, style sheet or comment that is never closed reaches to the end, as in a browser.
_HIDDEN = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[a-zA-Z/!?][^<>]*>")
# Text cut off inside a tag. Without an attribute it may be a less-than sign.
_CUT_TAG = re.compile(r"<[a-zA-Z][^<>=]*=[^<>]*\Z")
# A tag cut off, a title that starts as a tag, the end of a tag that never began, a page's timing script.
_FRAGMENT = re.compile(rf"{_CUT_TAG.pattern}|\A\s*</?[a-zA-Z!][^<>]*\Z|\A[^<>]*[\"'\s]/>\s*\Z|\bgetTime\(")
# Control characters other than white space, and surrogates, which no file can hold.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_BY_LINE = re.compile(r"\A\s*by\s*\n\s*")


def clean_html(text: str) -> str:
    """Plain text in one line: entities resolved, tags, scripts, styles and unprintable characters removed.

    Entities are resolved twice, because shops publish `&amp;amp;`. A `<` that begins no tag stays.
    """
    text = _CUT_TAG.sub(" ", _TAG.sub(" ", _HIDDEN.sub(" ", _unescape(text))))
    return " ".join(_UNPRINTABLE.sub("", text).split())


def clean_title(text: str | None) -> str | None:
    """A title in plain text; None if it is missing.

    A piece of mark-up counts as missing: a tag cut off (`<span class="a-size-medium"`), the end of one
    (`Magazines" />`), or a page's script. The 2018 release has many: the crawler cut the page at the wrong place.
    """
    if text is None or text.strip() in MISSING_WORDS:
        return None
    if _FRAGMENT.search(_TAG.sub(" ", _HIDDEN.sub(" ", _unescape(text)))):
        return None
    return clean_html(text) or None


def clean_brand(text: str | None) -> str | None:
    """A brand in plain text, without the line "by" that pages put above it; None if it is missing."""
    return None if text is None else clean_title(_BY_LINE.sub("", text))


def clean_texts(texts: Iterable[str]) -> list[str]:
    """The texts cleaned, without empty ones, words that mean a missing value, and repetitions."""
    clean = (clean_html(text) for text in texts)
    return list(dict.fromkeys(text for text in clean if text and text not in MISSING_WORDS))


def category_path(levels: Iterable[str]) -> list[str]:
    """Category levels from wide to narrow, each once.

    In the 2018 release a level of closing tags (`</span></span></span>`) ends the path; bullet points follow it.
    """
    return clean_texts(takewhile(lambda level: not level.startswith("</span>"), levels))


def item_text(parts: Mapping[str, str | Sequence[str] | None], fields: Sequence[str]) -> str:
    """The parts named by `fields`, in that order, joined by SEPARATOR; missing and empty ones are skipped.

    parts: clean texts by name (title, category, brand, features, description). The levels of a category are
    joined by commas, other lists by spaces. Without any part, the result is empty.
    """
    texts = []
    for field in fields:
        part = parts.get(field) or ""
        if not isinstance(part, str):
            part = (", " if field == "category" else " ").join(part)
        texts.append(part.removesuffix("."))
    return SEPARATOR.join(text for text in texts if text)


def _unescape(text: str) -> str:
    return html.unescape(html.unescape(text))
