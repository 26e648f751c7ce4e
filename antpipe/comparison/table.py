"""The outcome of a comparison as tables and sentences, for the terminal and for Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN = ("recall@10", "ndcg@10", "mrr@10", "recall@50")  # the others are in comparison.json
Table = tuple[str, list[str], list[list[str]]]  # caption, head, rows
Section = tuple[str, list[Table], list[str]]  # title, tables, remarks


def sections(found: Mapping[str, Any]) -> Iterator[Section]:
    """One section per target: figures and differences by protocol, then verdicts and remarks."""
    for target, facts in found["targets"].items():
        tables: list[Table] = []
        for protocol in protocols_of(facts):
            tables.append(figures(protocol, facts))
            if any(arm["differences"] for arm in facts["arms"].values()):
                tables.append(differences(protocol, facts, found))
        title = (
            f"{target}: {facts['users']} users, {facts['positions']} test positions, {facts['items']} items, "
            f"{facts['target_in_history']:.1%} of targets in their own history"
        )
        yield title, tables, remarks(target, facts, found)


def protocols_of(facts: Mapping[str, Any]) -> list[str]:
    return list(next(iter(facts["arms"].values()))["protocols"])


def figures(protocol: str, facts: Mapping[str, Any]) -> Table:
    rows = []
    for name, arm in facts["arms"].items():
        cells = [arm["protocols"][protocol][metric] for metric in SHOWN]
        seeds = "-" if arm["kind"] == "untrained" else str(arm["seeds"])
        rows.append([name, seeds, *(with_spread(cell["mean"], cell["std"]) for cell in cells)])
    caption = f"Protocol {protocol}: mean ± standard deviation over seeds."
    return caption, ["arm", "seeds", *SHOWN], rows


def with_spread(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" + ("" if std is None else f" ± {std:.4f}")


def differences(protocol: str, facts: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    rows = []
    for name, arm in facts["arms"].items():
        for metric, one in arm["differences"].get(protocol, {}).items():
            control = facts["arms"][found["control"]]["protocols"][protocol][metric]["mean"]
            share = f"{one['difference'] / control:+.1%}" if control else "-"
            rows.append([name, metric, f"{one['difference']:+.4f}", share, *uncertainty(one)])
    level = f"{1 - found['alpha']:.0%}"
    primary = " (of the verdict)" if protocol == found["protocol"] else ""
    caption = f"Protocol {protocol}{primary}: difference to {found['control']}."
    return caption, ["arm", "metric", "difference", "relative", f"{level} interval", "d_z", "p", "p (Holm)"], rows


def uncertainty(one: Mapping[str, Any]) -> list[str]:
    if one["p"] is None:
        return ["-", "-", "-", "-"]
    effect = "-" if one["effect"] is None else f"{one['effect']:+.3f}"
    return [f"[{one['low']:+.4f}, {one['high']:+.4f}]", effect, small(one["p"]), small(one["p_holm"])]


def small(p: float | None) -> str:
    return "-" if p is None else "<.0001" if p < 0.0001 else f"{p:.4f}"


def remarks(target: str, facts: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The verdicts, which source hurts, and what else a reader should know."""
    judged = {name: arm["verdict"] for name, arm in facts["arms"].items() if arm["verdict"]}
    lines = []
    words = [f"{name} {verdict['word']} ({verdict['why']})" for name, verdict in judged.items() if verdict["word"]]
    if words:
        lines.append(f"verdict on transfer, {target}, protocol {found['protocol']}: {'; '.join(words)}")
    unsure = [verdict["why"] for verdict in judged.values() if not verdict["word"]]
    lines += [f"{target}: {unsure[0]}"] if unsure else []
    for stage, sources in found["sources"].get(target, {}).items():
        for source, said in sources.items():
            cells = [f"{metric} {leaving(one)}" for metric, one in said["differences"].items()]
            lines.append(
                f"source {source}, {stage}: {said['says'] or 'too few seeds to say'} (without it {', '.join(cells)})"
            )
    lines += which_hurts(target, found["sources"].get(target, {}))
    for name, arm in facts["arms"].items():
        chosen = [run["chosen"] for run in arm["runs"] if run["chosen"]]
        lines += [f"{name} chose {', '.join(chosen)} (by seed, on validation)"] if chosen else []
    return lines + [f"note: {note}" for note in facts["notes"]]


def which_hurts(target: str, by_stage: Mapping[str, Any]) -> list[str]:
    """Names the sources that hurt, or says that none is shown to."""
    cases = [(source, stage, said) for stage, sources in by_stage.items() for source, said in sources.items()]
    if not cases:
        return []
    hurting = [f"{source} ({stage})" for source, stage, said in cases if said["says"] == "hurts"]
    if hurting:
        return [f"sources that hurt {target}: {', '.join(hurting)}"]
    metric = next(iter(cases[0][2]["differences"]))
    source, stage, said = max(cases, key=lambda case: case[2]["differences"][metric]["difference"])
    change = said["differences"][metric]["difference"]
    return [
        f"sources that hurt {target}: none is shown to ({source} comes closest: without it {metric} of {stage} "
        f"changes by {change:+.4f})"
    ]


def leaving(one: Mapping[str, Any]) -> str:
    if one["p"] is None:
        return f"{one['difference']:+.4f}"
    return f"{one['difference']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}], p (Holm) {small(one['p_holm'])}"


def as_text(found: Mapping[str, Any]) -> str:
    """The outcome for a terminal."""
    lines: list[str] = []
    for title, tables, said in sections(found):
        lines.append(title)
        for caption, head, rows in tables:
            lines += ["", caption, *aligned([head, *rows])]
        lines += ["", *said, ""]
    return "\n".join(lines).rstrip()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns; the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_markdown(found: Mapping[str, Any]) -> str:
    """The outcome as a page."""
    lines = ["# Comparison", ""]
    for title, tables, said in sections(found):
        lines += [f"## {title}", ""]
        for caption, head, rows in tables:
            lines += [caption, "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
        lines += [f"- {line}" for line in said] + [""]
    return "\n".join(lines)
