"""What a report is made of: the outcomes of comparisons, and runs with their evaluations, as one kind of data."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antpipe.comparison.outcome import BEYOND, spread
from antpipe.comparison.plan import CONTROL, TRAINED, UNTRAINED
from antpipe.comparison.run import OUTCOME
from antpipe.core.ranking import PROTOCOLS
from antpipe.errors import DataError, IntegrityError, UsageError
from antpipe.evaluation.beyond import means
from antpipe.settings.comparison import OUTCOME_FORMAT, CompareConfig
from antpipe.store import documents
from antpipe.store.documents import refuse_newer
from antpipe.store.next_command import shell, spell
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder

SPLIT = "test"
ALIKE = ("seed", "device", "precision")  # settings in which the runs of one arm may differ
HELP = spell("compare --help")
COMPARED = ("control", "protocol", "metric", "alpha", "margin", "targets")  # what every comparison.json has


@dataclass(frozen=True)
class Judged:
    """What was found on one target.

    label: the target, with its comparison (or `runs`) if several have the name. facts: as in comparison.json: `users`,
    `items`, `positions`, `arms`, `notes`. rules: `control`, `protocol`, `metric`, `alpha`, `margin`. folders: each
    arm's run folders that exist here. finished: whether it is from a finished comparison, with verdicts.
    """

    target: str
    label: str
    facts: Mapping[str, Any]
    rules: Mapping[str, Any]
    folders: Mapping[str, Sequence[Path]]
    finished: bool = True

    @property
    def arms(self) -> Mapping[str, Any]:
        arms: Mapping[str, Any] = self.facts["arms"]
        return arms

    @property
    def control(self) -> str | None:
        """The arm that the others are compared with, if it is there."""
        name: str = self.rules["control"]
        return name if name in self.arms else None

    def metric_of(self, arm: str, metric: str | None = None, protocol: str | None = None) -> Mapping[str, Any]:
        """`mean`, `std` and `seeds` of an arm; by default, for the metric and protocol of the verdict."""
        found: Mapping[str, Any] = self.arms[arm]["protocols"][protocol or self.rules["protocol"]]
        return dict(found[metric or self.rules["metric"]])

    def best(self, names: Iterable[str] | None = None) -> list[str]:
        """Arms by their mean of the verdict's metric, best first; ties in the order of the comparison."""
        return sorted(self.arms if names is None else names, key=lambda name: -self.metric_of(name)["mean"])

    def trained(self) -> list[str]:
        """Arms that were trained, the best first."""
        return self.best(name for name, arm in self.arms.items() if arm["kind"] != UNTRAINED)

    def evaluations(self, arm: str) -> list[dict[str, Any]]:
        """The evaluations, with slices, of those runs of an arm that exist here."""
        return [read_json(RunFolder(path).evaluation(self.target, SPLIT)) for path in self.folders[arm]]

    def verdicts(self) -> dict[str, Mapping[str, Any]]:
        """By judged arm: `word` (None: too little data) and `why`."""
        return {name: arm["verdict"] for name, arm in self.arms.items() if arm["verdict"]}


@dataclass(frozen=True)
class Findings:
    """Everything a report shows that is not read from the store.

    curves: learning curves by name, each with the comparison it is from. outcomes: contents of comparison.json by name.
    loose: run folders by domain, for runs that were given directly.
    """

    judged: Sequence[Judged]
    curves: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    outcomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    loose: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def domains(self) -> list[str]:
        """The domains that targets and runs are about, each once."""
        return list(dict.fromkeys([*(one.target for one in self.judged), *self.loose]))

    def subjects(self) -> list[str]:
        """What a report is about: its targets, or the domains of learning curves that they were drawn from."""
        drawn = {point["target"]: name for name, (curve, _) in self.curves.items() for point in curve["points"]}
        names = [drawn.get(one.target, one.target) for one in self.judged]
        return list(dict.fromkeys(names or self.domains()))


