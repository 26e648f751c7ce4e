"""The outcome of a comparison: means over seeds, differences to the control, verdicts, and the source that hurts."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.comparison.plan import CONTROL, UNTRAINED, WHOLE, Arm, ComparisonRequest, Job
from antpipe.comparison.verdict import Difference, differences, gains, holm, judge
from antpipe.core.ranking import PROTOCOLS
from antpipe.errors import DataError, IntegrityError
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training.folder import RunFolder

TESTED = ("recall@10", "ndcg@10")  # the metrics a verdict is about
KEYS = ("user", "position", "target")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Ranks of one arm on a target: by protocol (S, Q), infinite if not found. user: (Q,) of each position."""

    by_protocol: dict[str, Floats]
    user: NDArray[np.int64]


@dataclass
class Finding:
    """One tested difference: where, what is compared (a label), and its corrected p once all of them are known."""

    target: str
    label: str
    metric: str
    found: Difference
    corrected: float | None = None


def outcome(
    request: ComparisonRequest, arms: Sequence[Arm], work: Sequence[Job], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of comparison.json, as plain data.

    `targets` has for each target its size and, by arm, `protocols` (mean, std and seeds of each metric), `differences`
    to the control (by protocol and metric; Holm-corrected within a protocol over judged arms, targets and metrics) and
    the `verdict`; `notes` are remarks in words. `sources`: what leaving each one out changes. Raises DataError if a run
    was judged by other protocols.
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
    for protocol in PROTOCOLS:
        found = list(to_control(request, arms, ranked, protocol))
        correct([one for one in found if arm_of(arms, one.label).judged])
        for one in found:
            place = targets[one.target]["arms"][one.label]["differences"].setdefault(protocol, {})
            place[one.metric] = as_data(one)
            if protocol == config.protocol and arm_of(arms, one.label).judged:
                own = {
                    o.metric: (o.found, o.corrected) for o in found if (o.target, o.label) == (one.target, one.label)
                }
                targets[one.target]["arms"][one.label]["verdict"] = asdict(judge(own, config.alpha))
    for target in targets.values():
        target["notes"] = notes(target["arms"], config.protocol)
    return {
        "control": CONTROL,
        "protocol": config.protocol,
        "split": "test",
        "alpha": config.alpha,
        "resamples": config.resamples,
        "resample_seed": config.resample_seed,
        "tested": list(TESTED),
        "targets": targets,
        "sources": left_out(request, arms, ranked),
    }


def load_ranks(work: Sequence[Job], store: Store) -> dict[str, Ranked]:
    """Ranks by arm. store: where the runs were judged.

    Raises IntegrityError, naming the run, if two runs were not judged on the same positions.
    """
    import pyarrow.parquet as pq

    first: Any = None
    columns: dict[str, dict[str, list[Floats]]] = {}
    for job in sorted(work, key=lambda job: job.seed):
        path = RunFolder(job.folder).ranks(job.target, "test")
        table = pq.read_table(path, columns=[*KEYS, *(f"rank_{protocol}" for protocol in PROTOCOLS)])
        keys = np.stack([table[key].to_numpy().astype(np.int64) for key in KEYS])
        first = keys if first is None else first
        if keys.shape != first.shape or (keys != first).any():
            raise IntegrityError(
                f"{path}: its positions differ from those of {work[0].arm.name}",
                shlex.join(["rm", str(path)])
                if job.arm.kind == UNTRAINED
                else spell("evaluate", domains=[job.target], store=store.root, flags=["--run", job.folder]),
            )
        for protocol in PROTOCOLS:
            ranks = table[f"rank_{protocol}"].fill_null(np.inf).to_numpy().astype(np.float64)
            columns.setdefault(job.arm.name, {}).setdefault(protocol, []).append(ranks)
    return {
        name: Ranked({protocol: np.stack(ranks) for protocol, ranks in by.items()}, first[0])
        for name, by in columns.items()
    }


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
    """Differences of pairs (arm, its control) in the tested metrics, all with the same resamples.

    A baseline without seeds counts as the same with every seed.
    """
    cases = [(pair, metric) for pair in pairs for metric in TESTED]
    seeds = max(len(by_arm[name].by_protocol[protocol]) for pair in pairs for name in pair)
    shape = (seeds, len(by_arm[pairs[0][0]].user))
    gained = {
        (name, metric): np.broadcast_to(gains(by_arm[name].by_protocol[protocol], metric), shape)
        for pair in pairs
        for name in pair
        for metric in TESTED
    }
    found = differences(
        np.stack([gained[pair[0], metric] for pair, metric in cases]),
        np.stack([gained[pair[1], metric] for pair, metric in cases]),
        by_arm[pairs[0][0]].user,
        resamples=request.config.resamples,
        seed=request.config.resample_seed,
        alpha=request.config.alpha,
    )
    for (pair, metric), one in zip(cases, found, strict=True):
        yield pair, metric, one


def correct(family: Sequence[Finding]) -> None:
    """Fill in the corrected p values of a family of tests. A test without p (too few users) gets none."""
    tested = [(one, one.found.p) for one in family if one.found.p is not None]
    for (one, _), corrected in zip(tested, holm([p for _, p in tested]), strict=True):
        one.corrected = corrected


def as_data(one: Finding) -> dict[str, Any]:
    values = asdict(one.found) | {"p_holm": one.corrected}
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

    p is Holm-corrected over all of these and the tested metrics. A source hurts if leaving it out makes a metric better
    with a corrected p below alpha, and helps if that makes it worse.
    """
    pairs = {
        (without.name, whole.name): (without.request.stage, without.mix.without)
        for without in arms
        for whole in arms
        if without.mix
        and without.mix.without
        and whole.mix
        and whole.mix.name == WHOLE
        and whole.request.stage == without.request.stage
    }
    if not pairs:
        return {}
    found: dict[tuple[str, str, str], dict[str, Finding]] = {}
    for target, by_arm in ranked.items():
        for pair, metric, one in paired(request, by_arm, list(pairs), request.config.protocol):
            stage, source = pairs[pair]
            found.setdefault((target, stage, str(source)), {})[metric] = Finding(target, stage, metric, one)
    correct([one for by_metric in found.values() for one in by_metric.values()])
    words = {"POSITIVE": "hurts", "NEGATIVE": "helps", "NONE": "not shown to matter", None: None}
    result: dict[str, Any] = {}
    for (target, stage, source), by_metric in found.items():
        verdict = judge({m: (one.found, one.corrected) for m, one in by_metric.items()}, request.config.alpha)
        result.setdefault(target, {}).setdefault(stage, {})[source] = {
            "says": words[verdict.word],
            "differences": {m: as_data(one) for m, one in by_metric.items()},
        }
    return result
