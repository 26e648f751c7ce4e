"""Text files of processed data sets: UTF-8, one record per line, tab-separated."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from antpipe.errors import DataError


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of lines that are not empty. Raises DataError if the file cannot be read or is not UTF-8."""
    at = 0
    try:
        with path.open("rb") as stream:
            for at, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig" if at == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield at, text
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}:{at}: not UTF-8") from None


def read_fields(path: Path, header: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(line, values) of a file with this header. Raises DataError for another header or another number of values."""
    lines = numbered_lines(path)
    if tuple(next(lines, (1, ""))[1].split("\t")) != tuple(header):
        raise DataError(f"{path}:1: the header is not {' '.join(header)}, separated by tabs")
    for at, text in lines:
        fields = text.split("\t")
        if len(fields) != len(header):
            raise DataError(f"{path}:{at}: {len(fields)} value(s), the header has {len(header)}")
        yield at, fields


def read_index(path: Path) -> list[str]:
    """Original ids by number, from lines of id, tab, number.

    Raises DataError unless the numbers are 0 to N - 1, each once, and the ids are different.
    """
    numbers: dict[int, str] = {}
    ids: set[str] = set()
    for at, text in numbered_lines(path):
        name, _, number = text.rpartition("\t")
        if at == 1 and not number.isdecimal():
            continue  # a header
        if not name.strip() or not number.isdecimal():
            raise DataError(f"{path}:{at}: {text[:80]!r} is not an id, a tab and a number")
        if int(number) in numbers or name in ids:
            raise DataError(f"{path}:{at}: {name!r} or its number {number} is there twice")
        numbers[int(number)] = name
        ids.add(name)
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None or not numbers:
        raise DataError(f"{path}: {len(numbers)} ids, but none has the number {missing or 0}")
    return [numbers[number] for number in range(len(numbers))]
