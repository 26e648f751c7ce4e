"""Lists and records as programs print them into a cell: JSON, Python, numpy.

pandas writes a column of lists to CSV as ['a', 'b'], one of arrays as ['a' 'b'], one of records as {'name': 'a'}.
"""

import json
import math
import re
from typing import Any

DEEPEST = 20
TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])
    |(?P<word>None|True|False|nan|NaN|null|true|false|<NA>|dtype=\w+|array(?=\())
    |(?P<sign>[][(){},:])
    )\s*""",
    re.VERBOSE,
)
WORDS = {"True": True, "true": True, "False": False, "false": False}
CLOSING = {"[": "]", "(": ")", "{": "}"}
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
# Keys whose value represents the whole record, the best first.
NAMES = ("name", "title", "label", "text", "value")


class NoLiteralError(Exception):
    """The text is not a list or record."""


def parsed(text: str) -> Any:
    """The list (or tuple, set, array) or record that a text represents; `text` itself if it is neither."""
    stripped = text.strip()
    if not stripped.startswith(("[", "{", "('", '("', "array(")) or not stripped.endswith(("]", "}", ")")):
        return text
    if stripped[0] in "[{":
        try:
            value = json.loads(stripped)
            return value if _is_shallow(value, DEEPEST) else text
        except (ValueError, RecursionError):
            pass
    try:
        tokens = _tokens(stripped)
        value = _value(tokens, DEEPEST)
        return value if not tokens else text
    except NoLiteralError:
        return text


def texts_of(value: Any, missing: frozenset[str], *, with_keys: bool = False) -> list[str]:
    """The texts of a value, nested or not, from the first to the last.

    missing: words that stand for no text. with_keys: write a record without a name as `key: value`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, dict):
        name = next((value[key] for key in NAMES if value.get(key) not in (None, "")), None)
        if name is not None:
            return texts_of(name, missing)
        fields = {key: " ".join(texts_of(one, missing)) for key, one in value.items()}
        return [f"{key}: {text}" if with_keys else text for key, text in fields.items() if text]
    if isinstance(value, list):
        return [text for one in value for text in texts_of(one, missing, with_keys=with_keys)]
    text = str(value)
    return [] if text.strip() in missing else [text]


def _is_shallow(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(one, depth - 1) for one in inner)


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token, the last one first. Raises NoLiteralError."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise NoLiteralError
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return found[::-1]


def _value(tokens: list[tuple[str, str]], depth: int) -> Any:
    """Take a value off the end of the tokens. Raises NoLiteralError."""
    if not tokens or not depth:
        raise NoLiteralError
    kind, text = tokens.pop()
    if kind == "text":
        return ESCAPE.sub(_unescaped, text[1:-1])
    if kind == "number":
        return text  # it becomes one anyway
    if kind == "word" and text != "array":
        return WORDS.get(text)
    if text == "array":
        return _value(tokens, depth)
    if text not in CLOSING:
        raise NoLiteralError
    return _collection(tokens, CLOSING[text], depth)


def _collection(tokens: list[tuple[str, str]], closing: str, depth: int) -> list[Any] | dict[str, Any]:
    values: list[Any] = []
    record: dict[str, Any] = {}
    while tokens and tokens[-1] != ("sign", closing):
        if tokens[-1] == ("sign", ",") or tokens[-1][1].startswith("dtype="):
            tokens.pop()
            continue
        value = _value(tokens, depth - 1)
        if closing == "}" and tokens and tokens[-1] == ("sign", ":"):
            tokens.pop()
            record[str(value)] = _value(tokens, depth - 1)
        else:
            values.append(value)
    if not tokens or (record and values):
        raise NoLiteralError
    tokens.pop()
    if closing == ")" and len(values) == 1 and isinstance(values[0], list):  # array([...])
        return values[0]
    return record or values


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        number = int(code, 16)
        return chr(number) if number < 0x110000 else match[0]
    return ESCAPED.get(match[4], match[0])
