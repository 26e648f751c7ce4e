"""The outcome of a comparison: means over seeds, differences to the control, verdicts, and the source that hurts."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.comparison.curve import curves
from antpipe.comparison.plan import CONTROL, RACED, UNTRAINED, WHOLE, Arm, ComparisonRequest, Job
from antpipe.comparison.verdict import (
    EQUIVALENT,
    NEGATIVE,
    NONE,
    POSITIVE,
    Difference,
    Verdict,
    detectable,
    differences,
    gains,
    holm,
    judge,
    p_within,
    pooled,
)
from antpipe.core.ranking import PROTOCOLS
from antpipe.errors import DataError, IntegrityError
from antpipe.evaluation.beyond import means
from antpipe.evaluation.ranks import RANKS
from antpipe.settings.comparison import OUTCOME_FORMAT
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.store.tables import read_table
from antpipe.training.folder import RunFolder

TESTED = ("recall@10", "ndcg@10")  # the metrics whose differences are tested; a verdict is about one of them
KEYS = ("user", "position", "target")
COMPARED = {name: RANKS[name] for name in (*KEYS, *(f"rank_{protocol}" for protocol in PROTOCOLS))}
BEYOND = "beyond"  # key of the figures beyond accuracy, if they were asked for
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Ranks of one arm on a target: by protocol (S, Q), infinite if not found. user: (Q,) of each position."""

    by_protocol: dict[str, Floats]
    user: NDArray[np.int64]


@dataclass
class Finding:
    """One tested difference: where, and what is compared (a label).

    corrected, within: p values of no difference and of one beyond the margin, Holm-corrected once their family is
    known. least: the smallest difference that its test could detect.
    """

    target: str
    label: str
    metric: str
    found: Difference
    corrected: float | None = None
    within: float | None = None
    least: float | None = None

    def judge(self, request: ComparisonRequest) -> Verdict:
        alpha, margin = request.config.alpha, request.config.margin
        return judge(self.found, self.corrected, self.within, alpha=alpha, margin=margin, least=self.least)


