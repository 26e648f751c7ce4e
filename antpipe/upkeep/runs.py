"""The files of runs: weights, documents, training states and ranks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from antpipe.errors import AntpipeError, IntegrityError
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.store.tables import read_table
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import TRAIN_AGAIN, RunFolder
from antpipe.training.listing import run_folders
from antpipe.training.methods.reports import read_report
from antpipe.training.request import FORK_MERGE, MERGE
from antpipe.upkeep.findings import FINE, Finding, guarded


def examine_runs(store: Store, folder: Path, deep: bool) -> Iterator[Finding]:
    """One finding per damaged file, and one per run in which all is well; runs on other stores are left out.

    folder: where runs are looked for, also below it. deep: read weights, states and tables whole.
    """
    there = set(store.domains())
    for path in sorted(run_folders(folder, store.root, unfinished=True)):
        about, run = f"run {path}", RunFolder(path)
        try:
            on = domains_of(run)
        except AntpipeError:
            on = there  # it does not say
        if not there.intersection(on):
            continue
        looks = [partial(weights, run, deep)] if run.is_finished() else []
        looks += [partial(documents, run), partial(state, run, deep), partial(evaluations, store, run, deep)]
        found = [one for look in looks for one in guarded(about, look)]
        well = "every file read, all are whole" if deep else "its documents are whole"
        yield from found or [Finding(about, FINE, well)]


def domains_of(run: RunFolder) -> set[str]:
    """The domains that a run was trained on, or is being trained on."""
    if run.is_finished():
        return set(checkpoint.describe(run.path).domains)
    from antpipe.training.state import read_header

    return set(read_header(run)["described"].domains)


def weights(run: RunFolder, deep: bool) -> Iterator[Finding]:
    """Raises IntegrityError unless the weights are those that the description names. deep: compare their content."""
    described = checkpoint.describe(run.path)
    path = weights_path(run, described)
    if deep:
        checkpoint.load_weights(run.path, described)
        if (ids := run.items(described.id_tables)).is_file():
            read_table(ids, None, TRAIN_AGAIN)
    else:
        require_tensors(path)
    yield from ()


def weights_path(run: RunFolder, described: Checkpoint) -> Path:
    """The file of the weights; a run from a model hub has them under another name."""
    path = run.weights(described.weights_sha256)
    return run.published if run.published.is_file() and not path.exists() else path


def require_tensors(path: Path) -> None:
    """Raise IntegrityError if a safetensors file is missing or cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            pass
    except (OSError, SafetensorError, ValueError) as error:
        raise IntegrityError(f"{path}: missing or damaged: {error}", TRAIN_AGAIN) from None


def documents(run: RunFolder) -> Iterator[Finding]:
    """Raises IntegrityError if one of the JSON files of a run is damaged."""
    run.read_rows()
    run.read_cost()
    run.read_decision()
    for stage in (FORK_MERGE, MERGE):
        read_report(run.path, stage)
    yield from ()


def state(run: RunFolder, deep: bool) -> Iterator[Finding]:
    """Raises IntegrityError if the state of an unfinished training is damaged."""
    if run.is_unfinished():
        from antpipe.training.state import read_header

        header = read_header(run)
        found = checkpoint.tensors_sha256(checkpoint.read_tensors(run.state)) if deep else None
        if found and header.get("tensors", found) != found:  # states of 0.1.0 have no hash
            raise checkpoint.damaged(f"{run.state}: its content differs from what was written")
    yield from ()


def evaluations(store: Store, run: RunFolder, deep: bool) -> Iterator[Finding]:
    """The evaluations that are damaged, each with the command that makes it again."""
    for path in sorted(run.path.glob("evaluation-*.json")):
        named = [name for name in store.domains() if path.name.startswith(f"evaluation-{name}-")]
        domains = [max(named, key=len)] if named else list(domains_of(run))
        again = spell("evaluate", domains=domains, store=store.root, flags=["--run", run.path])
        yield from guarded(f"run {run.path}", partial(evaluation, path, again, deep))


def evaluation(path: Path, again: str, deep: bool) -> Iterator[Finding]:
    """Raises IntegrityError if the figures of an evaluation, or if `deep` its ranks, are damaged."""
    from antpipe.evaluation.ranks import RANKS, read_evaluation

    read_evaluation(path, again)
    ranks = path.with_name(path.name.replace("evaluation-", "ranks-", 1)).with_suffix(".parquet")
    if deep and ranks.is_file():
        read_table(ranks, RANKS, again)
    yield from ()
