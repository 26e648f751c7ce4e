"""The values of a row, as users write them: ids, ratings, lists, texts, and where pictures are."""

import json
import math
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

MISSING_WORDS = ("nan", "NaN", "None", "<NA>", "null")  # what pandas and others write for a missing value
PYTHON_TEXT = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
PYTHON_LIST = re.compile(rf"\[\s*(?:(?:{PYTHON_TEXT.pattern})(?:\s*,\s*|\s+|(?=\])))*\]")
BETWEEN_URLS = re.compile(r"\||[\s,;]+(?=https?://)", re.IGNORECASE)
PICTURE_SIZES = ("hi_res", "large", "thumb")
LONGEST_PATH = 1024


def to_id(value: Any, what: str) -> str:
    """An id as text without blanks around it; 7.0 becomes 7. Raises ValueError if it is missing or not an id."""
    if isinstance(value, list | dict):
        raise ValueError(f"{what} id {str(value)[:40]} is not a single value")
    if isinstance(value, float):
        if not value.is_integer():  # NaN too
            raise ValueError(f"no {what} id" if math.isnan(value) else f"{what} id {value} is not a whole number")
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise ValueError(f"no {what} id")
    return text


def to_rating(value: Any) -> float:
    """A rating, NaN if it is missing. Raises ValueError if it is not a finite number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"rating {str(value)[:40]!r} is not a number") from None
    if math.isinf(number) or abs(number) > 1e30 or (math.isnan(number) and isinstance(value, str)):
        raise ValueError(f"rating {str(value)[:40]!r} is not a finite number")
    return number


def pictures_of(
    value: Any, folder: Path, missing: list[str], outside: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """URLs, and absolute paths of files that exist; names of other files go to `missing`.

    outside: takes the names of files that are not below the folder (None: they are taken as pictures).
    """
    urls, files = [], []
    names = [part.strip() for text in _pictures(value) for part in BETWEEN_URLS.split(text)]
    if any(";" in name or "," in name for name in names):
        names = [part for name in names for part in _file_names(folder, name)]
    for name in dict.fromkeys(names):
        if name.lower().startswith(("http://", "https://")):
            urls.append(name)
        elif name and outside is not None and leads_out(folder, name):
            outside.append(name[:200])
        elif name and _is_file(folder, name):
            files.append(str((folder / name).resolve()))
        elif name:
            missing.append(name[:200])
    return urls, files


def _pictures(value: Any) -> list[str]:
    """The texts of a picture column. Of records of sizes, as the Amazon release of 2023 has them, the largest counts.

    Such a column holds a list of records, or one record of lists, as Parquet files made by `datasets` do.
    """
    if isinstance(value, dict):
        sizes = [value.get(size) or [] for size in PICTURE_SIZES]
        return [url for some in zip_longest(*sizes) if (url := next(filter(None, some), None))]
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        records = [one for one in value if isinstance(one, dict)]
        return [url for one in records if (url := next(filter(None, map(one.get, PICTURE_SIZES)), None))]
    return listed(value)


def _file_names(folder: Path, name: str) -> list[str]:
    """One name, or several between commas or semicolons if it is neither a URL nor a file."""
    if name.lower().startswith(("http://", "https://")) or _is_file(folder, name):
        return [name]
    return [part.strip() for part in re.split("[,;]", name)]


def leads_out(folder: Path, name: str) -> bool:
    """Whether a name, as it stands or by a link, is that of something not below the folder."""
    try:
        return not (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
        return False


def _is_file(folder: Path, name: str) -> bool:
    """Whether a file of this name exists and may be looked at."""
    if len(name) > LONGEST_PATH or "\x00" in name:
        return False
    try:
        return (folder / name).is_file()
    except OSError:  # a part longer than 255 bytes, a folder without permission
        return False


def text_of(value: Any) -> str | None:
    return " ".join(parts) if (parts := listed(value)) else None


def number_of(value: Any) -> Any:
    """A price: decimals of Parquet as floats."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def listed(value: Any) -> list[str]:
    """A value as texts: a list, a list as CSV files hold it (JSON, or as Python prints it), or one text.

    A missing value, also if it is written as a word, such as nan, is no text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = _python_list(value)
    parts = value if isinstance(value, list) else [value]
    return [str(part) for part in parts if part is not None and part not in MISSING_WORDS]


def _python_list(text: str) -> Any:
    """The texts of a list that Python or numpy printed; `text` itself if it is not one, but a text in brackets."""
    if not PYTHON_LIST.fullmatch(text):
        return text
    escaped = {"n": "\n", "t": "\t", "\\": "\\", "'": "'", '"': '"'}  # others stay as they are
    return [
        re.sub(r"\\(.)", lambda match: escaped.get(match[1], match[0]), part[1:-1])
        for part in PYTHON_TEXT.findall(text)
    ]
