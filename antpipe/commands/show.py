"""Results as text for a terminal. The same results are available as data with --json."""

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from antpipe.commands.phrases import cut, phrases, said, wrapped
from antpipe.runtime.terminal import cell

if TYPE_CHECKING:
    from antpipe.api.runs import Run
    from antpipe.export.folder import Exported
    from antpipe.features.encoders.known import Encoder
    from antpipe.report.write import WrittenReport
    from antpipe.serving.batch import Written
    from antpipe.store.artefacts import StageResult, State
    from antpipe.store.figures import Figures, Overlap
    from antpipe.training.groups import GroupRow
    from antpipe.training.listing import RunSummary
    from antpipe.tuning.run import Tuned
    from antpipe.upkeep.findings import Finding
    from antpipe.upkeep.unused import Collected

BEST_TRIALS = 3  # of a search; the others are in --json and trials.jsonl
SHOWN = ("recall@10", "ndcg@10", "recall@50")  # of validation and slices; the others are in --json


def inline(figures: Mapping[str, Any]) -> str:
    """`name=value` of the figures that fit on a line; the rest is in the manifest and in --json."""
    plain = {name: value for name, value in figures.items() if isinstance(value, str | int | float)}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in plain.items()
    )


def artefacts(results: "Sequence[StageResult]") -> str:
    """A line per artefact, and what it holds."""
    return "\n".join(
        with_figures(f"{result.domain}  {result.artefact}  {result.status}", result.figures) for result in results
    )


def with_figures(head: str, figures: Mapping[str, Any]) -> str:
    """A result and its figures: in words for a terminal, else one line of `name=value`, which scripts can read.

    ANTPIPE_WORDS=1 asks for words, 0 for `name=value`, wherever they go.
    """
    asked = os.environ.get("ANTPIPE_WORDS")
    if asked == "1" or (asked is None and sys.stdout.isatty()):
        return said(head, list(phrases(figures)))
    return f"{head}  {inline(figures)}".rstrip()


def run(found: "Run") -> str:
    """The line of a run, its best epoch, and that epoch's validation metrics. A refit has no metrics of its own."""
    described = found.checkpoint
    head = f"{found.folder}  {described.way()}{', refit' if described.refit else ''}  {found.status}"
    done = described.epochs
    if described.refit:
        return said(head, [f"{f'{done} epochs' if done else 'its floor, without epochs,'} on training + validation"])
    best = described.best_epoch
    how = f"its floor; {done} epochs added too little" if done else "no epochs"
    how = f"best epoch {best} of {done}" if best else how
    shown = [f"{name} {value:.4f}" for name, value in found.metrics.items() if name in SHOWN]
    return said(head, [f"{how}; validation {', '.join(shown)}" if shown else how])


def export(found: "Exported") -> str:
    """The line of an export."""
    return with_figures(f"{found.folder}  {found.kind}  exported", found.figures)


def export_data(found: "Exported") -> dict[str, Any]:
    """The same for --json: the folder, and what export.json holds."""
    return {"folder": str(found.folder), **found.about}


def race_plan(plan: Mapping[str, Any]) -> str:
    """What `train --stage auto --dry-run` would do."""
    drops = ", ".join(map(str, plan["rungs"])) or "no"
    return f"{', '.join(plan['candidates'])}: the worse half is dropped after {drops} of {plan['epochs']} epochs"


def race(decision: Mapping[str, Any]) -> str:
    """What `--stage auto` chose and why, and when each candidate was dropped."""
    lines = [f"chosen: {decision['chosen']}  ({decision['why']})"]
    for rung in decision["rungs"]:
        scores = sorted(rung["scores"].items(), key=lambda pair: -pair[1])
        cells = (f"{name} {score:.4f}{'' if name in rung['kept'] else ' (dropped)'}" for name, score in scores)
        lines.append(f"after {rung['epochs']} of {decision['epochs']} epochs: {', '.join(cells)}")
    lines += [f"left out: {name}: {why}" for name, why in decision["left_out"].items()]
    return "\n".join(lines)


