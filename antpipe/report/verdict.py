"""The verdict of a report in sentences, for readers who read nothing else."""

from collections.abc import Sequence

from antpipe.comparison.plan import UNTRAINED
from antpipe.comparison.table import over_targets, remarks
from antpipe.comparison.verdict import EQUIVALENT, NEGATIVE, NONE, POSITIVE
from antpipe.report.figure import listed, metric_name, percent
from antpipe.report.findings import Findings, Judged

MEANING = {
    POSITIVE: "better than {control}",
    NEGATIVE: "worse than {control}",
    EQUIVALENT: "as good as {control}",
    NONE: "not shown to differ from {control}",
}


def headline(found: Findings) -> str:
    """One sentence on all targets."""
    if not found.judged:
        return "Nothing was judged yet: the runs of this report have no evaluation."
    tested = [one for one in found.judged if any(verdict["word"] for verdict in one.verdicts().values())]
    if not tested:
        return untested(found.judged)
    if len(tested) == 1:
        return on_one(tested[0])
    words = {one.label: {str(verdict["word"]) for verdict in one.verdicts().values()} for one in tested}
    helped = [label for label, said in words.items() if POSITIVE in said and NEGATIVE not in said]
    hurt = [label for label, said in words.items() if NEGATIVE in said and POSITIVE not in said]
    mixed = [label for label, said in words.items() if {POSITIVE, NEGATIVE} <= said]
    rest = [label for label in words if label not in (*helped, *hurt, *mixed)]
    said = (
        ("helped on {}", helped),
        ("hurt on {}", hurt),
        ("helped or hurt, depending on the arm, on {}", mixed),
        ("made no difference that was shown on {}", rest),
    )
    parts = [f"{verb.format(len(labels))} ({listed(labels)})" for verb, labels in said if labels]
    return f"Of {len(tested)} targets, transfer {'; '.join(parts)}."


def on_one(one: Judged) -> str:
    """The verdicts on one target in a sentence."""
    words = list(by_word(one))
    verb = {
        POSITIVE: "helped",
        NEGATIVE: "hurt",
        EQUIVALENT: "made no difference that matters",
        NONE: "was not shown to make a difference",
    }[words[0]]
    start = f"Transfer {verb} on {one.label}" if len(words) == 1 else f"Transfer on {one.label}"
    return f"{start}: {'; '.join(phrases(one))} in {metric_name(one.rules['metric'])}."


def by_word(one: Judged) -> dict[str, list[str]]:
    """Judged arms by their verdict, in the order of MEANING."""
    said: dict[str, list[str]] = {word: [] for word in MEANING}
    for name, verdict in one.verdicts().items():
        if verdict["word"]:
            said[verdict["word"]].append(name)
    return {word: names for word, names in said.items() if names}


def phrases(one: Judged) -> list[str]:
    """A phrase for each verdict on a target, with its arms."""
    found = []
    for word, names in by_word(one).items():
        are = "is" if len(names) == 1 else "are"
        found.append(f"{listed([with_change(one, name) for name in names])} {are} {meaning(one, word)}")
    return found


def meaning(one: Judged, word: str) -> str:
    return MEANING[word].format(control=one.rules["control"])


def with_change(one: Judged, name: str) -> str:
    """An arm with its relative difference to the control."""
    change = one.arms[name]["differences"].get(one.rules["protocol"], {}).get(one.rules["metric"])
    if not change or not change["control"]:
        return name
    return f"{name} ({percent(change['difference'] / change['control'])})"


def untested(judged: Sequence[Judged]) -> str:
    """The sentence if no target has a verdict."""
    arms = list(dict.fromkeys(name for one in judged for name in one.arms))
    plain = all(arm["kind"] == UNTRAINED for one in judged for arm in one.arms.values())
    why = "the arms are baselines that learn from no other shop" if plain else why_untested(judged)
    if len(judged) > 1:
        return f"No verdict on transfer: {why}. Here are {len(arms)} arms on {len(judged)} targets."
    [one] = judged
    best, metric = one.best()[0], metric_name(one.rules["metric"])
    mean = f"{one.metric_of(best)['mean']:.4f}"
    if len(arms) == 1:
        return f"No verdict on transfer: {why}. {best} reaches {metric} {mean} on {one.label}."
    chance = "" if one.finished else "; whether that is more than chance was not tested"
    return f"No verdict on transfer: {why}. {best} has the highest {metric} on {one.label}, {mean}{chance}."


def why_untested(judged: Sequence[Judged]) -> str:
    if all(len(one.arms) == 1 for one in judged):
        return "there is one arm, and nothing to compare it with"
    if not any(one.finished for one in judged):
        return "these runs were not compared, and only a comparison tests differences"
    said = [verdict["why"] for one in judged for verdict in one.verdicts().values()]
    return said[0] if said else "no arm that transfers was compared with one that does not"


def lines(found: Findings) -> list[str]:
    """One sentence per target, if there are several, and the means over targets."""
    sentences = []
    for one in found.judged if len(found.judged) > 1 else ():
        best, metric = one.best()[0], one.rules["metric"]
        said = phrases(one)
        top = f"best is {best} with {metric_name(metric)} {one.metric_of(best)['mean']:.4f}"
        plain = " (a baseline that is not trained)" if one.arms[best]["kind"] == UNTRAINED else ""
        sentences.append(f"{one.label}: {'; '.join([*said, top])}{plain}.")
    for outcome in found.outcomes.values():
        sentences += over_targets({"pooled": {}, "pooled_by_users": {}, **outcome})
    return sentences


def remarks_on(one: Judged) -> list[str]:
    """The verdicts with their reasons, and what else a reader should know of a target."""
    return remarks(one.target, one.facts, {"sources": {}, **one.rules})
