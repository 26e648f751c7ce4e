"""The outcome of a comparison as tables and sentences, for the terminal and for Markdown."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN = ("recall@10", "ndcg@10", "mrr@10", "recall@50")  # the others are in comparison.json
WIDTH = 80  # columns of a terminal
NOT_SHOWN = ("mrr@10", "d_z", "detectable")  # columns that a terminal has no room for
POOLED = (("low", "high", "p"), ("shops_low", "shops_high", "shops_p"))
Table = tuple[str, list[str], list[list[str]]]  # caption, head, rows
Section = tuple[str, list[Table], list[str]]  # title, tables, remarks


def sections(found: Mapping[str, Any]) -> Iterator[Section]:
    """One section per target: figures and differences by protocol, those after a refit, then verdicts and remarks."""
    for target, facts in found["targets"].items():
        tables = list(tables_of(facts, found))
        for caption, head, rows in tables_of(facts.get("refit", {}), {**found, "protocol": None}):
            tables.append((f"After refit on training + validation (no verdict). {caption}", head, rows))
        cold = never_trained(facts.get("cold_targets"))
        title = (
            f"{target}: {facts['users']} users, {facts['positions']} test positions, {facts['items']} items, "
            f"{facts['target_in_history']:.1%} of targets in their own history{cold}"
        )
        yield title, tables, remarks(target, facts, found)


def tables_of(facts: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Table]:
    """Figures, and differences to the control if there is one, by protocol."""
    for protocol in protocols_of(facts) if facts else ():
        yield figures(protocol, facts)
        if all("beyond" in arm for arm in facts["arms"].values()):
            yield beyond(protocol, facts)
        if any(arm["differences"] for arm in facts["arms"].values()):
            yield differences(protocol, facts, found)


def never_trained(targets: Mapping[str, Any] | None) -> str:
    """The shares of targets that never occur in training, for a title."""
    shares = {part: targets[part] for part in ("test", "validation") if targets[part] is not None} if targets else {}
    words = ", ".join(f"{share:.1%} of {part}" for part, share in shares.items())
    return f", never in training: {words}" if words else ""


def curve_sections(found: Mapping[str, Any]) -> Iterator[Section]:
    """One section per learning curve: the figures of all arms by size, the differences, and the worth in users."""
    for name, curve in found["curve"].items():
        points = curve["points"]
        kept = "cut to the items of these users" if curve["catalogue"] == "cut" else "whole"
        title = f"Learning curve of {name}: nested random users (subset seed {curve['seed']}), catalogue {kept}"
        tables, lines = [figures_by_size(curve, found)], []
        if curve["worth"]:
            tables.append(differences_by_size(curve, found))
            lines = [in_users(arm, curve, found) for arm in curve["worth"]]
        few, many = points[0]["items"], points[-1]["items"]
        if curve["catalogue"] == "cut" and few < many:
            lines.append(
                f"note: more users bring more items to rank ({few:,} to {many:,}), so figures of different sizes are "
                "not comparable; --catalogue whole keeps all items at every size"
            )
        yield title, tables, lines


def figures_by_size(curve: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    arms, rows = list(curve["points"][0]["figures"]), []
    for point in curve["points"]:
        cells = ["/".join(f"{mean:.4f}" for mean in point["figures"][arm].values()) for arm in arms]
        rows.append([f"{point['users']:,}", f"{point['items']:,}", *cells])
    metrics = "/".join(curve["points"][0]["figures"][arms[0]])
    return f"Protocol {found['protocol']}: {metrics}, mean over seeds.", ["users", "items", *arms], rows


def differences_by_size(curve: Mapping[str, Any], found: Mapping[str, Any]) -> Table:
    control, metric, protocol, rows = found["control"], found["metric"], found["protocol"], []
    for arm, by_metric in curve["worth"].items():
        for point, worth in zip(curve["points"], by_metric[metric], strict=True):
            facts = found["targets"][point["target"]]["arms"][arm]
            one, base = facts["differences"][protocol][metric], point["figures"][control][metric]
            share = f"{one['difference'] / base:+.1%}" if base else "-"
            interval, *_, corrected = uncertainty(one)
            low, at, high = (same_users(worth[key], curve) for key in ("low", "equals", "high"))
            cells = [f"{one['difference']:+.4f}", share, interval, corrected, facts["verdict"]["word"] or "-"]
            rows.append([arm, f"{point['users']:,}", *cells, at, "-" if low == high == "-" else f"{low} to {high}"])
    level = f"{1 - found['alpha']:.0%} interval"
    caption = f"Protocol {protocol}, {metric}: difference to {control}, and the users with which {control} is as good."
    head = ["arm", "users", "difference", "relative", level, "p (Holm)", "verdict", f"as {control} at", level]
    return caption, head, rows


def in_users(arm: str, curve: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """At each size, the verdict on an arm, and with how many users the control equals it."""
    control, cells, worth = found["control"], [], curve["worth"][arm][found["metric"]]
    for point, one in zip(curve["points"], worth, strict=True):
        word, users = (
            found["targets"][point["target"]]["arms"][arm]["verdict"]["word"],
            same_users(one["equals"], curve),
        )
        at = users if users.startswith(("beyond", "below")) else f"at {users}"
        said = f" ({word})" if word else ""
        cells.append(f"at {point['users']:,} users{said}" + (f" equals {control} {at}" if users != "-" else ""))
    why = "there is one size" if len(worth) == 1 else f"{control} does not improve with users"
    untold = f"; what it is worth in users cannot be told: {why}" if worth[0]["equals"] is None else ""
    return f"{arm}, {found['metric']}: {', '.join(cells)}{untold}"


def same_users(worth: float | str | None, curve: Mapping[str, Any]) -> str:
    """A number of users in words, `-` if it cannot be said."""
    if worth in ("above", "below"):
        point = curve["points"][-1 if worth == "above" else 0]
        return f"{'beyond' if worth == 'above' else 'below'} {point['users']:,}"
    return f"{float(f'{worth:.3g}'):,.0f}" if isinstance(worth, float) else "-"


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


def beyond(protocol: str, facts: Mapping[str, Any]) -> Table:
    """What the lists of each arm are like."""
    names = list(dict.fromkeys(name for arm in facts["arms"].values() for name in arm["beyond"][protocol]))
    shown = [name for name in names if name.endswith("@10")]
    rows = []
    for name, arm in facts["arms"].items():
        values = arm["beyond"][protocol]
        rows.append([name, *(f"{values[metric]:.4g}" if metric in values else "-" for metric in shown)])
    return f"Protocol {protocol}, beyond accuracy: mean over seeds.", ["arm", *shown], rows


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
    primary = f" (the verdict is about {found['metric']})" if protocol == found["protocol"] else ""
    caption = f"Protocol {protocol}{primary}: difference to {found['control']}."
    head = ["arm", "metric", "difference", "relative", f"{level} interval", "d_z", "detectable", "p", "p (Holm)"]
    return caption, head, rows


def uncertainty(one: Mapping[str, Any]) -> list[str]:
    if one["p"] is None:
        return ["-", "-", "-", "-", "-"]
    effect = "-" if one["effect"] is None else f"{one['effect']:+.3f}"
    least = "-" if one["detectable"] is None else f"{one['detectable']:.4f}"
    return [f"[{one['low']:+.4f}, {one['high']:+.4f}]", effect, least, small(one["p"]), small(one["p_holm"])]


def small(p: float | None) -> str:
    return "-" if p is None else "<.0001" if p < 0.0001 else f"{p:.4f}"


def remarks(target: str, facts: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The verdicts, which source hurts, and what else a reader should know."""
    judged = {name: arm["verdict"] for name, arm in facts["arms"].items() if arm["verdict"]}
    lines = []
    words = [f"{name} {verdict['word']} ({verdict['why']})" for name, verdict in judged.items() if verdict["word"]]
    if words:
        about = f"{target}, {found['metric']}, protocol {found['protocol']}"
        lines.append(f"verdict on transfer, {about}: {'; '.join(words)}")
    unsure = [verdict["why"] for verdict in judged.values() if not verdict["word"]]
    lines += [f"{target}: {unsure[0]}"] if unsure else []
    for stage, sources in found["sources"].get(target, {}).items():
        for source, said in sources.items():
            cells = [f"{metric} {leaving(one)}" for metric, one in said["differences"].items()]
            says = f"{said['says']} ({said['why']})" if said["says"] else "too few seeds to say"
            lines.append(f"source {source}, {stage}: {says}; without it {', '.join(cells)}")
    lines += which_hurts(target, found["sources"].get(target, {}), found["metric"])
    for name, arm in facts["arms"].items():
        chosen = [run["chosen"] for run in arm["runs"] if run["chosen"]]
        lines += [f"{name} chose {', '.join(chosen)} (by seed, on validation)"] if chosen else []
    return lines + [f"note: {note}" for note in facts["notes"]]


