"""Stray quotes that swallow rows of a text table.

A quote that opens a value by mistake and one that happens to close it many lines later turn all lines between them
into one good row. Split into lines, such a value consists of rows: as many values as the header, of the shapes that the
columns have elsewhere. Texts with line breaks practically never do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.store.looking import unpacking
from antpipe.store.next_command import shell

LEARNED = 1000  # rows from which the shapes of the columns are learned
WAITING = 100  # suspects that are kept until LEARNED rows are read
LINES = 200  # lines of a value that are examined
LINE_BREAK = re.compile(r"\r\n|\r|\n")
BACKSLASHED = '\\"'  # how Spark and MySQL write a quote inside quotes
DOUBLE = r's/\\(["\\])/\1\1/g'  # of sed
ESCAPED = f'quotes inside values are written {BACKSLASHED}, with a backslash; write them doubled, as ""'

# Properties of a value, as bits. An empty value has all but the first.
FILLED, UNINDENTED, ONE_WORD, NUMBER, DIGIT, NO_LOWER, NO_UPPER = (1 << bit for bit in range(7))
ALL = (1 << 7) - 1


@dataclass(frozen=True)
class Suspect:
    """A row from line `first` to line `last` that may have swallowed others.

    opened, closed: the columns in which its quotes open and close. head, tail: its first and last line. inner: those of
    the `between` examined lines between them that have the right width.
    """

    first: int
    last: int
    opened: int
    closed: int
    head: list[str]
    tail: list[str]
    inner: list[list[str]]
    between: int
    escaped: bool  # whether a value has a quote after a backslash


@dataclass
class QuoteCheck:
    """Examines the rows of a file one by one. shapes: for each column, the bits that all its values share."""

    path: Path
    columns: Sequence[str]
    delimiter: str
    shapes: list[int] = field(init=False)
    learned: int = 0
    learning: bool = True
    waiting: list[Suspect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shapes = [ALL] * len(self.columns)

    def see(self, row: Sequence[str], first: int, last: int) -> None:
        """Raises SettingsError if a row has swallowed others; perhaps later, when more rows have shown the shapes."""
        suspect = self._suspect(row, first, last) if last > first else None
        if suspect is not None and not self.learning:
            self._require_one_row(suspect)
        elif suspect is not None and len(self.waiting) < WAITING:
            self.waiting.append(suspect)
        if self.learning and len(row) == len(self.columns):
            self._learn(row)
            self.learned += 1
            if self.learned == LEARNED:
                self.settle()

    def settle(self) -> None:
        """Decide on the suspects that wait. Call it after the last row."""
        self.learning = False
        for suspect in self.waiting:
            self._require_one_row(suspect)
        self.waiting.clear()

    def _learn(self, row: Sequence[str]) -> None:
        for column, value in enumerate(row):
            if not LINE_BREAK.search(value):  # then it is a value of its column, whatever the quotes mean
                self.shapes[column] &= shape_of(value)

    def _suspect(self, row: Sequence[str], first: int, last: int) -> Suspect | None:
        """None unless the first line, the last one and half of those between have as many values as the header."""
        opened = next((column for column, value in enumerate(row) if LINE_BREAK.search(value)), None)
        if opened is None:  # the line breaks are before or after the row
            return None
        closed, (head, *between, tail) = lines_of(row, self.delimiter)
        width = len(self.columns)
        if len(head) != width or len(tail) != width:
            return None
        between = [line for line in between if line != [""]][:LINES]
        inner = [line for line in between if len(line) == width]
        if 2 * len(inner) < len(between):
            return None
        return Suspect(
            first, last, opened, closed, head, tail, inner, len(between), any(BACKSLASHED in one for one in row)
        )

    def _require_one_row(self, suspect: Suspect) -> None:
        like_rows = sum(self._fits(row, suspect.opened) for row in suspect.inner)
        if (
            2 * like_rows < suspect.between
            or not self._fits(suspect.head, suspect.opened)
            or not self._fits(suspect.tail, suspect.closed)
        ):
            return
        what = (
            f"{self.path}:{suspect.first}: a quote opens a value of {self.columns[suspect.opened]!r} here, it ends in "
            f"line {suspect.last}, and the lines in it look like rows of their own"
        )
        if suspect.escaped:
            raise DataError(f"{what}; {ESCAPED}", doubling(self.path))
        raise SettingsError(
            f"{what}; if quotes mean nothing in this file, add --no-quotes (if it is one value, add --quotes)",
            {"quotes": False},
        )

    def _fits(self, row: Sequence[str], quoted: int) -> bool:
        """Whether values look like those of their columns. quoted: the column with the quote, which is free text."""
        return all(
            not (shape & (UNINDENTED if column == quoted else ALL) & ~shape_of(value))
            for column, (shape, value) in enumerate(zip(self.shapes, row, strict=True))
        )


def lines_of(row: Sequence[str], delimiter: str) -> tuple[int, list[list[str]]]:
    """The column in which the last value with line breaks ends, and the lines of a row.

    The lines are split as if the quotes of such values meant nothing.
    """
    lines: list[list[str]] = [[]]
    closed = 0
    for value in row:
        if not LINE_BREAK.search(value):
            lines[-1].append(value)
            continue
        first, *others = (part.split(delimiter) for part in LINE_BREAK.split(value))
        lines[-1] += first
        lines += others
        closed = len(lines[-1]) - 1
    return closed, lines


def shape_of(value: str) -> int:
    if not value:
        return ALL & ~FILLED
    shape = FILLED
    shape |= 0 if value[0].isspace() else UNINDENTED
    shape |= ONE_WORD if len(value.split()) == 1 else 0
    shape |= NUMBER if _is_number(value) else 0
    shape |= DIGIT if any(letter.isdigit() for letter in value) else 0
    shape |= NO_LOWER if value == value.upper() else 0
    shape |= NO_UPPER if value == value.lower() else 0
    return shape


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def doubling(path: Path) -> str:
    """A command that writes quotes after backslashes doubled; it leaves pairs of backslashes as they are."""
    stem, dot, suffixes = path.name.partition(".")
    inside = (dot + suffixes).removesuffix(path.suffix) or path.suffix
    return f"{unpacking(path)} | {shell('sed', '-E', DOUBLE)} > {shell(f'{stem}-doubled{inside}')}"
