"""JSON as programs write it that do not keep to the standard: NaN, Infinity, texts cut in the middle of an emoji."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """The value of a JSON text; NaN, Infinity and -Infinity, as Python writes them, are missing values (None).

    Raises ValueError if it is not JSON, RecursionError if it is nested too deeply.
    """
    return json.loads(text, parse_constant=lambda _: None)


def strict(value: Any) -> bytes:
    """A value as strict JSON; half a surrogate pair, as cutting an emoji leaves it, becomes a question mark.

    Raises ValueError for a number that is not finite, TypeError for what JSON does not have.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
