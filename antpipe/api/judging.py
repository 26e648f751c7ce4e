"""Comparisons: several ways to train, with equal seeds and budget, and the verdict on transfer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from antpipe.api.keywords import ComparisonKeywords
from antpipe.api.runs import Run
from antpipe.api.settings import Given, given, names_of, store_of, takes
from antpipe.errors import UsageError
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.comparison import CompareConfig, ComparedTraining, RaceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.model import ModelConfig
from antpipe.store.store import Store

if TYPE_CHECKING:
    import polars as pl

    from antpipe.comparison.plan import ComparisonRequest
    from antpipe.comparison.verdict import Verdict

    Runs: TypeAlias = Run | str | Path | Sequence[Run | str | Path]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    folder: its runs, results and tables. figures: everything, as in comparison.json.
    """

    folder: Path
    figures: Mapping[str, Any]

    @property
    def targets(self) -> list[str]:
        """The domains that recommenders were trained for."""
        return list(self.figures["targets"])

    @property
    def verdicts(self) -> "dict[str, Verdict]":
        """The verdict on transfer by arm, for a comparison on one target. UsageError if there are several."""
        if len(self.targets) > 1:
            raise UsageError(f"several targets: ask for one, as in verdicts_of({self.targets[0]!r})")
        return self.verdicts_of(self.targets[0])

    def verdicts_of(self, target: str) -> "dict[str, Verdict]":
        """The verdict on transfer by arm: its `word` (POSITIVE, EQUIVALENT, NONE or NEGATIVE; None: too little data)
        and `why`."""
        from antpipe.comparison.verdict import Verdict

        arms = self.figures["targets"][target]["arms"]
        return {name: Verdict(**arm["verdict"]) for name, arm in arms.items() if arm["verdict"]}

    def table(self) -> "pl.DataFrame":
        """Metrics by target, arm and protocol: columns target, arm, protocol, metric, mean, std (null for one seed)."""
        import polars as pl

        rows = [
            (target, arm, protocol, metric, figure["mean"], figure["std"])
            for target, facts in self.figures["targets"].items()
            for arm, found in facts["arms"].items()
            for protocol, metrics in found["protocols"].items()
            for metric, figure in metrics.items()
        ]
        schema = {"target": pl.String, "arm": pl.String, "protocol": pl.String, "metric": pl.String}
        return pl.DataFrame(rows, schema={**schema, "mean": pl.Float64, "std": pl.Float64}, orient="row")

    def paper_table(
        self, form: str = "latex", *, metrics: Sequence[str] = (), arms: Sequence[str] = (), protocol: str = ""
    ) -> str:
        """A table for a paper, with the best of each column in bold: `markdown`, `latex` (for booktabs), or `csv` (one
        row per figure, with differences, intervals and p values).

        metrics: columns per target (none: recall@10 and ndcg@10). arms: rows, in this order (none: all). protocol: none
        for that of the verdict. Raises UsageError, naming what the comparison does not have.

        >>> found = ant.compare("shop", ["Toys"], start="runs/beauty", arms=["scratch", "relearn"], seeds=1, epochs=1,
        ...                     out="cmp")
        >>> found.paper_table("csv", metrics=["recall@10"]).splitlines()[0][:30]
        'target,arm,protocol,metric,mea'
        """
        from antpipe.comparison.paper import METRICS, paper_table

        return paper_table(self.figures, form, metrics or METRICS, arms, protocol)

    def __str__(self) -> str:
        from antpipe.comparison.table import as_text

        return as_text(self.figures)


