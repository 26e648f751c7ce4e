"""Training runs, and what a trained run can do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from antpipe.api.keywords import (
    EvaluateKeywords,
    RecommendKeywords,
    RecommendToFileKeywords,
    RunKeywords,
    SimilarKeywords,
)
from antpipe.api.settings import Given, default_store, given, names_of, store_of, takes
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.comparison import RaceConfig
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import EngineConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.serving import RecommendConfig, SimilarConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training.groups import GroupRow, group_table

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from antpipe.serving.batch import Written
    from antpipe.training.checkpoint import Checkpoint
    from antpipe.training.request import RunRequest

AUTO = "auto"  # the stage that chooses a stage on validation
RECOMMENDED = {"user_id": str, "history": int, "rank": int, "item_id": str, "title": str, "score": float}


class Vectors(NamedTuple):
    """Vectors and whose they are: `ids` (N,) original ids, `values` (N, D) float32."""

    ids: list[str]
    values: "NDArray[np.float32]"


@dataclass(frozen=True)
class Evaluation:
    """What a run is worth on one domain.

    figures: everything, as `antpipe evaluate --json` prints it.
    """

    figures: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, Mapping[str, float]]:
        """Recall@k, NDCG@k and MRR@k by protocol: `metrics["all"]["recall@10"]`."""
        metrics: Mapping[str, Mapping[str, float]] = self.figures["protocols"]
        return metrics

    @property
    def slices(self) -> Mapping[str, Any]:
        """The same for parts of the split, by group and slice: `slices["item"]["cold"]["protocols"]`."""
        slices: Mapping[str, Any] = self.figures["slices"]
        return slices

    @property
    def beyond(self) -> Mapping[str, Mapping[str, float]]:
        """With `beyond_accuracy`, what the lists are like, by protocol: `beyond["all"]["coverage@10"]`; else empty."""
        beyond: Mapping[str, Mapping[str, float]] = self.figures.get("beyond", {}).get("protocols", {})
        return beyond


@dataclass(frozen=True)
class Run:
    """A trained run in its folder. Made by `train`, opened again by `Run.open`.

    store: where its domains are. status: `trained`, `fresh` (it was there already) or `opened`. decision: of the stage
    auto, which candidates were dropped when, and why the winner won. refit: the run that was trained again on training
    and validation targets (see train), if there is one.
    """

    folder: Path
    store: Store
    checkpoint: "Checkpoint"
    status: str = "opened"
    decision: Mapping[str, Any] = field(default_factory=dict)
    refit: "Run | None" = None

    @classmethod
    def open(cls, folder: str | Path, store: Store | str | Path | None = None) -> "Run":
        """A run that was trained before.

        store: default $ANTPIPE_STORE, else ./antpipe-store. Raises DataError if the folder holds no finished run.

        >>> ant.Run.open("runs/toys", "shop").stage
        'scratch'
        """
        from antpipe.training import checkpoint
        from antpipe.training.folder import RunFolder

        path = Path(folder)
        place = default_store() if store is None else store_of(store)
        done, again = checkpoint.describe(path), RunFolder(RunFolder(path).refit)
        return cls(path, place, done, refit=cls.open(again.path, place) if again.is_finished() else None)

    @property
    def stage(self) -> str:
        """The stage that trained it, such as `relearn`; of auto, the one that won."""
        return self.checkpoint.stage

    @property
    def metrics(self) -> Mapping[str, float]:
        """Validation metrics of the best epoch, protocol `all`."""
        return self.checkpoint.metrics

    @property
    def cost(self) -> Mapping[str, float]:
        """Epochs, steps and `seconds` of training, positions per second, and peak memory in MB."""
        from antpipe.training.folder import RunFolder

        return RunFolder(self.folder).read_cost()

    @takes(EvaluateConfig)
    def evaluate(
        self,
        domain: str,
        *,
        per_user: str | Path | None = None,
        config: str | Path | None = None,
        **settings: Unpack[EvaluateKeywords],
    ) -> Evaluation:
        """Rank the whole catalogue of a domain for every position of a split, under both protocols.

        Writes the figures and the rank of every position into the run's folder. per_user: a Parquet file for the rank
        and the metrics of each position, with original ids (docs/files.md). Raises DataError if the run cannot read the
        domain, or the domain changed since the run was trained on it.

        >>> run = ant.Run.open("runs/toys", "shop")
        >>> sorted(run.evaluate("Toys").metrics)
        ['all', 'unseen']
        """
        from antpipe.evaluation.evaluate import evaluate_run

        chosen = given(settings, config).resolve(EvaluateConfig)
        if chosen.beyond_accuracy and chosen.index != "exact":
            raise UsageError(
                f"--beyond-accuracy is about exact lists: it does not go with --index {chosen.index}",
                SameCommand({"--index": "exact"}),
            )
        figures = evaluate_run(self.store, self.folder, domain, chosen)
        if chosen.beyond_accuracy:
            from antpipe.evaluation.beyond import beyond_accuracy

            figures["beyond"] = beyond_accuracy(self.store, self.folder, domain, chosen.split)
        if per_user is not None:
            from antpipe.evaluation.ranks import read_ranks, write_per_user

            write_per_user(read_ranks(self.store, self.folder, domain, chosen.split, chosen.index), Path(per_user))
        return Evaluation(figures)

    def ranks(self, domain: str, split: str = "test") -> "pl.DataFrame":
        """The rank of each position's target, as `evaluate` wrote it, with original ids.

        Columns: user_id, position (items before the target), item_id (the target), seen (whether it was in the
        history), rank_all and rank_unseen (1 is best; null: a miss by definition). Raises DataError if the run was not
        evaluated on this split.

        >>> run = ant.Run.open("runs/toys", "shop")
        >>> found = run.evaluate("Toys").metrics["all"]["recall@10"]
        >>> ((run.ranks("Toys")["rank_all"] <= 10).mean() - found) < 1e-9
        True
        """
        from antpipe.evaluation.ranks import read_ranks

        return read_ranks(self.store, self.folder, domain, split)

    def item_vectors(self, domain: str) -> Vectors:
        """The vectors of a domain's items: the run scores an item by its product with a user's.

        They have length 1, unless the run has a floor: then they hold its texts and novelty too, and transitions and
        history add to the score of some items.

        >>> ids, values = ant.Run.open("runs/toys", "shop").item_vectors("Toys")
        >>> len(ids) == len(values)
        True
        """
        from antpipe.evaluation.vectors import item_vectors

        return Vectors(*item_vectors(self.store, self.folder, domain))

    def user_vectors(self, domain: str) -> Vectors:
        """What the run expects next of every user of a domain, after her whole history, to multiply with item vectors.

        >>> ids, values = ant.Run.open("runs/toys", "shop").user_vectors("Toys")
        >>> ids[:2]
        ['u00', 'u01']
        """
        from antpipe.evaluation.vectors import user_vectors

        return Vectors(*user_vectors(self.store, self.folder, domain))

    @takes(RecommendConfig)
    def recommend(
        self,
        domain: str,
        *,
        users: str | Sequence[str] = (),
        histories: Sequence[Sequence[str]] = (),
        new_items: str | Path | None = None,
        config: str | Path | None = None,
        **settings: Unpack[RecommendKeywords],
    ) -> "pl.DataFrame":
        """The next items for users of a domain, or after histories of item ids (oldest first).

        Returns one row per recommendation: user_id (null for a history), history (its number in the call: users, then
        histories), rank, item_id, title, score; with `explain` also `why`, a structure (docs/recommend.md). There are
        fewer than k rows per history if no more items are left. new_items: a file of products that the store does not
        have (CSV, Parquet or JSON: id, title, description, price, picture), which are described on the fly and ranked
        among the others. Raises DataError for an unknown user or item (unless `unknown` is `popularity`), if `where`,
        `exclude` and `only` leave nothing, and for a new item that the domain has already or that has nothing the run
        reads.

        >>> rows = ant.Run.open("runs/toys", "shop").recommend("Toys", users=["u00", "u01"], k=3)
        >>> rows["user_id"].to_list(), rows["rank"].to_list()
        (['u00', 'u00', 'u00', 'u01', 'u01', 'u01'], [1, 2, 3, 1, 2, 3])
        """
        import polars as pl

        from antpipe.serving.prepare import open_with
        from antpipe.serving.recommend import (
            WHY,
            history_of,
            log_shortfall,
            offer_for,
            recommend_after,
            user_histories,
            wishes_of,
        )

        chosen = given(settings, config).resolve(RecommendConfig)
        who = [users] if isinstance(users, str) else list(users)
        if not who and not histories:
            raise UsageError("name users or histories to recommend for")
        opened = open_with(self.store, self.folder, domain, Path(new_items) if new_items is not None else None)
        rows = [*user_histories(opened, who, chosen.unknown)]
        rows += [history_of(opened, items, chosen.unknown) for items in histories]
        found = recommend_after(opened, rows, offer=offer_for(opened, chosen), wishes=wishes_of(chosen))
        popular, fewer = sum(not len(one) for one in rows), sum(len(best) < chosen.k for best in found)
        log_shortfall(len(rows), popular, fewer, chosen.k)
        owners = [*who, *(None for _ in histories)]
        return pl.DataFrame(
            [
                {"user_id": owner, "history": number, **row}
                for number, (owner, best) in enumerate(zip(owners, found, strict=True))
                for row in best
            ],
            schema=RECOMMENDED | ({"why": WHY} if chosen.explain else {}),
        )

    @takes(RecommendConfig, EngineConfig)
    def recommend_to_file(
        self,
        domain: str,
        out: str | Path,
        *,
        users: str | Path | Sequence[str] | None = None,
        items_file: str | Path | None = None,
        new_items: str | Path | None = None,
        force: bool = False,
        config: str | Path | None = None,
        progress: Progress = silent,
        **settings: Unpack[RecommendToFileKeywords],
    ) -> "Written":
        """Recommendations for many users or histories, in a .parquet, .csv or .jsonl file (docs/recommend.md).

        users: `all`, a file with one id per line, or ids. items_file: in place of users, a file with one history per
        line, for people the store does not know. new_items: as for `recommend`. force: replace the file. An
        interrupted call continues when it is repeated. Raises as `recommend`, and UsageError if the file is there.

        >>> run = ant.Run.open("runs/toys", "shop")
        >>> run.recommend_to_file("Toys", "recs.parquet", users="all", k=3, force=True).rows
        60
        """
        from antpipe.serving.batch import recommend_to_file, require_writable
        from antpipe.serving.on_ray import engine_for
        from antpipe.serving.prepare import BatchRequest, prepare

        given_settings, path = given(settings, config), Path(out)
        chosen, files = given_settings.resolve(RecommendConfig), [items_file, new_items]
        require_writable(path, force=force)
        request = BatchRequest(
            self.store, self.folder, domain, chosen, users, *(Path(one) if one is not None else None for one in files)
        )
        found = prepare(request)
        engine = engine_for(given_settings.resolve(EngineConfig), request, found)
        return recommend_to_file(
            *(found.opened, found.audience, found.offer, found.wishes, path),
            force=force,
            progress=progress,
            engine=engine,
        )

    @takes(SimilarConfig)
    def similar(
        self, domain: str, item: str, *, config: str | Path | None = None, **settings: Unpack[SimilarKeywords]
    ) -> "pl.DataFrame":
        """The items of a domain that are most like one item (original id), best first, by cosine.

        Returns columns rank, item_id, title, score. Raises DataError for an unknown item and one that lacks what is
        compared, UsageError if the run does not read it.

        >>> ant.Run.open("runs/toys", "shop").similar("Toys", "Toys03", by="text", k=2)["rank"].to_list()
        [1, 2]
        """
        import polars as pl

        from antpipe.evaluation.vectors import open_for
        from antpipe.serving.offer import offer_of
        from antpipe.serving.similar import similar_items

        chosen = given(settings, config).resolve(SimilarConfig)
        opened = open_for(self.store, self.folder, domain)
        rows = similar_items(opened, item, chosen.by, chosen.k, offer_of(opened, chosen.where))
        return pl.DataFrame(rows, schema={name: RECOMMENDED[name] for name in ("rank", "item_id", "title", "score")})


@takes(TrainConfig, ModelConfig, RaceConfig)
def train(
    store: Store | str | Path,
    stage: str,
    domains: str | Sequence[str],
    *,
    out: str | Path,
    start: Run | str | Path | None = None,
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
    them on validation; or a stage that `config`, a TOML file, defines. start: the run to start from, whose model
    settings are inherited. refit: afterwards train once more, from the same first values, on training and validation
    targets together, for as many epochs as were best; the result is a run of its own in OUT/refit, and `refit` of the
    run returned (if no epoch beat the floor that the run began with, it is that floor). resume: continue an interrupted
    run. force: start over, whatever the folder holds. preset: `ant` or `strong`, in place of defaults.

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
    request = _request(store, stage, domains, start, chosen, refit=refit)
    if request.source is not None:
        tell_shared_users(request.store, checkpoint.describe(request.source).domains, request.domains)
    if stage == AUTO:
        from antpipe.training.race import run_auto

        race = chosen.resolve(RaceConfig)
        done, there, decision = run_auto(request, out, race=race, force=force, resume=resume, progress=progress)
        return Run(out, request.store, done, "fresh" if there else "trained", decision)
    from antpipe.training.folder import RunFolder
    from antpipe.training.run import run_and_refit, run_stage

    again = None
    if refit:
        (done, there), (last, last_there) = run_and_refit(request, out, force=force, resume=resume, progress=progress)
        again = Run(RunFolder(out).refit, request.store, last, "fresh" if last_there else "trained")
    else:
        done, there = run_stage(request, out, force=force, resume=resume, progress=progress)
    return Run(out, request.store, done, "fresh" if there else "trained", refit=again)


@takes(TrainConfig, ModelConfig, RaceConfig)
def plan_training(
    store: Store | str | Path,
    stage: str,
    domains: str | Sequence[str],
    *,
    start: Run | str | Path | None = None,
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
    plan = _request(store, stage, domains, start, given(settings, config, preset), refit=refit).plan()
    return group_table(plan.actions, plan.described.build())


@takes(TrainConfig, ModelConfig, RaceConfig)
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

    path: a torch file, .safetensors, or .npz of its arrays. heads, fusion: what no shape tells. transductive: with its
    item ids. store: of the run, as for Run.open. Raises DataError for a file that is not such a checkpoint.
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
    start: Run | str | Path | None,
    chosen: Given,
    *,
    refit: bool,
) -> "RunRequest":
    """The request of a run, with the settings it inherits from the run to start from."""
    from antpipe.training import checkpoint
    from antpipe.training.request import PRETRAIN, RunRequest

    if refit and stage == AUTO:
        raise UsageError(
            "--refit trains one stage again: it does not go with --stage auto; refit the stage that auto chose",
            SameCommand(without=("--refit",)),
        )
    source = start.folder if isinstance(start, Run) else Path(start) if start is not None else None
    inherited = checkpoint.describe(source).model_config() if source is not None else None
    return RunRequest(
        store_of(store),
        tuple(names_of(domains)),
        stage,
        chosen.resolve(ModelConfig, inherited, on_target=stage != PRETRAIN),
        chosen.resolve(TrainConfig),
        source,
        chosen.own_stages(),
        then_refit=refit,
    )
