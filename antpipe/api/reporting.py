"""Reports and figures of what runs and comparisons found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Unpack

from antpipe.api.judging import Comparison
from antpipe.api.keywords import PlotKeywords, ReportKeywords
from antpipe.api.runs import Run
from antpipe.api.settings import given, store_of, takes
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.report import PlotConfig, ReportConfig
from antpipe.store.store import Store

if TYPE_CHECKING:
    from antpipe.report.write import WrittenReport

    Runs: TypeAlias = Run | str | Path | Sequence[Run | str | Path]
    Comparisons: TypeAlias = Comparison | str | Path | Sequence[Comparison | str | Path]


@takes(ReportConfig)
def write_report(
    store: Store | str | Path,
    *,
    out: str | Path,
    runs: "Runs" = (),
    comparisons: "Comparisons" = (),
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[ReportKeywords],
) -> "WrittenReport":
    """Write a report on runs and comparisons: one HTML file that holds everything it shows (docs/report.md).

    store: where catalogues, maps and example users come from; what is not there is left out, and `missing` says why.
    force: replace the file. Needs `antpipe[report]`. Raises UsageError or AntpipeError, before any work, if the file
    cannot be written; DataError if a folder holds nothing finished.

    >>> written = ant.write_report("shop", runs="runs/toys", out="report.html", users=2, force=True)
    >>> written.sections[0], written.bytes < 5_000_000
    ('Arms', True)
    """
    from antpipe.report.write import write_report

    return write_report(
        store_of(store),
        folders_of(runs),
        folders_of(comparisons),
        Path(out),
        given(settings, config).resolve(ReportConfig),
        force=force,
        progress=progress,
    )


@takes(PlotConfig)
def plot(
    store: Store | str | Path,
    name: str,
    *,
    out: str | Path,
    runs: "Runs" = (),
    comparisons: "Comparisons" = (),
    force: bool = False,
    config: str | Path | None = None,
    **settings: Unpack[PlotKeywords],
) -> Path:
    """Write one figure of a report as .svg or .png, in the colours of the light scheme.

    name: arms, differences, transfer, curve, slices, beyond, training, coverage, prices or map. Raises as
    `write_report`, and DataError if the figure's data are not there.

    >>> ant.plot("shop", "map", runs="runs/toys", out="map.svg", force=True).name
    'map.svg'
    """
    from antpipe.report.plots import write_plot

    return write_plot(
        store_of(store),
        name,
        folders_of(runs),
        folders_of(comparisons),
        Path(out),
        given(settings, config).resolve(PlotConfig),
        force=force,
    )


def folders_of(given: "Runs | Comparisons") -> list[Path]:
    """The folders of runs or comparisons, given as such or by their paths."""
    several = [given] if isinstance(given, Run | Comparison | str | Path) else given
    return [one.folder if isinstance(one, Run | Comparison) else Path(one) for one in several]