def gather(runs: Sequence[Path], comparisons: Sequence[Path]) -> Findings:
    """Read comparisons and runs.

    Raises UsageError if none is given or one is given twice, DataError for a folder that holds neither an outcome nor a
    finished arm, IntegrityError for a damaged file.
    """
    paths = [path.resolve() for path in (*runs, *comparisons)]
    if not paths:
        raise UsageError("name runs with --run, or comparisons with --compare")
    if len(set(paths)) < len(paths):
        raise UsageError(f"{next(path for path in paths if paths.count(path) > 1)}: is named twice")
    folders = named(comparisons)
    outcomes = {name: read_outcome(folder) for name, folder in folders.items()}
    loose: dict[str, list[Path]] = {}
    for run in runs:
        for domain in checkpoint.describe(run).domains:
            loose.setdefault(domain, []).append(run)
    from_runs = judged_runs(runs)
    counted = [target for found in outcomes.values() for target in found["targets"]] + list(from_runs)
    several = {target for target in counted if counted.count(target) > 1}
    judged = []
    for name, found in outcomes.items():
        for target, facts in found["targets"].items():
            label = f"{target} ({name})" if target in several else target
            folders_of = {arm: located(folders[name], target, of["runs"]) for arm, of in facts["arms"].items()}
            judged.append(Judged(target, label, facts, found, folders_of, found.get("finished", True)))
    for target, facts in from_runs.items():
        label = f"{target} (runs)" if target in several else target
        here = {arm: [Path(run["run"]) for run in of["runs"]] for arm, of in facts["arms"].items()}
        judged.append(Judged(target, label, facts, usual_rules(), here, finished=False))
    curves = {
        label_of(domain, name, outcomes): (curve, found)
        for name, found in outcomes.items()
        for domain, curve in found.get("curve", {}).items()
    }
    return Findings(judged, curves, outcomes, loose)


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last name, or as they were given if two have the same."""
    last = [folder.resolve().name for folder in folders]
    return {name if last.count(name) == 1 else str(folder): folder for name, folder in zip(last, folders, strict=True)}


def label_of(domain: str, comparison: str, outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of a learning curve; with its comparison's name if several comparisons have a curve of the domain."""
    several = sum(domain in found.get("curve", {}) for found in outcomes.values()) > 1
    return f"{domain} ({comparison})" if several else domain


def usual_rules() -> dict[str, Any]:
    """The rules that figures follow if no comparison sets them."""
    usual = CompareConfig()
    return {
        "control": CONTROL,
        "protocol": usual.protocol,
        "metric": usual.metric,
        "alpha": usual.alpha,
        "margin": usual.margin,
    }


# -- comparisons ------------------------------------------------------------------------------------------------------


def read_outcome(folder: Path) -> Mapping[str, Any]:
    """The content of comparison.json; for an unfinished comparison, what its finished runs found, without verdicts."""
    path = folder / f"{OUTCOME}.json"
    if not path.exists():
        return unfinished(folder)
    found = read_json(path)
    refuse_newer(path, found.get("format"), OUTCOME_FORMAT)
    if not all(key in found for key in COMPARED):
        raise IntegrityError(f"{path}: not the outcome of a comparison", HELP)
    if not any(facts["arms"] for facts in found["targets"].values()):
        raise DataError(f"{path}: no arm is finished", HELP)
    return found


def unfinished(folder: Path) -> dict[str, Any]:
    """The outcome of a comparison so far. Raises DataError if none of its runs is finished."""
    if not folder.is_dir():
        raise DataError(f"--compare {folder}: no such folder", HELP)
    paths = [path for path in sorted(folder.glob("results/*/**/*.json")) if not path.stem.endswith("-refit")]
    records = [one for one in map(read_json, paths) if {"arm", "target", "protocols"} <= one.keys()]
    if not records:
        raise DataError(f"--compare {folder}: no arm of a comparison is finished there", HELP)
    note = f"the comparison is not finished: {len(records)} runs are, and nothing was tested yet"
    return {**usual_rules(), "targets": facts_of(records, [note]), "finished": False}


