"""The values of a row, as users write them: ids, ratings, lists, texts, and where pictures are."""

import math
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from antpipe.features.ingest.literals import parsed, texts_of
from antpipe.features.ingest.text import MISSING_WORDS

# In a list of URLs a separator stands before the next one: URLs may hold commas and bars themselves. A match begins
# where a run of separators does: otherwise a long run would take quadratic time.
BETWEEN_URLS = re.compile(r"(?<![\s,;|])[\s,;|]+(?=(?:https?:)?//)", re.IGNORECASE)
QUOTES = ("'", '"')
OPENING = ("[", "{", "(", "array(", " ", "\t", "\n")  # what a printed list or record may begin with
SEPARATORS = " \t\r\n,;|"
# Around ids: byte-order marks of files that were joined, zero-width signs of web pages, directions of writing.
MARKS = " \ufeff\u200b\u2060\u200e\u200f"
PICTURE_SIZES = ("hi_res", "large", "thumb")
PICTURE_KEYS = (*PICTURE_SIZES, "url", "src", "image", "image_url", "href", "link", "path", "file")
LONGEST_PATH = 1024
COMMA = re.compile(r"\s*[-+]?\d+,(?!\d{3}\s*\Z)\d+\s*")  # a decimal one; that of 1,600 may separate thousands
TRUTH = dict.fromkeys(("true", "yes", "y", "t", "1", "1.0"), True)
TRUTH |= dict.fromkeys(("false", "no", "n", "f", "0", "0.0"), False)


def to_id(value: Any, what: str) -> str:
    """An id as text without blanks and invisible marks around it; 7.0 becomes 7. Raises ValueError if it is missing or
    not an id."""
    if isinstance(value, list | dict):
        raise ValueError(f"{what} id {str(value)[:40]} is not a single value")
    if isinstance(value, float):
        if not value.is_integer():  # NaN too
            raise ValueError(f"no {what} id" if math.isnan(value) else f"{what} id {value} is not a whole number")
        value = int(value)
    text = "" if value is None else str(value).strip()
    if not text.isascii():
        text = text.strip(MARKS).strip()
    if not text:
        raise ValueError(f"no {what} id")
    if "\x00" in text:
        raise ValueError(f"{what} id {text[:40]!r} holds a zero byte")
    return text


def to_rating(value: Any) -> float:
    """A rating, NaN if it is missing. Raises ValueError if it is not a finite number."""
    if value is None or (isinstance(value, str) and (not value.strip() or value.strip() in MISSING_WORDS)):
        return math.nan
    try:
        number = float(value.replace(",", ".") if isinstance(value, str) and COMMA.fullmatch(value) else value)
    except OverflowError:  # of a number of hundreds of digits
        raise ValueError(f"rating {str(value)[:40]!r} is not a finite number") from None
    except (TypeError, ValueError):
        raise ValueError(f"rating {str(value)[:40]!r} is not a number") from None
    if math.isinf(number) or abs(number) > 1e30 or (math.isnan(number) and isinstance(value, str)):
        raise ValueError(f"rating {str(value)[:40]!r} is not a finite number")
    return number


def to_verified(value: Any) -> bool | None:
    """Whether a purchase was verified, None if unknown. Raises ValueError for anything else than true or false."""
    word = value.strip() if isinstance(value, str) else value
    if word is None or (isinstance(word, str) and (not word or word in MISSING_WORDS)):
        return None
    if isinstance(word, float) and math.isnan(word):
        return None
    if isinstance(word, str | int | float) and (truth := TRUTH.get(str(word).lower())) is not None:
        return truth
    raise ValueError(f"verified {str(value)[:40]!r} is neither true nor false")


@dataclass
class Verified:
    """Reads a column that says which purchases are verified.

    named: by the user, so that an unfit value makes its row malformed; otherwise such values are only counted, and show
    that the column says something else. first: the line and reason of the first.
    """

    named: bool
    unfit: int = 0
    first: tuple[int, str] = (0, "")

    def read(self, line: int, value: Any) -> bool | None:
        """Whether a purchase was verified, None if unknown. Raises ValueError as `to_verified` if the user named the
        column."""
        try:
            return to_verified(value)
        except ValueError as error:
            if self.named:
                raise
            self.first = self.first if self.unfit else (line, str(error))
            self.unfit += 1
            return None


def pictures_of(
    value: Any, folder: Path, missing: list[str], outside: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """URLs, and absolute paths of files that exist; names of other files go to `missing`.

    outside: takes the names of files that are not below the folder (None: they are taken as pictures).
    """
    urls, files = [], []
    names = [name for text in _pictures(value) for name in _names_in(folder, text)]
    for name in dict.fromkeys(names):
        if is_url(name):
            urls.append(f"https:{name}" if name.startswith("//") else name)
        elif name and outside is not None and leads_out(folder, name):
            outside.append(name[:200])
        elif name and _is_file(folder, name):
            files.append(str((folder / name).resolve()))
        elif name:
            missing.append(name[:200])
    return urls, files


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://", "//"))


def _pictures(value: Any) -> list[str]:
    """The texts of a picture column: of a list, nested or not, or of records.

    From records of several sizes, as in the Amazon release of 2023, the largest is taken. Such a column holds a list of
    records, or one record of lists, as in Parquet files made by `datasets`.
    """
    value = parsed(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        fields = [value.get(key) for key in PICTURE_KEYS]
        columns = [field if isinstance(field, list) else [field] for field in fields if field]
        largest = (next(filter(None, some), None) for some in zip_longest(*columns))
        return [str(text) for text in largest if text is not None]
    if isinstance(value, list):
        return [text for one in value for text in _pictures(one)]
    return listed(value)


def _names_in(folder: Path, text: str) -> list[str]:
    """The URLs or file names in a text, between blanks, commas, semicolons or bars."""
    names = []
    for part in BETWEEN_URLS.split(text.strip(SEPARATORS)):
        if is_url(part) or _is_file(folder, part):
            names.append(part)
        else:
            names += [name.strip() for name in re.split("[,;|]", part)]
    return names


def leads_out(folder: Path, name: str) -> bool:
    """Whether a name, directly or through a link, leads to something outside the folder."""
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
    return " ".join(parts) if (parts := described(value)) else None


def described(value: Any) -> list[str]:
    """A value as texts like `listed`, but the fields of a record keep their names."""
    if isinstance(value, str) and not value.startswith(OPENING):  # nearly all values, so a shortcut for speed
        return [] if value.strip() in MISSING_WORDS else [value]
    return texts_of(parsed(value) if isinstance(value, str) else value, MISSING_WORDS, with_keys=True)


def number_of(value: Any) -> Any:
    """A price: a record or list that a text represents as itself."""
    return parsed(value) if isinstance(value, str) and value.startswith(OPENING) else value


def levels_of(value: Any) -> list[str]:
    """The levels of a category; of several paths, the first. RecBole's data sets have lists without brackets."""
    if isinstance(value, str):
        bare = value.strip()
        found = parsed(f"[{bare}]" if bare.startswith(QUOTES) and bare.endswith(QUOTES) else value)
        value = value if isinstance(found, str) else found
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    return texts_of(value, MISSING_WORDS)


def listed(value: Any) -> list[str]:
    """A value as texts: a list, nested or not, a list or record as CSV files hold it, or one text.

    A missing value, also if it is written as a word, such as nan, is no text.
    """
    if isinstance(value, str) and not value.startswith(OPENING):
        return [] if value.strip() in MISSING_WORDS else [value]
    return texts_of(parsed(value) if isinstance(value, str) else value, MISSING_WORDS)
