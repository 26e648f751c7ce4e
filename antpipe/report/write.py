"""`antpipe report`: everything that comparisons and runs found, on one page in one file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antpipe.report.blocks import Missing, Numbers, Section
from antpipe.report.figure import listed
from antpipe.report.findings import gather
from antpipe.report.output import require_writable, save
from antpipe.report.page import render
from antpipe.report.render import require_libraries
from antpipe.report.sections import (
    arms_section,
    beyond_section,
    catalogue_section,
    curves_section,
    opened_sections,
    slices_section,
    training_section,
    transfer_section,
    untested,
)
from antpipe.report.users import Pictures
from antpipe.report.verdict import headline, lines
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.report import ReportConfig
from antpipe.store.store import Store

LARGE = 5_000_000  # bytes; a report that is larger is awkward to send
PAGE, PICTURES = (".html", ".htm"), (".svg", ".png")


@dataclass(frozen=True)
class WrittenReport:
    """A report in a file. sections: titles of those shown; missing: titles of the others, with the reason."""

    path: Path
    bytes: int
    headline: str
    sections: Sequence[str]
    missing: Mapping[str, str]


def write_report(
    store: Store,
    runs: Sequence[Path],
    comparisons: Sequence[Path],
    out: Path,
    config: ReportConfig,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> WrittenReport:
    """Write a report on runs and comparisons as one HTML file.

    Raises, before any work, UsageError if there is nothing to report on or the file exists (without force), and
    AntpipeError if it cannot be written; DataError or IntegrityError as `gather`.
    """
    require_libraries()
    require_writable(out, PAGE, "report", force=force)
    found = gather(runs, comparisons)
    numbers, pictures = Numbers(), Pictures(config.pictures)
    steps: list[Callable[[], Sequence[Section | Missing]]] = [
        lambda: [*untested(found, store), arms_section(found, numbers)],
        lambda: [transfer_section(found, store, numbers), curves_section(found, store, numbers)],
        lambda: [slices_section(found, numbers), beyond_section(found, store, numbers)],
        lambda: [training_section(found, numbers)],
        lambda: [catalogue_section(found, store, numbers)],
        lambda: opened_sections(found, store, config, numbers, pictures),
    ]
    made: list[Section | Missing] = []
    with progress("report") as update:
        for done, step in enumerate(steps):
            update(done, len(steps))
            made += step()
        update(len(steps), len(steps))
    sections = [one for one in made if isinstance(one, Section)]
    missing = [one for one in made if isinstance(one, Missing)]
    named = listed(found.subjects(), 4)
    first = headline(found)
    inputs = [str(path) for path in (*comparisons, *runs)]
    page = render(f"Report on {named}", first, lines(found), sections, missing, inputs, pictures.urls)
    content = page.encode("utf-8")
    save(out, content)
    if len(content) > LARGE:
        log.warning(
            f"{out} has {len(content) / 1e6:.1f} MB; --map-items 500, --users 4 or --no-pictures make it smaller"
        )
    shown, absent = [one.title for one in sections], {one.title: one.why for one in missing}
    return WrittenReport(out, len(content), first, shown, absent)