def facts_of(records: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> dict[str, Any]:
    """The results by target, as in comparison.json, from the records of single runs."""
    found: dict[str, Any] = {}
    for target in dict.fromkeys(one["target"] for one in records):
        here = [one for one in records if one["target"] == target]
        arms = {
            name: arm_of([one for one in here if one["arm"] == name])
            for name in dict.fromkeys(one["arm"] for one in here)
        }
        sizes = {key: here[0].get(key) for key in ("users", "items", "positions", "target_in_history")}
        found[target] = {**sizes, "arms": arms, "notes": list(notes)}
    return found


def arm_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of one arm, from the records of its runs."""
    beyond = [one[BEYOND] for one in records if one.get(BEYOND)]
    kept = ("run", "seed", "fingerprint", "seconds", "budget", "chosen")
    return {
        "kind": records[0]["kind"],
        "mix": records[0].get("mix"),
        "seeds": len(records),
        "protocols": {
            protocol: {
                metric: spread([one["protocols"][protocol][metric] for one in records])
                for metric in records[0]["protocols"][protocol]
            }
            for protocol in PROTOCOLS
        },
        **({BEYOND: means(beyond)} if len(beyond) == len(records) else {}),
        "differences": {},
        "verdict": None,
        "runs": [{key: one.get(key) for key in kept} for one in records],
    }


def located(folder: Path, target: str, runs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The folders of runs with an evaluation, if they exist here.

    If a comparison was moved, its runs are looked for below it, since it still records their old paths.
    """
    found = []
    for run in runs:
        parts = Path(run["run"]).parts
        below = [folder.joinpath(*parts[place:]) for place in range(1, len(parts))]
        places = [*below, Path(run["run"])]
        found += [place for place in places if evaluation_of(place, target, run["fingerprint"])][:1]
    return found


# -- runs -------------------------------------------------------------------------------------------------------------


def judged_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """The results of runs on the domains they were judged on. Runs that differ only in their seed are one arm."""
    described = {run: checkpoint.describe(run) for run in runs}
    names = arm_names(described)
    records = []
    for run, done in described.items():
        for found in evaluations(run, done.fingerprint):
            records.append(
                {
                    "arm": names[run],
                    "kind": TRAINED,
                    "target": found["domain"],
                    "seed": done.train.get("seed", 0),
                    "run": str(run),
                    "fingerprint": done.fingerprint,
                    "seconds": RunFolder(run).read_cost().get("seconds"),
                    **{key: found.get(key) for key in ("users", "items", "positions", "target_in_history", BEYOND)},
                    "protocols": found["protocols"],
                }
            )
    return facts_of(records)


def arm_names(described: Mapping[Path, Checkpoint]) -> dict[Path, str]:
    """The stage and method of each run; with the name of an arm's first folder if several arms have the same."""
    first: dict[str, Path] = {}
    same: dict[Path, str] = {}
    for run, done in described.items():
        train = {key: value for key, value in done.train.items() if key not in ALIKE}
        alike = [done.stage, done.groups, done.model, train, done.modalities, done.source, bool(done.refit)]
        same[run] = json.dumps(alike, sort_keys=True, default=str)
        first.setdefault(same[run], run)
    ways = {run: described[run].way() for run in first.values()}
    names = {
        key: ways[run] if list(ways.values()).count(ways[run]) == 1 else f"{ways[run]} ({run.resolve().name})"
        for key, run in first.items()
    }
    return {run: names[key] for run, key in same.items()}


def evaluations(run: Path, fingerprint: str) -> Iterator[dict[str, Any]]:
    """The exact evaluations of the current run of a folder on the test split."""
    for path in sorted(run.glob(f"evaluation-*-{SPLIT}.json")):
        found = read_json(path)
        if found.get("run_fingerprint") == fingerprint and found.get("split") == SPLIT and not found["approximate"]:
            yield found


def evaluation_of(run: Path, target: str, fingerprint: str) -> dict[str, Any] | None:
    """The evaluation of a run on a target; None if there is none for the run with this fingerprint."""
    path = RunFolder(run).evaluation(target, SPLIT)
    if not path.is_file():
        return None
    found = read_json(path)
    return found if found.get("run_fingerprint") == fingerprint else None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises IntegrityError naming the file if there is none, or its checksum is wrong."""
    mend = shell("head", "-c", "200", path)
    try:
        return documents.read_json(path, dict[str, Any], mend)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: cannot be read: it does not exist", mend) from None
