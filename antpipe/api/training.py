"""Training runs, and plans of what would be trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from antpipe.api.keywords import RunKeywords, SearchKeywords
from antpipe.api.runs import Run
from antpipe.api.settings import Given, default_store, given, names_of, store_of, takes
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.comparison import RaceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.settings.tuning import TuneConfig
from antpipe.store.store import Store
from antpipe.training.groups import GroupRow, group_table

if TYPE_CHECKING:
    from antpipe.training.checkpoint import Checkpoint
    from antpipe.training.request import RunRequest
    from antpipe.tuning.run import Tuned

Start = Run | str | Path | Sequence[Run | str | Path] | None  # a run to start from; for `merge`, two

AUTO = "auto"  # the stage that chooses a stage on validation
REPORTED = ("fork-merge", "merge")  # stages that also say what they chose; as FORK_MERGE, MERGE of training/request.py


@takes(TrainConfig, ModelConfig, RaceConfig, ForkMergeConfig)
def train(
    store: Store | str | Path,
    stage: str,
    domains: str | Sequence[str],
    *,
    out: str | Path,
    start: Start = None,
    auxiliaries: str | Sequence[str] = (),
    refit: bool = False,
    resume: bool = False,
    force: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    progress: Progress = silent,
    **settings: Unpack[RunKeywords],
) -> Run:
    """Train one stage and write the run of its best epoch to a folder.

    stage: `pretrain` on one or more sources; `scratch`, `finetune`, `relearn` and others on one target; `auto` races
    them on validation; `fork-merge` trains a target with `auxiliaries`, other domains, in branches that it merges by
    validation; `merge` merges two runs of a target; or a stage that `config`, a TOML file, defines. start: the run to
    start from, whose model settings are inherited; for `merge` the two runs. refit: afterwards train once more, from
    the same initial values, on training and validation targets together, for as many epochs as were best; the result
    is a run of its own in OUT/refit, and `refit` of the run returned (if vectors add too little to its floor, it is
    that floor). resume: continue an interrupted run. force: start over, whatever the folder holds. preset: `ant` or
    `strong`, instead of the defaults.

    A run that is there already is returned as it is (`status` is `fresh`). Raises UsageError if stage, domains and
    start do not go together or the folder holds another run, DataError if the store lacks something or the run to
    start from does not fit, DivergedError for a loss that is not finite, Interrupted after Ctrl-C, with the state kept.

    >>> run = ant.train("shop", "relearn", ["Toys"], start="runs/beauty", out="runs/relearned", epochs=2)
    >>> run.stage, run.status
    ('relearn', 'trained')
    """
    from antpipe.training import checkpoint
    from antpipe.training.sharing import tell_shared_users

    chosen, out = given(settings, config, preset), Path(out)
    request = _request(store, stage, domains, start, chosen, refit=refit, auxiliaries=auxiliaries)
    begun = checkpoint.describe(request.source).domains if request.source is not None else ()
    if begun or auxiliaries:
        tell_shared_users(request.store, [*begun, *(names_of(auxiliaries) if auxiliaries else ())], request.domains)
    if stage == AUTO:
        from antpipe.training.race import run_auto

        race = chosen.resolve(RaceConfig)
        done, there, decision = run_auto(request, out, race=race, force=force, resume=resume, progress=progress)
        return Run(out, request.store, done, "fresh" if there else "trained", decision)
    if stage in REPORTED:
        done, there, report = _run_method(request, out, force=force, resume=resume, progress=progress)
        return Run(out, request.store, done, "fresh" if there else "trained", report)
    from antpipe.training.folder import RunFolder
    from antpipe.training.run import run_and_refit, run_stage

    again = None
    if refit:
        (done, there), (last, last_there) = run_and_refit(request, out, force=force, resume=resume, progress=progress)
        again = Run(RunFolder(out).refit, request.store, last, "fresh" if last_there else "trained")
    else:
        done, there = run_stage(request, out, force=force, resume=resume, progress=progress)
    return Run(out, request.store, done, "fresh" if there else "trained", refit=again)


@takes(TrainConfig, ModelConfig, RaceConfig, ForkMergeConfig)
def plan_training(
    store: Store | str | Path,
    stage: str,
    domains: str | Sequence[str],
    *,
    start: Start = None,
    auxiliaries: str | Sequence[str] = (),
    refit: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    **settings: Unpack[RunKeywords],
) -> list[GroupRow]:
    """Check a request as `train` would, and say what it would do with each group of parameters, without training.

    Takes what train takes, and raises what it would.

    >>> [row] = [row for row in ant.plan_training("shop", "relearn", ["Toys"], start="runs/beauty")
    ...          if row.group == "encoder"]
    >>> row.action
    'freeze'
    """
    chosen = given(settings, config, preset)
    plan = _request(store, stage, domains, start, chosen, refit=refit, auxiliaries=auxiliaries).plan()
    return group_table(plan.actions, plan.described.build())


@takes(TrainConfig, ModelConfig, RaceConfig, ForkMergeConfig)
def plan_race(
    *, config: str | Path | None = None, preset: str | None = None, **settings: Unpack[RunKeywords]
) -> dict[str, Any]:
    """What the stage `auto` would do: its `candidates`, the `epochs`, and after which of them (`rungs`) it drops some.

    >>> ant.plan_race(epochs=8)["rungs"]
    [2, 4]
    """
    from antpipe.training.race import check_limits, rungs

    chosen = given(settings, config, preset)
    race, training = chosen.resolve(RaceConfig), chosen.resolve(TrainConfig)
    check_limits(training)
    return {
        "candidates": race.candidates,
        "rungs": rungs(training.epochs, training.eval_every, race.first_rung),
        "epochs": training.epochs,
    }


@takes(TuneConfig, TrainConfig, ModelConfig)
def tune(
    store: Store | str | Path,
    target: str | Sequence[str],
    *,
    out: str | Path,
    start: Run | str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    progress: Progress = silent,
    **settings: Unpack[SearchKeywords],
) -> "Tuned":
    """Search for better settings of a stage on one target, by its figures on the validation split.

    Each trial is a run in a folder of its own in `out`; the first uses the settings as given here. Settings that are
    given are the same in all trials; the others are searched, or only those that `search` names. Equal seeds give equal
    trials. resume: continue a search that was interrupted or is to have more trials. force: start over. start, config,
    preset: as for train. Needs `antpipe[tune]`.

    Raises UsageError for several targets, for a setting that cannot be searched, and if the folder holds something
    else; otherwise as train.

    >>> found = ant.tune("shop", "Toys", search=["lr", "hidden_dropout"], trials=2, epochs=1, width=16, out="search")
    >>> len(found.trials), found.settings.name
    (2, 'best.toml')
    >>> run = ant.train("shop", "scratch", "Toys", config=found.settings, out="runs/tuned")
    """
    from antpipe.training import checkpoint
    from antpipe.training.sharing import tell_shared_users
    from antpipe.tuning.run import run_search
    from antpipe.tuning.search import Search

    chosen, names = given(settings, config, preset), names_of(target, "--target")
    if len(names) > 1:
        raise UsageError(
            f"--target {','.join(names)}: settings are searched for one target", SameCommand({"--target": names[0]})
        )
    tuning = chosen.resolve(TuneConfig)
    request = _request(store, tuning.stage, names, start, chosen, refit=False)
    if request.source is not None:
        tell_shared_users(request.store, checkpoint.describe(request.source).domains, request.domains)
    search = Search(request, Path(out), tuning, chosen.named(ModelConfig, TrainConfig), preset)
    return run_search(search, force=force, resume=resume, progress=progress)


def import_ant_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    heads: int = ModelConfig.heads,
    fusion: float = ModelConfig.fusion,
    transductive: bool = False,
    force: bool = False,
    store: Store | str | Path | None = None,
) -> Run:
    """A checkpoint of the authors' code of ANT becomes a run, to evaluate or to start from.

    path: a torch file, .safetensors, or .npz of its arrays. heads, fusion: what shapes do not tell. transductive: with
    its item ids. store: that of the run, as for Run.open. Raises DataError for a file that is not such a checkpoint.
    """
    from antpipe.interop.ant_checkpoint import import_checkpoint

    done, there = import_checkpoint(
        Path(path), Path(out), heads=heads, fusion=fusion, transductive=transductive, force=force
    )
    place = default_store() if store is None else store_of(store)
    return Run(Path(out), place, done, "fresh" if there else "imported")


def _request(
    store: Store | str | Path,
    stage: str,
    domains: str | Sequence[str],
    start: Start,
    chosen: Given,
    *,
    refit: bool,
    auxiliaries: str | Sequence[str] = (),
) -> "RunRequest":
    """The request of a run, with the settings it inherits from the run to start from."""
    from antpipe.training import checkpoint
    from antpipe.training.request import FORK_MERGE, MERGE, PRETRAIN, RunRequest

    if refit and (stage == AUTO or stage in REPORTED):
        instead = "refit the stage that auto chose" if stage == AUTO else "refit a stage that trains alone"
        raise UsageError(
            f"--refit trains one stage again: it does not go with --stage {stage}; {instead}",
            SameCommand(without=("--refit",)),
        )
    if auxiliaries and stage != FORK_MERGE:
        raise UsageError(f"--auxiliaries is for --stage {FORK_MERGE}", SameCommand(without=("--auxiliaries",)))
    if stage == MERGE:
        return _merge_request(store, domains, start, chosen)
    if start is not None and not isinstance(start, Run | str | Path):
        raise UsageError(f"--stage {stage} starts from one run; --stage {MERGE} takes two")
    source = start.folder if isinstance(start, Run) else Path(start) if start is not None else None
    inherited = checkpoint.describe(source).model_config() if source is not None else None
    request = RunRequest(
        store_of(store),
        tuple(names_of(domains)),
        stage,
        chosen.resolve(ModelConfig, inherited, on_target=stage != PRETRAIN),
        chosen.resolve(TrainConfig),
        source,
        chosen.own_stages(),
        then_refit=refit,
    )
    if stage != FORK_MERGE:
        return request
    from antpipe.training.methods.fork_request import ForkMergeRequest

    others = tuple(names_of(auxiliaries, "--auxiliaries")) if auxiliaries else ()
    return ForkMergeRequest(**vars(request), auxiliaries=others, config=chosen.resolve(ForkMergeConfig))


def _merge_request(
    store: Store | str | Path, domains: str | Sequence[str], start: Start, chosen: Given
) -> "RunRequest":
    """The request of stage merge, whose runs are `A,B` or [A, B]."""
    from antpipe.training.methods.merge_runs import MergeRequest
    from antpipe.training.request import MERGE

    several = str(start).split(",") if isinstance(start, str | Path) else start
    runs = [several] if isinstance(several, Run) else several or ()
    folders = tuple(one.folder if isinstance(one, Run) else Path(one) for one in runs)
    training, steps = chosen.resolve(TrainConfig), chosen.resolve(ForkMergeConfig).merge_steps
    place, targets = store_of(store), tuple(names_of(domains))
    return MergeRequest(place, targets, MERGE, ModelConfig(), training, runs=folders, merge_steps=steps)


def _run_method(
    request: "RunRequest", out: Path, *, force: bool, resume: bool, progress: Progress
) -> "tuple[Checkpoint, bool, dict[str, Any]]":
    """Train or merge a run of a method beyond ANT; return its checkpoint, whether it was there, and what it chose."""
    from antpipe.training.methods.fork_merge import run_fork_merge
    from antpipe.training.methods.fork_request import ForkMergeRequest
    from antpipe.training.methods.merge_runs import MergeRequest, run_merge

    if isinstance(request, MergeRequest):
        if resume:
            raise UsageError("--resume: stage merge leaves nothing to resume", SameCommand(without=("--resume",)))
        return run_merge(request, out, force=force)
    assert isinstance(request, ForkMergeRequest)
    return run_fork_merge(request, out, force=force, resume=resume, progress=progress)