def which_hurts(target: str, by_stage: Mapping[str, Any], metric: str) -> list[str]:
    """Names the sources that hurt, or says that none is shown to."""
    cases = [(source, stage, said) for stage, sources in by_stage.items() for source, said in sources.items()]
    if not cases:
        return []
    hurting = [f"{source} ({stage})" for source, stage, said in cases if said["says"] == "hurts"]
    if hurting:
        return [f"sources that hurt {target}: {', '.join(hurting)}"]
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
    """The outcome for a terminal: the columns that matter, and sentences in lines that fit."""
    lines: list[str] = []
    for title, tables, said in (*sections(found), *curve_sections(found)):
        lines += folded(title)
        for caption, head, rows in tables:
            kept = [place for place, name in enumerate(head) if name not in NOT_SHOWN]
            table = [[row[place] for place in kept] for row in (head, *rows)]
            lines += ["", *folded(caption), *aligned(table)]
        lines += ["", *(part for line in said for part in folded(line)), ""]
    return "\n".join([*lines, *(part for line in over_targets(found) for part in folded(line))]).rstrip()


def folded(text: str) -> list[str]:
    """A sentence in lines of at most WIDTH, all but the first indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def over_targets(found: Mapping[str, Any]) -> list[str]:
    """A line per arm: the mean over targets of its relative difference, for these targets and for shops like them."""
    lines = []
    groups = [("", found["pooled"])]
    groups += [(f" at {int(size):,} users", by_arm) for size, by_arm in found["pooled_by_users"].items()]
    for where, by_arm in groups:
        for arm, metric, mean in [(arm, *pair) for arm, by_metric in by_arm.items() for pair in by_metric.items()]:
            mine, shops = (f"[{mean[low]:+.1%}, {mean[high]:+.1%}], p {small(mean[p])}" for low, high, p in POOLED)
            lines.append(
                f"mean over {mean['targets']} targets{where}, {arm}, {metric}: {mean['relative']:+.1%} {mine} for "
                f"these targets; {shops} for shops of which they are a sample"
            )
    return lines


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
    for title, tables, said in (*sections(found), *curve_sections(found)):
        lines += [f"## {title}", ""]
        for caption, head, rows in tables:
            lines += [caption, "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
        lines += [f"- {line}" for line in said] + [""]
    if means := over_targets(found):
        lines += ["## All targets", "", *(f"- {line}" for line in means), ""]
    return "\n".join(lines)
