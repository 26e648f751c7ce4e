"""The outcome of a comparison as a table for a paper: Markdown, CSV or LaTeX (booktabs)."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from antpipe.errors import UsageError

FORMATS = ("markdown", "csv", "latex")
METRICS = ("recall@10", "ndcg@10")
CORRECTED, UNCORRECTED = "*", "+"  # marks of a difference to the control, in Markdown
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
COLUMNS = (
    *("target", "arm", "protocol", "metric", "mean", "std", "seeds", "positions", "items"),
    *("difference", "low", "high", "p", "p_holm", "verdict"),
)


def require_format(form: str) -> None:
    """Raises UsageError for an unknown format of a table."""
    if form not in FORMATS:
        raise UsageError(f"--format {form}: choose from text, {', '.join(FORMATS)}")


def paper_table(
    found: Mapping[str, Any], form: str, metrics: Sequence[str] = METRICS, arms: Sequence[str] = (), protocol: str = ""
) -> str:
    """An outcome as text in one of FORMATS.

    found: the content of comparison.json. metrics: columns per target. arms: rows, in this order (none: all).
    protocol: of the figures (none: that of the verdict). Markdown and LaTeX have one row per arm, with the best mean of
    each column in bold; CSV has one row per target, arm and metric, with full precision and the differences to the
    control. Raises UsageError, naming it, for a format, metric, arm or protocol that is not there.
    """
    require_format(form)
    every = list(dict.fromkeys(arm for facts in found["targets"].values() for arm in facts["arms"]))
    rows, judged = list(arms) or every, protocol or found["protocol"]
    first = next(iter(found["targets"].values()))["arms"][every[0]]["protocols"]
    _require(rows, every, "--rows")
    _require([judged], list(first), "--protocol")
    _require(metrics, list(first[judged]), "--columns")
    if form == "csv":
        return _as_csv(found, metrics, rows, judged)
    head, body = _cells(found, metrics, rows, judged)
    write = _as_markdown if form == "markdown" else _as_latex
    return write(head, body, list(metrics), _caption(found, rows, judged))


def _require(asked: Sequence[str], there: Sequence[str], flag: str) -> None:
    for name in asked:
        if name not in there:
            raise UsageError(f"{flag} {name}: the comparison has {', '.join(there)}")


def _as_csv(found: Mapping[str, Any], metrics: Sequence[str], arms: Sequence[str], protocol: str) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for target, facts in found["targets"].items():
        for name in arms:
            if name not in facts["arms"]:
                continue
            arm = facts["arms"][name]
            for metric in metrics:
                figure = arm["protocols"][protocol][metric]
                one = arm["differences"].get(protocol, {}).get(metric, {})
                of_verdict = (protocol, metric) == (found["protocol"], found["metric"]) and arm["verdict"]
                table.writerow(
                    [
                        *(target, name, protocol, metric, figure["mean"], figure["std"], arm["seeds"]),
                        *(facts["positions"], facts["items"]),
                        *(one.get(key) for key in ("difference", "low", "high", "p", "p_holm")),
                        arm["verdict"]["word"] if of_verdict else None,
                    ]
                )
    return out.getvalue().rstrip("\n")


# A cell: what is printed, whether it is the best of its column, and its mark.
Cell = tuple[str, bool, str]


def _cells(
    found: Mapping[str, Any], metrics: Sequence[str], arms: Sequence[str], protocol: str
) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """The targets, and a row of cells per arm."""
    targets = list(found["targets"])
    body: list[tuple[str, list[Cell]]] = [(name, []) for name in arms]
    for target in targets:
        by_arm = found["targets"][target]["arms"]
        for metric in metrics:
            shown = {name: by_arm[name]["protocols"][protocol][metric] for name in arms if name in by_arm}
            best = max(f"{figure['mean']:.4f}" for figure in shown.values())
            for name, cells in body:
                if name not in shown:
                    cells.append(("-", False, ""))
                    continue
                mean, std = f"{shown[name]['mean']:.4f}", shown[name]["std"]
                text = mean if std is None else f"{mean} ± {std:.4f}"
                cells.append((text, mean == best, _mark(by_arm[name], found, protocol, metric)))
    return targets, body


def _mark(arm: Mapping[str, Any], found: Mapping[str, Any], protocol: str, metric: str) -> str:
    """Whether the difference to the control is beyond chance, and after which test."""
    one = arm["differences"].get(protocol, {}).get(metric)
    if one is None:
        return ""
    if one["p_holm"] is not None:
        return CORRECTED if one["p_holm"] < found["alpha"] else ""
    return UNCORRECTED if one["p"] is not None and one["p"] < found["alpha"] else ""


def _caption(found: Mapping[str, Any], arms: Sequence[str], protocol: str) -> str:
    every = [arm for facts in found["targets"].values() for name, arm in facts["arms"].items() if name in arms]
    seeds = sorted({arm["seeds"] for arm in every if arm["kind"] != "untrained"})
    over = f"mean ± standard deviation over {' or '.join(map(str, seeds))} seed{'s' if seeds != [1] else ''}"
    sizes = ", ".join(
        f"{target}: {facts['positions']:,} positions, {facts['items']:,} items"
        for target, facts in found["targets"].items()
    )
    ranked = "all items are ranked" if protocol == "all" else "all items but those of the user's history are ranked"
    words = [f"{found['split'].capitalize()} split, protocol {protocol} ({ranked}); {sizes}."]
    words.append(f"{over[0].upper()}{over[1:]}; best in bold." if seeds else "Nothing is trained; best in bold.")
    if any(arm["differences"] for arm in every):
        words.append(
            f"{CORRECTED} differs from {found['control']} at the level {found['alpha']:g} after Holm correction, "
            f"{UNCORRECTED} at that level without correction."
        )
    return " ".join(words)


def _as_markdown(
    targets: Sequence[str], body: Sequence[tuple[str, Sequence[Cell]]], metrics: Sequence[str], caption: str
) -> str:
    several = len(targets) > 1
    head = [f"{target} {metric}" if several else metric for target in targets for metric in metrics]
    lines = [f"| arm | {' | '.join(map(_in_cell, head))} |", f"|---|{'---|' * len(head)}"]
    for name, cells in body:
        shown = [(f"**{text}**" if best else text) + mark.replace("*", r"\*") for text, best, mark in cells]
        lines.append(f"| {_in_cell(name)} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", caption.replace("*", r"\*")])


def _in_cell(text: str) -> str:
    return text.replace("|", r"\|")


def _as_latex(
    targets: Sequence[str], body: Sequence[tuple[str, Sequence[Cell]]], metrics: Sequence[str], caption: str
) -> str:
    """A table for `\\usepackage{booktabs}`."""
    count = len(metrics)
    groups = [f"\\multicolumn{{{count}}}{{c}}{{{_escaped(target)}}}" for target in targets]
    rules = [f"\\cmidrule(lr){{{2 + count * n}-{1 + count * (n + 1)}}}" for n in range(len(targets))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_math(_escaped(caption))}}}",
        rf"\begin{{tabular}}{{l{'r' * count * len(targets)}}}",
        r"\toprule",
        rf" & {' & '.join(groups)} \\",
        "".join(rules),
        rf"arm & {' & '.join(_escaped(metric) for _ in targets for metric in metrics)} \\",
        r"\midrule",
    ]
    for name, cells in body:
        shown = [_math(rf"\textbf{{{text}}}" if best else text) + _raised(mark) for text, best, mark in cells]
        lines.append(rf"{_escaped(name)} & {' & '.join(shown)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _raised(mark: str) -> str:
    return f"$^{{{mark}}}$" if mark else ""


def _math(text: str) -> str:
    """The signs that LaTeX knows in formulas only."""
    return (
        text.replace("±", r"$\pm$").replace(f"{CORRECTED} differs", "$^{*}$ differs").replace(", + at", ", $^{+}$ at")
    )


def _escaped(text: str) -> str:
    return "".join(ESCAPED.get(letter, letter) for letter in text)