def outcome(
    request: ComparisonRequest, arms: Sequence[Arm], work: Sequence[Job], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of comparison.json, as plain data.

    `targets` has for each target its size and, by arm, `protocols` (mean, std and seeds of each metric), `differences`
    to the control (by protocol and metric; Holm-corrected within a protocol, for the metric of the verdict, over judged
    arms and targets) and the `verdict`; `notes` are remarks in words. `pooled`: by arm and metric, the mean of relative
    differences over several targets; `pooled_by_users` has them for each size of a learning curve instead. `curve`: by
    domain, the learning curve (see curves). `sources`: what leaving each one out changes. Raises DataError if a run was
    judged by other protocols. With --refit, each target also has `refit` (see after_refit).
    """
    for result in results:
        if set(result["protocols"]) != set(PROTOCOLS):
            raise DataError(
                f"{result['run']} was judged by the protocols {', '.join(result['protocols'])}, "
                f"the others by {', '.join(PROTOCOLS)}"
            )
    config = request.config
    targets: dict[str, Any] = {}
    ranked: dict[str, dict[str, Ranked]] = {}
    for target in request.targets:
        rows = [(job, result) for job, result in zip(work, results, strict=True) if job.target == target]
        ranked[target] = load_ranks([job for job, _ in rows], request.store)
        sizes = {key: rows[0][1][key] for key in ("items", "positions", "target_in_history")}
        targets[target] = {
            **sizes,
            "users": len(np.unique(next(iter(ranked[target].values())).user)),
            "arms": {arm.name: figures(arm, [row for job, row in rows if job.arm == arm]) for arm in arms},
        }
    over_targets: dict[str, Any] = {}
    at_size: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        found = list(to_control(request, arms, ranked, protocol))
        copies = {target: copied(arms, by_arm, protocol) for target, by_arm in ranked.items()}
        judged = [one for one in found if arm_of(arms, one.label).judged and one.metric == config.metric]
        tested = [one for one in judged if one.label not in copies[one.target]]
        correct(tested, request)
        for one in found:
            place = targets[one.target]["arms"][one.label]["differences"].setdefault(protocol, {})
            place[one.metric] = as_data(one)
        if protocol != config.protocol:
            continue
        verdicts = {(one.target, one.label): one.judge(request) for one in tested}
        for one in judged:
            verdict = verdicts.get((one.target, one.label)) or of_copy(one, copies[one.target], verdicts, request)
            targets[one.target]["arms"][one.label]["verdict"] = asdict(verdict)
        if request.subsets:  # those of one domain are not a sample of shops
            for size in sorted(config.target_users):
                at_size[str(size)] = pool(
                    [one for one in found if request.subsets[one.target].users == size], arms, config.alpha
                )
        else:
            over_targets = pool(found, arms, config.alpha)
    for target in targets.values():
        target["notes"] = notes(target["arms"], config.protocol)
    return {
        "format": OUTCOME_FORMAT,
        "control": CONTROL,
        "protocol": config.protocol,
        "metric": config.metric,
        "split": "test",
        "alpha": config.alpha,
        "margin": config.margin,
        "tested": list(TESTED),
        "targets": targets,
        "pooled": over_targets,
        "pooled_by_users": {size: by_arm for size, by_arm in at_size.items() if by_arm},
        "curve": curves(request, targets, TESTED),
        "sources": left_out(request, arms, ranked),
    }


def after_refit(
    request: ComparisonRequest, work: Sequence[Job], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """`arms` by target, as in `outcome`: refitted runs and their differences to the refitted control, unjudged."""
    arms = list({job.arm.name: job.arm for job in work}.values())
    found = outcome(request, arms, work, results)
    return {target: {"arms": facts["arms"]} for target, facts in found["targets"].items()}


def copied(arms: Sequence[Arm], by_arm: Mapping[str, Ranked], protocol: str) -> dict[str, str]:
    """Raced arms whose runs are all those of another arm, the control or one that is judged; and that arm."""
    found: dict[str, str] = {}
    for arm in arms:
        others = [o.name for o in arms if o.name == CONTROL or (o.judged and o.kind != RACED)]
        if arm.kind != RACED or not arm.judged:
            continue
        ranks = by_arm[arm.name].by_protocol[protocol]
        same = [other for other in others if np.array_equal(by_arm[other].by_protocol[protocol], ranks)]
        found.update({arm.name: same[0]} if same else {})
    return found


def of_copy(
    one: Finding,
    copies: Mapping[str, str],
    verdicts: Mapping[tuple[str, str], Verdict],
    request: ComparisonRequest,
) -> Verdict:
    """The verdict of an arm whose runs are those of another one: it is not a finding of its own."""
    other = copies[one.label]
    same = verdicts.get((one.target, other))
    if one.found.p is None:
        return one.judge(request)
    if same is None:  # the control
        return Verdict(EQUIVALENT if request.config.margin else NONE, f"its runs are those of {other}")
    return Verdict(same.word, f"its runs are those of {other}: {same.why}")


def pool(found: Sequence[Finding], arms: Sequence[Arm], alpha: float) -> dict[str, Any]:
    """By judged arm and metric, the mean over targets of the relative difference, if there are several targets."""
    result: dict[str, Any] = {}
    for arm in arms:
        for metric in TESTED if arm.judged else ():
            mean = pooled([o.found for o in found if (o.label, o.metric) == (arm.name, metric)], alpha)
            if mean is not None:
                result.setdefault(arm.name, {})[metric] = asdict(mean)
    return result


def load_ranks(work: Sequence[Job], store: Store) -> dict[str, Ranked]:
    """Ranks by arm. store: where the runs were judged.

    Raises IntegrityError, naming the run, if two runs were not judged on the same positions.
    """
    first: Any = None
    columns: dict[str, dict[str, list[Floats]]] = {}
    for job in sorted(work, key=lambda job: job.seed):
        path, again = RunFolder(job.folder).ranks(job.target, "test"), ranks_again(job, store)
        table = read_table(path, COMPARED, again)
        keys = np.stack([table[key].to_numpy().astype(np.int64) for key in KEYS])
        first = keys if first is None else first
        if keys.shape != first.shape or (keys != first).any():
            raise IntegrityError(f"{path}: its positions differ from those of {work[0].arm.name}", again)
        for protocol in PROTOCOLS:
            ranks = table[f"rank_{protocol}"].fill_null(np.inf).to_numpy().astype(np.float64)
            columns.setdefault(job.arm.name, {}).setdefault(protocol, []).append(ranks)
    return {
        name: Ranked({protocol: np.stack(ranks) for protocol, ranks in by.items()}, first[0])
        for name, by in columns.items()
    }


def ranks_again(job: Job, store: Store) -> str:
    """The command after which the ranks of a run are made again."""
    if job.arm.kind == UNTRAINED:
        return shlex.join(["rm", str(RunFolder(job.folder).ranks(job.target, "test"))])
    return spell("evaluate", domains=[job.target], store=store.root, flags=["--run", job.folder])


def figures(arm: Arm, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (None for a single seed) of every metric over seeds, and where the runs are."""
    protocols = {
        protocol: {
            metric: spread([row["protocols"][protocol][metric] for row in rows])
            for metric in rows[0]["protocols"][protocol]
        }
        for protocol in PROTOCOLS
    }
    runs = [
        {key: row.get(key) for key in ("run", "seed", "fingerprint", "seconds", "budget", "chosen")} for row in rows
    ]
    return {
        "kind": arm.kind,
        "mix": arm.mix.name if arm.mix else None,
        "seeds": len(rows),
        "protocols": protocols,
        **({BEYOND: means([row[BEYOND] for row in rows])} if all(BEYOND in row for row in rows) else {}),
        "differences": {},
        "verdict": None,
        "runs": runs,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": list(values),
    }


def arm_of(arms: Sequence[Arm], name: str) -> Arm:
    return next(arm for arm in arms if arm.name == name)


def to_control(
    request: ComparisonRequest, arms: Sequence[Arm], ranked: Mapping[str, Mapping[str, Ranked]], protocol: str
) -> Iterator[Finding]:
    """The difference of every arm to the control, for every target and tested metric."""
    others = [arm.name for arm in arms if arm.name != CONTROL]
    for target, by_arm in ranked.items():
        if CONTROL in by_arm and others:
            pairs = [(name, CONTROL) for name in others]
            for (name, _), metric, found in paired(request, by_arm, pairs, protocol):
                yield Finding(target, name, metric, found)


def paired(
    request: ComparisonRequest, by_arm: Mapping[str, Ranked], pairs: Sequence[tuple[str, str]], protocol: str
) -> Iterator[tuple[tuple[str, str], str, Difference]]:
    """Differences of pairs (arm, its control) in the tested metrics.

    A baseline without seeds counts as the same with every seed. With several pre-training seeds, runs that start from
    the same one are averaged first: the pre-trained runs are the sample then, and not the runs made from them.
    """
    cases = [(pair, metric) for pair in pairs for metric in TESTED]
    seeds = max(len(by_arm[name].by_protocol[protocol]) for pair in pairs for name in pair)
    shape, user = (seeds, len(by_arm[pairs[0][0]].user)), by_arm[pairs[0][0]].user
    draws = request.config.pretrain_seeds
    gained: dict[tuple[str, str], Floats] = {}
    for name in {name for pair in pairs for name in pair}:
        for metric in TESTED:
            runs = np.broadcast_to(gains(by_arm[name].by_protocol[protocol], metric), shape)
            gained[name, metric] = runs if draws == 1 else np.stack([runs[k::draws].mean(0) for k in range(draws)])
    arms, controls = (np.stack([gained[pair[side], metric] for pair, metric in cases]) for side in (0, 1))
    for (pair, metric), one in zip(cases, differences(arms, controls, user, request.config.alpha), strict=True):
        yield pair, metric, one


def correct(family: Sequence[Finding], request: ComparisonRequest) -> None:
    """Fill in the corrected p values of a family of tests, and what each could find. Without p (too few users, or one
    seed) there are none.

    Each kind of finding is a family of its own: the chance of any false difference stays below alpha, and so does that
    of any false equivalence.
    """
    tested = [one for one in family if one.found.p is not None]
    within = [p_within(one.found, request.config.margin) for one in tested]
    differ, alike = holm([one.found.p or 0.0 for one in tested]), holm([p or 0.0 for p in within])
    for one, corrected, equivalent in zip(tested, differ, alike, strict=True):
        one.corrected, one.within = corrected, equivalent
        one.least = detectable(one.found, request.config.alpha / len(tested))


def as_data(one: Finding) -> dict[str, Any]:
    found, spread = one.found, one.found.spread
    values = asdict(found) | {
        "spread": asdict(spread) | {"freedom": list(spread.freedom)} if spread else None,
        "standard_error": float(np.sqrt(spread.variance())) if spread else None,
        "p_holm": one.corrected,
        "p_beyond_margin": one.within,
        "detectable": one.least,
    }
    return {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in values.items()}


def notes(arms: Mapping[str, Any], protocol: str) -> list[str]:
    """What a reader should know before trusting a verdict: whether an untrained baseline beats all trained arms."""
    found = []
    for metric in TESTED:
        mean = {name: arm["protocols"][protocol][metric]["mean"] for name, arm in arms.items()}
        plain = [name for name, arm in arms.items() if arm["kind"] == UNTRAINED]
        trained = [name for name in arms if name not in plain]
        if plain and trained:
            best, rival = max(plain, key=mean.__getitem__), max(trained, key=mean.__getitem__)
            if mean[best] >= mean[rival]:
                found.append(
                    f"{metric}: {best}, which is not trained, has {mean[best]:.4f}; the best trained arm, {rival}, has "
                    f"{mean[rival]:.4f}"
                )
    return found


def left_out(
    request: ComparisonRequest, arms: Sequence[Arm], ranked: Mapping[str, Mapping[str, Ranked]]
) -> dict[str, Any]:
    """Leave one source out, for the primary protocol: the score without the source minus the score with all sources,
    by target, stage and source, and what it says about the source.

    p is Holm-corrected over all of these, for the metric of the verdict. A source hurts if leaving it out improves that
    metric with a corrected p below alpha, helps if that worsens it, and does not matter if the difference is shown to
    lie within the margin.
    """
    pairs = {
        (without.name, whole.name): (without.way, without.mix.without)
        for without in arms
        for whole in arms
        if without.mix and without.mix.without and whole.mix and whole.mix.name == WHOLE and whole.way == without.way
    }
    if not pairs:
        return {}
    found: dict[tuple[str, str, str], dict[str, Finding]] = {}
    for target, by_arm in ranked.items():
        for pair, metric, one in paired(request, by_arm, list(pairs), request.config.protocol):
            stage, source = pairs[pair]
            found.setdefault((target, stage, str(source)), {})[metric] = Finding(target, stage, metric, one)
    primary = request.config.metric
    correct([by_metric[primary] for by_metric in found.values()], request)
    words = {POSITIVE: "hurts", NEGATIVE: "helps", EQUIVALENT: "does not matter", NONE: "not shown to matter"}
    result: dict[str, Any] = {}
    for (target, stage, source), by_metric in found.items():
        verdict = by_metric[primary].judge(request)
        result.setdefault(target, {}).setdefault(stage, {})[source] = {
            "says": words[verdict.word] if verdict.word else None,
            "why": verdict.why,
            "differences": {m: as_data(one) for m, one in by_metric.items()},
        }
    return result
