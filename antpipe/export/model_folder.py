"""`export huggingface`: a run as a folder for a model hub: weights, configuration, evaluations and a model card.

The folder is a run too: `Run.open`, `--run` and `--from` take it as it is, also after a download.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from antpipe.core.reranker import reranks
from antpipe.errors import DataError, IntegrityError
from antpipe.evaluation.ranks import read_evaluation
from antpipe.export.folder import README, Exported, exporting, require_free
from antpipe.export.model_card import UNKNOWN, Shown, card
from antpipe.runtime.logs import log
from antpipe.settings.comparison import OUTCOME_FORMAT
from antpipe.store.documents import read_json, refuse_newer
from antpipe.store.entries import why_damaged
from antpipe.store.next_command import build_command, spell
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.methods.reports import report_file
from antpipe.training.request import FORK_MERGE


class RunOfArm(TypedDict):
    fingerprint: str


class Arm(TypedDict):
    runs: list[RunOfArm]
    seeds: int
    protocols: dict[str, dict[str, Any]]
    verdict: Any


class Target(TypedDict):
    arms: dict[str, Arm]


class Outcome(TypedDict):
    """The parts of comparison.json that a card reports."""

    targets: dict[str, Target]
    metric: str
    protocol: str
    control: str


def export_huggingface(
    store: Store,
    run: Path,
    out: Path,
    *,
    domains: Sequence[str] | None = None,
    name: str | None = None,
    licence: str = UNKNOWN,
    comparison: Path | None = None,
    force: bool = False,
) -> Exported:
    """Write model.safetensors, config.json, checkpoint.json, the evaluations of the run, and README.md, the card.

    domains: whose evaluations the card shows (default: all). comparison: a folder of `compare` with the verdict on this
    run. Raises DataError if the run was not evaluated on one of the domains, if the comparison has no such run, or if
    `out` is there.
    """
    require_free(out, force=force)
    described = checkpoint.describe(run)
    weights = checkpoint.weights_file(run, described)
    evaluations = evaluations_of(store, run, described, domains)
    verdicts = verdicts_on(comparison, described) if comparison else []
    sizes = {domain: statistics(store, domain) for domain in described.domains}
    again = described.model_config().reranker and reranks(checkpoint.load(run)[0])
    with exporting("huggingface", out, force=force) as draft:
        folder = RunFolder(draft.path)
        shutil.copyfile(weights, folder.published)
        shutil.copyfile(RunFolder(run).description, folder.description)
        for path in kept(RunFolder(run), described):
            shutil.copyfile(path, draft.path / path.name)
        for path, _ in evaluations:
            shutil.copyfile(path, draft.path / path.name)
        draft.json("config.json", config_of(described))
        shown = Shown(name or run.resolve().name, licence, verdicts, again)
        draft.text(README, card(described, [figures for _, figures in evaluations], sizes, shown))
        draft.facts |= {"run": {"fingerprint": described.fingerprint, "stage": described.stage}, "license": licence}
        draft.figures |= {
            "parameters": sum(tensor.numel() for tensor in described.build("meta").state_dict().values()),
            "evaluations": len(evaluations),
            "verdicts": len(verdicts),
        }
        about = draft.about("huggingface")
    if licence == UNKNOWN:
        log.warning(
            f"{out / README}: states no licence; name one with --license, as the hub spells it (mit, cc-by-4.0)"
        )
    return Exported(out, about)


def kept(folder: RunFolder, described: Checkpoint) -> list[Path]:
    """Optional files of a run: its cost, and which items its learned ids belong to."""
    ids = [folder.items(described.id_tables)] if described.items is not None else []
    folder.read_cost()  # refuses a damaged one
    named = [report_file(folder.path, FORK_MERGE)] if described.stage == FORK_MERGE else []  # its auxiliaries
    return [path for path in (folder.cost, *ids, *named) if path.is_file()]


def config_of(described: Checkpoint) -> dict[str, Any]:
    """config.json, by which hubs recognise a model; antpipe itself reads checkpoint.json, which says more."""
    return {
        "model_type": "antpipe",
        "architectures": ["Ant"],
        "antpipe_version": described.antpipe,
        "stage": described.stage,
        "max_len": described.max_len,
        "items": described.items,
        "modalities": described.modalities,
        **described.model,
    }


def evaluations_of(
    store: Store, run: Path, described: Checkpoint, domains: Sequence[str] | None
) -> list[tuple[Path, dict[str, Any]]]:
    """The files and figures of a run's evaluations, without those of an earlier run in its folder."""
    found = []
    for path in sorted(run.glob("evaluation-*.json")):
        again = spell("evaluate", domains=[judged_in(path, store, described)], store=store.root, flags=["--run", run])
        figures = dict(read_evaluation(path, again))
        if figures.get("run_fingerprint") != described.fingerprint:
            log.warning(f"{path}: of an earlier run in this folder; left out")
        elif domains is None or figures["domain"] in domains:
            found.append((path, figures))
    for domain in domains or ():
        if domain not in {figures["domain"] for _, figures in found}:
            command = spell("evaluate", domains=[domain], store=store.root, flags=["--run", run])
            raise DataError(f"{run} was not evaluated on {domain}, so the card has nothing to say of it", command)
    return found


def judged_in(path: Path, store: Store, described: Checkpoint) -> str:
    """The domain of an evaluation, by the name of its file."""
    named = [name for name in store.domains() if path.name.startswith(f"evaluation-{name}-")]
    return max(named, key=len, default=next(iter(described.domains), "DOMAIN"))


def verdicts_on(comparison: Path, described: Checkpoint) -> list[dict[str, Any]]:
    """What a comparison says of the arm of this run, by target: arm, seeds, metric, difference, verdict and why."""
    path = comparison / "comparison.json"
    try:
        form = read_json(path, dict[str, Any], "antpipe compare --help").get("format")
        refuse_newer(path, form, OUTCOME_FORMAT)
        outcome = read_json(path, Outcome, "antpipe compare --help")
    except FileNotFoundError:
        raise DataError(f"{path}: no finished comparison: it is missing", "antpipe compare --help") from None
    found = []
    for target, facts in outcome["targets"].items():
        for arm, figures in facts["arms"].items():
            if described.fingerprint not in {row["fingerprint"] for row in figures["runs"]}:
                continue
            metric, protocol = outcome["metric"], outcome["protocol"]
            found.append(
                {
                    "target": target,
                    "arm": arm,
                    "control": outcome["control"],
                    "seeds": figures["seeds"],
                    "metric": metric,
                    "protocol": protocol,
                    "mean": figures["protocols"][protocol][metric],
                    "verdict": figures["verdict"],
                }
            )
    if not found:
        raise DataError(f"{path}: none of its runs is this one ({described.stage}, {described.fingerprint[:12]})")
    return found


def statistics(store: Store, domain: str) -> dict[str, Any]:
    """The size of a domain, from its manifest; empty if it is no longer in the store.

    Raises IntegrityError if its entry is damaged.
    """
    if domain not in store.domains():
        return {}
    place = store.domain(domain)
    entry = place.manifest().get("items", {})
    if why := why_damaged(entry):
        raise IntegrityError(why, build_command(place, "items", force=True))
    found: dict[str, Any] = entry.get("statistics", {})
    return found
