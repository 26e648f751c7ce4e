"""Texts of strangers (ids, titles, file names) as a terminal may show them and a shell may read them."""

import re
import shlex
import unicodedata
from collections.abc import Iterable

# Control and format characters (escape sequences, directions of writing, invisible signs), separators of lines, and
# halves of characters. Zero-width joiners stay: emoji and several scripts need them.
KEPT = "\u200c\u200d"
HIDDEN = re.compile(r"[^\x20-\x7e\xa1-\xac\xae-\u02ff]")


def is_hidden(character: str) -> bool:
    """Whether a character does something to a terminal, or to the text around it, other than being seen."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in KEPT


def shown(text: str, keep: str = "\n\t") -> str:
    """A text with each hidden character, but those to keep, as an escape such as \\u001b, as JSON would write it."""
    return HIDDEN.sub(lambda one: _escaped(one[0]) if is_hidden(one[0]) and one[0] not in keep else one[0], text)


def cell(value: object) -> str:
    """A value in a line of a table: nothing in it begins another line."""
    return shown(str(value), keep="")


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))


def command_line(words: Iterable[str]) -> str:
    """Words as a shell reads them; one with hidden characters in the form $'…', which bash, zsh and ksh take."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if not any(map(is_hidden, word)):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    raw = "".join(
        "".join(f"\\x{byte:02x}" for byte in one.encode("utf-8", "surrogateescape")) if is_hidden(one) else one
        for one in plain
    )
    return f"$'{raw}'"