def merged(report: Mapping[str, Any]) -> str:
    """What `--stage fork-merge` or `merge` took from which run."""
    if "rounds" not in report:
        (better, other), (first, second) = report["runs"], report["validation"]
        lines = [f"{better} {first:.4f}, {other} {second:.4f}; merged {report['merged']:.4f}"]
        return "\n".join([*lines, *(f"{group}: {share:g} of {other}" for group, share in report["shares"].items())])
    ranking = ", ".join(f"{name} {score:.4f}" for name, score in report["ranking"].items())
    lines = [f"auxiliaries by validation: {ranking}"] if ranking else []
    for one in report["rounds"]:
        cells = (f"{name} {score:.4f} (weight {one['weights'][name]:.2f})" for name, score in one["branches"].items())
        epochs = f"{one['epochs']} of {report['rounds'][-1]['epochs']} epochs"
        lines.append(f"after {epochs}: {', '.join(cells)}; merged {one['merged']:.4f}")
    return "\n".join(lines)


def tuned(found: "Tuned") -> str:
    """How the trials ended, the best of them beside the settings as given, and the next commands."""
    ends = Counter(one.state for one in found.trials)
    counted = ", ".join(f"{count} {state}" for state, count in ends.items())
    lines = [f"{found.folder}  {found.status}  {len(found.trials)} trials: {counted}"]
    done = [one for one in found.trials if one.metrics]
    for one in sorted(done, key=lambda one: one.score(), reverse=True)[:BEST_TRIALS]:
        lines.append(_trial(f"trial {one.trial}", one.metrics, f"best epoch {one.best_epoch} of {one.epochs}"))
        lines.append(wrapped(", ".join(f"{name} {value}" for name, value in one.settings.items())))
    first, best = found.trials[0], found.best
    lines += ["", _trial(f"best: trial {best.trial}", best.metrics, "")]
    lines.append(_trial("as given: trial 0", first.metrics, "") if first.metrics else f"as given: trial 0: {first.why}")
    lines.append(
        wrapped(
            f"validation, {found.positions:,} positions; standard error of recall@10 {found.standard_error:.4f}. The "
            f"best of {len(found.trials)} trials owes some of its lead to chance: judge its settings on the test split",
            "",
        )
    )
    return "\n".join([*lines, *(f"next: {command}" for command in found.next.values())])


def _trial(head: str, metrics: Mapping[str, float], more: str) -> str:
    shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
    return "  ".join(part for part in (head, shown, more) if part)


def tuned_as_data(found: "Tuned") -> dict[str, Any]:
    return dataclasses.asdict(found) | {"folder": str(found.folder), "settings": str(found.settings)}


