"""`antpipe plot`: a single figure of a report, in a file of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.report.arms import arms_figure, differences_figure
from antpipe.report.curves import curve_figure
from antpipe.report.figure import Figure
from antpipe.report.findings import Findings, Judged, gather
from antpipe.report.item_map import map_figure, map_of
from antpipe.report.output import require_writable, save
from antpipe.report.parts import beyond_figure, slices_figure
from antpipe.report.render import require_libraries, to_png, to_svg
from antpipe.report.sections import runs_to_open
from antpipe.report.shops import coverage_figure, describe, price_figure
from antpipe.report.theme import on_paper
from antpipe.report.training import training_figure
from antpipe.report.transfer import stacked, transfer_figures
from antpipe.report.users import open_as_judged
from antpipe.settings.report import PlotConfig
from antpipe.store.next_command import spell
from antpipe.store.store import Store

FORMATS = (".svg", ".png")


def write_plot(
    store: Store,
    name: str,
    runs: Sequence[Path],
    comparisons: Sequence[Path],
    out: Path,
    config: PlotConfig,
    *,
    force: bool = False,
) -> Path:
    """Write one figure as SVG or PNG. name: one of PLOTS.

    Raises UsageError for an unknown figure, target or metric, DataError if the data of the figure are missing,
    AntpipeError if the file cannot be written.
    """
    require_libraries()
    if name not in PLOTS:
        raise UsageError(f"plot {name}: choose from {', '.join(PLOTS)}")
    require_writable(out, FORMATS, "figure", force=force)
    figure = PLOTS[name](store, gather(runs, comparisons), config)
    spec = figure.draw(on_paper(config.width))
    content = to_png(spec, config.scale) if out.suffix.lower() == ".png" else to_svg(spec, figure.alt, "f").encode()
    save(out, content)
    return out


def pick(names: Sequence[str], config: PlotConfig) -> str:
    """The name given with --target; it may be left out if there is only one."""
    if config.target is not None and config.target in names:
        return config.target
    if config.target is None and len(names) == 1:
        return names[0]
    said = "name one with --target" if config.target is None else f"--target {config.target}: unknown"
    raise UsageError(f"{said}: {', '.join(names)}", SameCommand({"--target": names[0]}))


def target_of(found: Findings, config: PlotConfig) -> Judged:
    """The target that a figure is about, with the metric and protocol checked."""
    if not found.judged:
        domain, runs = next(iter(found.loose.items()))
        command = spell("evaluate", domains=[domain], flags=["--run", runs[0]])
        raise DataError(f"{runs[0]}: was not evaluated on the test split", command)
    one = {each.label: each for each in found.judged}[pick([each.label for each in found.judged], config)]
    protocol = config.protocol or one.rules["protocol"]
    known = list(next(iter(one.arms.values()))["protocols"][protocol])
    if config.metric is not None and config.metric not in known:
        raise UsageError(
            f"--metric {config.metric}: choose from {', '.join(known)}", SameCommand({"--metric": known[0]})
        )
    return one


def there(figure: Figure | None, why: str, command: str | None = None) -> Figure:
    if figure is None:
        raise DataError(why, command)
    return figure


def plot_arms(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001 -- as all of PLOTS
    return arms_figure(target_of(found, config), config.metric, config.protocol)


def plot_differences(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    one = target_of(found, config)
    why = f"{one.label}: no {config.metric or one.rules['metric']} of an arm was compared with a control"
    return there(differences_figure(one, config.metric, config.protocol), why)


def plot_transfer(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    figures = transfer_figures(found.judged, found.outcomes)
    why = "no comparison left sources out (--leave-one-out), or started from several"
    return there(stacked(figures) if figures else None, why, spell("compare --help"))


def plot_curve(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    if not found.curves:
        raise DataError("no comparison was made at several numbers of users (--target-users)", spell("compare --help"))
    name = pick(list(found.curves), config)
    curve, outcome = found.curves[name]
    return curve_figure(name, curve, outcome, config.metric, config.protocol)


def plot_slices(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    one = target_of(found, config)
    return there(slices_figure(one, config.metric, config.protocol), f"{one.label}: no evaluation of its runs is here")


def plot_beyond(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    one = target_of(found, config)
    why = f"{one.label}: nothing beyond accuracy was measured (--beyond-accuracy)"
    return there(beyond_figure(one, config.protocol), why, spell("evaluate --help"))


def plot_training(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    one = target_of(found, config)
    return there(training_figure(one), f"{one.label}: no trained run of its arms is here")


def plot_coverage(store: Store, found: Findings, config: PlotConfig) -> Figure:  # noqa: ARG001
    return coverage_figure([describe(store.domain(name)) for name in found.domains()])


def plot_prices(store: Store, found: Findings, config: PlotConfig) -> Figure:
    shop = describe(store.domain(pick(found.domains(), config)))
    return there(price_figure(shop), f"domain {shop.name}: its items have fewer than two prices")


def plot_map(store: Store, found: Findings, config: PlotConfig) -> Figure:
    wanted = runs_to_open(found)
    if not wanted:
        raise DataError("no finished run of these arms is here", spell("train --help"))
    label = pick(list(wanted), config)
    domain, _, runs = wanted[label]
    arm, run = next(iter(runs.items()))
    return map_figure(map_of(open_as_judged(store, run, domain), config.map_items, config.seed), label, arm)


Plot = Callable[[Store, Findings, PlotConfig], Figure]
PLOTS: dict[str, Plot] = {
    "arms": plot_arms,
    "differences": plot_differences,
    "transfer": plot_transfer,
    "curve": plot_curve,
    "slices": plot_slices,
    "beyond": plot_beyond,
    "training": plot_training,
    "coverage": plot_coverage,
    "prices": plot_prices,
    "map": plot_map,
}