@takes(CompareConfig, ComparedTraining, ModelConfig, RaceConfig, ForkMergeConfig)
def compare(
    store: Store | str | Path,
    targets: str | Sequence[str],
    *,
    out: str | Path,
    start: "Runs" = (),
    sources: str | Sequence[str] = (),
    runs: Mapping[str, Sequence[str | Path]] | None = None,
    force: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    progress: Progress = silent,
    **settings: Unpack[ComparisonKeywords],
) -> Comparison:
    """Train several arms with equal seeds and budget on each target, and test whether transfer helped.

    start: pre-trained runs to start from; sources: domains to pre-train on here. runs: finished runs by the name of
    their arm, one per seed. force: train everything again; otherwise only what is missing is trained. config, preset:
    as for train. Unless `modalities` is given, arms read the modalities that all of them can read. The statistics are
    explained in docs/verdict.md.

    Raises UsageError or DataError, before anything is trained, if arms, runs, folders and targets do not go together;
    Interrupted after Ctrl-C, and the same call continues.

    >>> found = ant.compare("shop", ["Toys"], start="runs/beauty", arms=["scratch", "relearn"], seeds=1, epochs=1,
    ...                     out="cmp")
    >>> list(found.verdicts)
    ['relearn']
    """
    from antpipe.comparison.run import run_comparison
    from antpipe.training import checkpoint
    from antpipe.training.sharing import tell_shared_users

    request = _request(store, targets, out, start, sources, runs, given(settings, config, preset))
    begun = [name for run in request.origins for name in checkpoint.describe(run).domains]
    tell_shared_users(request.store, [*request.sources, *begun], request.targets)
    return Comparison(request.out, run_comparison(request, force=force, progress=progress))


@takes(CompareConfig, ComparedTraining, ModelConfig, RaceConfig, ForkMergeConfig)
def plan_comparison(
    store: Store | str | Path,
    targets: str | Sequence[str],
    *,
    out: str | Path,
    start: "Runs" = (),
    sources: str | Sequence[str] = (),
    runs: Mapping[str, Sequence[str | Path]] | None = None,
    force: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    **settings: Unpack[ComparisonKeywords],
) -> list[dict[str, Any]]:
    """What `compare` would train: one row per run, with `target`, `arm`, `seed`, `folder` and `state`.

    Takes what compare takes, and raises what it would.

    >>> rows = ant.plan_comparison("shop", ["Toys"], start="runs/beauty", arms=["scratch", "relearn"], seeds=1,
    ...                            out="another")
    >>> [(row["arm"], row["state"]) for row in rows]
    [('scratch', 'missing'), ('relearn', 'missing')]
    """
    from antpipe.comparison.run import what_would_be_done

    request = _request(store, targets, out, start, sources, runs, given(settings, config, preset))
    return what_would_be_done(request, force=force)


def _request(
    store: Store | str | Path,
    targets: str | Sequence[str],
    out: str | Path,
    start: "Runs",
    sources: str | Sequence[str],
    runs: Mapping[str, Sequence[str | Path]] | None,
    chosen: Given,
) -> "ComparisonRequest":
    """The request of a comparison. Model settings are inherited from the first run to start from, or else given."""
    from antpipe.comparison.plan import ComparisonRequest, inherited_model

    several = [start] if isinstance(start, Run | str | Path) else start
    folders = [one.folder if isinstance(one, Run) else Path(one) for one in several]
    handed_in = {name: [Path(one) for one in some] for name, some in (runs or {}).items()}
    inherited, training = inherited_model(folders, handed_in), chosen.resolve(ComparedTraining)
    return ComparisonRequest(
        store=store_of(store),
        out=Path(out),
        targets=tuple(names_of(targets)),
        config=chosen.resolve(CompareConfig),
        model=chosen.resolve(ModelConfig, inherited),
        source_model=chosen.resolve(ModelConfig, inherited, on_target=False),
        training=training.plain(),
        race=chosen.resolve(RaceConfig),
        fork_merge=chosen.resolve(ForkMergeConfig),
        origins=tuple(folders),
        sources=tuple(names_of(sources, "--sources")) if sources else (),
        given=handed_in,
        own_stages=chosen.own_stages(),
        common=training.is_common(),
    )