def to_do(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per run of a comparison, and how many are still to be trained or judged."""
    lines = [f"{row['target']}  {row['arm']}  seed {row['seed']}  {row['state']}  {row['folder']}" for row in rows]
    left = sum(row["state"] != "finished" for row in rows)
    return "\n".join([*lines, f"{len(rows)} runs, {left} to do"])


def groups(rows: "Sequence[GroupRow]") -> str:
    """The table of `train --dry-run`."""
    lines = [f"{'group':<15}{'action':<8}{'tensors':>8}{'parameters':>12}"]
    lines += [f"{row.group:<15}{row.action:<8}{row.tensors:>8}{row.parameters:>12,}" for row in rows]
    return "\n".join(lines)


def evaluations(results: Sequence[Mapping[str, Any]], slices: bool = False) -> str:
    """One table per domain with a row per protocol and cutoff, and with `slices` also one with a row per slice."""
    lines = []
    for result in results:
        about = (
            f"{result['domain']}, {result['split']} split: {result['positions']:,} positions, "
            f"{result['items']:,} items, {result['target_in_history']:.1%} of targets in their own history"
        )
        lines.append(wrapped(about, ""))
        if result["approximate"]:
            lines.append(f"approximate, not comparable with exact figures: {inline(result['index'])}")
        names = [name.split("@") for name in next(iter(result["protocols"].values()))]
        metrics, cutoffs = ([*dict.fromkeys(part)] for part in zip(*names, strict=True))
        lines.append(f"{'protocol':<8}  {'k':>3}" + "".join(f"{metric:>9}" for metric in metrics))
        for protocol, values in result["protocols"].items():
            for k in cutoffs:
                cells = "".join(f"{values[f'{metric}@{k}']:9.4f}" for metric in metrics)
                lines.append(f"{protocol:<8}  {k:>3}{cells}")
        if "beyond" in result:
            lines += ["", *_beyond(result["beyond"])]
        if slices:
            lines += [
                "",
                *_slices(result, [name for name in SHOWN if name in next(iter(result["protocols"].values()))]),
            ]
    return "\n".join(lines)


def _beyond(beyond: Mapping[str, Any]) -> list[str]:
    """What the lists are like: a row per protocol and cutoff."""
    protocols = {
        protocol: {tuple(name.split("@")): value for name, value in values.items()}
        for protocol, values in beyond["protocols"].items()
    }
    names = list(dict.fromkeys(name for values in protocols.values() for name, _ in values))
    lines = [f"{'lists':<12}" + "".join(f"{name:>12}" for name in names)]
    for protocol, values in protocols.items():
        for k in dict.fromkeys(k for _, k in values):
            cells = (f"{values[name, k]:12.4g}" if (name, k) in values else f"{'-':>12}" for name in names)
            lines.append(f"{f'{protocol}@{k}':<12}" + "".join(cells))
    if beyond["vectors"]:
        lines.append(f"distance: of the items' {beyond['vectors']} vectors")
    return lines


def _slices(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The rows of a result's slices, one protocol below the other."""
    heads = "".join(f"{name:>11}" for name in names)
    lines = [f"{'slice':<22}{'positions':>9}  {'protocol':<8}{heads}"]
    for group, parts in result["slices"].items():
        for part, figures in parts.items():
            for protocol, values in figures["protocols"].items():
                cells = "".join(f"{values[name]:11.4f}" for name in names)
                lines.append(f"{f'{group} {part}':<22}{figures['positions']:>9,}  {protocol:<8}{cells}")
    return lines


def recommendations(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per item, and with reasons another one below it."""
    lines = []
    for row in rows:
        head = f"{row['rank']:>3}  {row['score']:.4f}  {cell(row['item_id'])}  "
        lines.append(f"{head}{cut(cell(row['title']), len(head))}")
        if why := row.get("why"):
            worths = [
                f"{one['modality']} {one['worth']:+.4f}" for one in why["modalities"] if abs(one["worth"]) >= 5e-5
            ]
            parts = worths or [why["modality"]]
            if why["because"]:
                items = ", ".join(f"{cell(one['item_id'])} {one['worth']:+.4f}" for one in why["because"])
                parts.append(f"after {items} ({why['method']})")
            lines.append(wrapped("; ".join(parts), " " * 5))
    return "\n".join(lines)


def written(found: "Written") -> str:
    """The line of a file of recommendations."""
    figures = {"histories": found.histories, "rows": found.rows, "items": found.items}
    rest = {"popular": found.popular, "fewer": found.fewer, "continued": found.continued}
    return with_figures(f"{found.path}  written", figures | {name: count for name, count in rest.items() if count})


def written_as_data(found: "Written") -> dict[str, Any]:
    return dataclasses.asdict(found) | {"path": str(found.path)}


def report(found: "WrittenReport") -> str:
    """The findings at the top of a report, the path of the file, and what is not shown in it."""
    lines = [found.headline, f"{found.path}  written  {max(found.bytes / 1e6, 0.1):.1f} MB"]
    lines += [f"    {title}: not shown: {why}" for title, why in found.missing.items()]
    return "\n".join(lines)


def report_as_data(found: "WrittenReport") -> dict[str, Any]:
    return dataclasses.asdict(found) | {"path": str(found.path)}


def demonstration(result: Mapping[str, Any]) -> str:
    """The table of the demonstration, where its report is, and how to continue."""
    lines = [result["table"], ""]
    lines += [f"report: {result['report']}", ""] if result["report"] else []
    return "\n".join([*lines, *(f"next, {one['about']}:\n  {one['command']}" for one in result["next"])])


def encoders(rows: "Sequence[Encoder]") -> str:
    """One row per encoder, below a header line."""
    heads = ("name", "kind", "where", "access", "width", "tokens", "licence", "")
    cells = [
        (row.name, row.kind, row.where, row.access, row.width or "-", row.tokens or "-", row.licence or "-", row.get)
        for row in rows
    ]
    table = [[str(cell) for cell in line] for line in (heads, *cells)] if cells else []
    widths = [max(len(line[place]) for line in table) for place in range(len(heads))] if table else []
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)


def statistics(domains: "Sequence[Figures]", shared: "Sequence[Overlap]") -> str:
    """A table of sizes and one of order, a row per domain; then a row per pair of domains that share users or items."""
    sizes = ("users", "items", "interactions", "per user", "text", "image", "price")
    orders = ("order by", "sorted by id", "by chance", "tied", "cold valid", "cold test")
    lines = [*_by_domain(sizes, {row.domain: _sizes(row) for row in domains}), ""]
    lines += _by_domain(orders, {row.domain: _order(row) for row in domains})
    pairs = [row for row in shared if row.users or row.items]
    if len(domains) > 1:
        lines.append("" if pairs else "\nno users or items in common")
    lines += [f"{' and '.join(row.domains)}: users {row.users:,}, items {row.items:,} in common" for row in pairs]
    return "\n".join(lines)


def _by_domain(heads: Sequence[str], rows: "Mapping[str, Sequence[str]]") -> list[str]:
    """A table with a row per domain."""
    width = max(len("domain"), *(len(name) for name in rows))
    widths = [max(5, *map(len, column)) for column in zip(heads, *rows.values(), strict=True)]
    lines = [("domain", heads), *rows.items()]
    return [
        f"{name:<{width}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        for name, cells in lines
    ]


def _sizes(row: "Figures") -> list[str]:
    return [
        f"{row.users:,}",
        f"{row.items:,}",
        f"{row.interactions:,}",
        f"{row.average_length:.1f}",
        f"{row.with_text:.1%}",
        f"{row.with_image:.1%}",
        f"{row.with_price:.1%}",
    ]


def _order(row: "Figures") -> list[str]:
    order, cold = row.order, row.cold
    of_order = [order.sorted_by_id, order.by_chance, order.tied] if order else [None] * 3
    of_cold = [cold.validation, cold.test] if cold else [None] * 2
    shares = ("-" if share is None else f"{share:.1%}" for share in of_order + of_cold)
    return [order.basis if order else "-", *shares]


def overview(by_domain: "Mapping[str, Sequence[State]]", runs: "Sequence[RunSummary]", step: str) -> str:
    """The states of artefacts, a line per run, and the next step; '' without domains."""
    lines = [states(by_domain)] if by_domain else []
    width = max((len(run.folder) for run in runs), default=0)
    lines += [""] if runs else []
    for run in runs:
        trained = f"{run.way}{', refit' if run.refit else ''} on {', '.join(run.domains)}"
        reads = f"reads {', '.join(run.modalities) or 'ids'}"
        stale = f"; changed since: {', '.join(run.changed)}" if run.changed else ""
        lines.append(f"run  {run.folder:<{width}}  {trained}  {reads}{stale}")
    lines += ["", f"next: {step}"] if step else []
    return "\n".join(lines)


def findings(found: "Sequence[Finding]") -> str:
    """One line per finding: how bad, about what, and the command that mends it."""
    lines = []
    width = max((len(cell(one.about)) for one in found), default=0)
    for one in found:
        following = f"  next: {cell(one.next_command)}" if one.next_command else ""
        lines.append(f"{one.severity:<7}  {cell(one.about):<{width}}  {cell(one.message)}{following}")
    return "\n".join(lines)


def leftovers(found: "Collected", remove: str) -> str:
    """Unused files and folders, one per line; what is kept; and the command that removes the unused ones."""
    lines = [f"{cell(one.path)}  {one.bytes:,} bytes  {one.why}" for one in found.unused]
    lines += [f"{cell(one.path)}  {one.bytes:,} bytes  kept: {one.why}" for one in found.unknown]
    size = f"{sum(one.bytes for one in found.unused):,} bytes"
    if not found.unused:
        lines.append("nothing to remove")
    elif found.removed:
        lines.append(f"{len(found.unused)} removed, {size}")
    else:
        lines.append(f"{len(found.unused)} to remove, {size}; next: {remove}")
    return "\n".join(lines)


def states(by_domain: "Mapping[str, Sequence[State]]") -> str:
    """One line per artefact, with why it is stale and the command that builds it."""
    lines = []
    width = max((len(state.artefact) for row in by_domain.values() for state in row), default=0)
    for name, row in by_domain.items():
        for state in row:
            hint = "  ".join(part for part in (state.why, state.next_command and f"next: {state.next_command}") if part)
            lines.append(f"{name}  {state.artefact:<{width}}  {state.status:<7}  {hint}".rstrip())
    return "\n".join(lines)
