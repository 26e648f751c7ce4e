"""A run, and what can be done with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from antpipe.api.keywords import (
    EvaluateKeywords,
    RecommendKeywords,
    RecommendToFileKeywords,
    SimilarKeywords,
)
from antpipe.api.settings import default_store, given, store_of, takes
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import EngineConfig
from antpipe.settings.serving import RecommendConfig, SimilarConfig
from antpipe.store.store import Store

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from antpipe.serving.batch import Written
    from antpipe.training.checkpoint import Checkpoint

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

    store: where its domains are. status: `trained`, `fresh` (it was there already) or `opened`. decision: for the stage
    auto, which candidates were dropped when, and why the winner won; for fork-merge and merge, what was taken from
    where. refit: the run that was retrained on training and validation targets (see train), if there is one.
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
        refit = cls.open(again.path, place) if again.is_finished() else None
        of_this = refit is not None and (refit.checkpoint.refit or {}).get("of") == done.fingerprint  # not one before
        return cls(path, place, done, refit=refit if of_this else None)

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

        Columns: user_id, item_id (the target), position (items before it), seen (whether it is in the history),
        occurrences (in training), rank_all and rank_unseen (1 is best; null: beyond rank 50, or in rank_unseen a seen
        target). Raises DataError if the run was not evaluated on this split.

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
        history add to the score of some items. A run with a re-ranker then re-scores the best items.

        >>> ids, values = ant.Run.open("runs/toys", "shop").item_vectors("Toys")
        >>> len(ids) == len(values)
        True
        """
        from antpipe.evaluation.vectors import item_vectors

        return Vectors(*item_vectors(self.store, self.folder, domain))

    def user_vectors(self, domain: str) -> Vectors:
        """The vectors expected after the whole history of every user of a domain, to multiply with item vectors.

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
        added = Path(new_items) if new_items is not None else None
        opened = open_with(self.store, self.folder, domain, added, chosen.device)
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

        users: `all`, a file with one id per line, or ids. items_file: instead of users, a file with one history per
        line, for people the store does not know. new_items: as for `recommend`. force: replace the file. An
        interrupted call continues when it is repeated. Raises as `recommend`, and UsageError if the file exists.

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
