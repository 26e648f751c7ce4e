"""Commands that show what runs and comparisons found."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import JUDGING, RUN, Call, app, command, flag
from antpipe.runtime.terminal import on_stderr

RunFolders = Annotated[list[Path] | None, flag("--run", "folder of a trained run; repeatable")]
Comparisons = Annotated[list[Path] | None, flag("--compare", "folder of a comparison; repeatable")]
Replace = Annotated[bool, flag("--force", "replace the file of --out", RUN)]


@command(
    app,
    "report",
    JUDGING,
    takes=api.reporting.write_report,
    examples=[
        "antpipe report --compare cmp --out report.html",
        "antpipe report --run runs/scratch --run runs/relearn --out report.html",
    ],
)
def report(
    call: Call,
    out: Annotated[Path, flag("--out", "the HTML file")],
    runs: RunFolders = None,
    comparisons: Comparisons = None,
    force: Replace = False,
) -> None:
    """Write what was found as one HTML page."""
    written = api.reporting.write_report(
        call.store,
        out=out,
        runs=runs or (),
        comparisons=comparisons or (),
        force=force,
        progress=on_stderr,
        **call.settings,
    )
    call.show(show.report_as_data(written), show.report(written))


@command(
    app,
    "plot",
    JUDGING,
    takes=api.reporting.plot,
    examples=[
        "antpipe plot arms --compare cmp --out arms.svg",
        "antpipe plot map --run runs/relearn --out map.png --width 900",
    ],
)
def plot(
    call: Call,
    name: Annotated[
        str,
        typer.Argument(
            help="arms, differences, transfer, curve, slices, beyond, training, coverage, prices or map",
            show_default=False,
        ),
    ],
    out: Annotated[Path, flag("--out", "file: .svg or .png")],
    runs: RunFolders = None,
    comparisons: Comparisons = None,
    force: Replace = False,
) -> None:
    """Write one figure of a report as SVG or PNG."""
    written = api.reporting.plot(
        call.store, name, out=out, runs=runs or (), comparisons=comparisons or (), force=force, **call.settings
    )
    call.show({"path": str(written)}, str(written))
