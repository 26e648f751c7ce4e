"""Untrusted texts (ids, titles, file names) in a form safe for a shell; terminal.py does this for a terminal."""

import shlex
import unicodedata
from collections.abc import Iterable

# Control and format characters (escape sequences, directions of writing, invisible signs), separators of lines, and
# halves of characters. Zero-width joiners stay: emoji and several scripts need them.
KEPT = "\u200c\u200d"


def is_hidden(character: str) -> bool:
    """Whether a character affects a terminal, or the text around it, other than by being displayed."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in KEPT


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
