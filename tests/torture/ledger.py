"""The ledger of trials: one JSON line each, and the table of its counts."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.torture.trial import FAILURES, REFUSED, WHOLE

BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"


@dataclass(frozen=True)
class Line:
    """One trial. number: its place in what the seed draws. seconds: of wall-clock time. about: its kind, in words."""

    kind: str
    about: str
    seed: int
    number: int
    command: str
    outcome: str
    inputs: int
    seconds: float
    told: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome in FAILURES


class Ledger:
    """Lines of a file, of which the last one may be cut short."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, line: Line) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(line)) + "\n")

    def lines(self) -> list[Line]:
        """All that are whole; the file then ends with one."""
        if not self.path.exists():
            return []
        content = self.path.read_text(encoding="utf-8")
        whole = content[: content.rfind("\n") + 1]
        if whole != content:
            self.path.write_text(whole, encoding="utf-8")
        return [Line(**json.loads(line)) for line in whole.splitlines()]

    def done(self, seed: int) -> set[tuple[str, int]]:
        """Kinds and numbers of the trials of a seed that are there and did not fail: no need to repeat them."""
        return {(line.kind, line.number) for line in latest(self.lines()) if line.seed == seed and not line.failed}


def latest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each trial."""
    return list({(line.kind, line.seed, line.number): line for line in lines}.values())


def table(every: Sequence[Line]) -> list[str]:
    """The counts as a Markdown table: kinds, trials and inputs; how many left all whole, were refused, failed."""
    lines = latest(every)
    kinds = dict.fromkeys(line.kind for line in sorted(lines, key=lambda line: line.kind))
    rows = [_row(next(line.about for line in lines if line.kind == kind), _of(lines, kind)) for kind in kinds]
    head = ["| what happens | trials | inputs | nothing lost, right result | refused by name | failed | minutes |"]
    return [*head, "|---|---:|---:|---:|---:|---:|---:|", *rows, _row("**all**", lines)]


def _of(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line.kind == kind]


def _row(name: str, lines: Sequence[Line]) -> str:
    outcomes = [line.outcome for line in lines]
    counts = [len(lines), sum(line.inputs for line in lines), outcomes.count(WHOLE), outcomes.count(REFUSED)]
    counts.append(sum(line.failed for line in lines))
    minutes = sum(line.seconds for line in lines) / 60
    return f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {minutes:.1f} |"


def rewrite(page: Path, lines: Sequence[Line]) -> None:
    """Put the table of the ledger between the markers of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page}: it lacks {BEGIN} and {END}")
    again = len({(line.kind, line.seed, line.number) for line in lines if line.failed})
    said = [f"{again} of these trials failed at first. What they found was mended, and they were repeated.", ""]
    page.write_text(
        "\n".join([f"{before}{BEGIN}", *said[: 2 * again], *table(lines), f"{END}{after}"]), encoding="utf-8"
    )


def counted_in(page: Path) -> list[int]:
    """The last row of the table in a page: trials, inputs, whole, refused, failed."""
    (row,) = re.findall(r"^\| \*\*all\*\* \| (.*) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [int(cell.replace(",", "")) for cell in row.split(" | ")[:5]]
