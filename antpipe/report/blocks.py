"""The blocks of a section of the page, as plain data for its template."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from antpipe.report.figure import Figure
from antpipe.report.render import to_svg
from antpipe.report.theme import on_page
from antpipe.report.users import Example

WIDE, NARROW = 860, 340  # pixels; a screen shows one of the two


@dataclass(frozen=True)
class Drawing:
    """A figure at two widths, as SVG elements. searched: points can be found by their titles."""

    kind: ClassVar[str] = "drawing"
    wide: str
    narrow: str
    caption: str
    searched: bool = False


@dataclass(frozen=True)
class Table:
    """A table. filtered: a reader may search rows by their first cell; folded: hidden until it is opened."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    filtered: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Lines:
    """Sentences."""

    kind: ClassVar[str] = "lines"
    lines: Sequence[str]


@dataclass(frozen=True)
class Sizes:
    """The sizes of what follows, in words."""

    kind: ClassVar[str] = "sizes"
    text: str


@dataclass(frozen=True)
class Users:
    """Example users."""

    kind: ClassVar[str] = "users"
    about: str
    examples: Sequence[Example]


Block = Drawing | Table | Lines | Sizes | Users


@dataclass(frozen=True)
class Panel:
    """Blocks under one label; several panels of a section are tabs."""

    label: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """name: part of its address. about: a sentence on what it shows."""

    name: str
    title: str
    about: str
    panels: Sequence[Panel] = field(default_factory=tuple)


@dataclass(frozen=True)
class Missing:
    """A section that is not shown: why, and the command that makes its data ('' if there is none)."""

    title: str
    why: str
    command: str = ""


@dataclass
class Numbers:
    """A counter for figures, so that the ids inside their SVGs differ."""

    last: int = 0

    def drawn(self, figure: Figure, *, searched: bool = False) -> Drawing:
        """A figure at both widths."""
        self.last += 1
        wide = to_svg(figure.draw(on_page(WIDE)), figure.alt, f"w{self.last}")
        narrow = to_svg(figure.draw(on_page(NARROW)), figure.alt, f"n{self.last}")
        return Drawing(wide, narrow, figure.caption, searched)
