"""What there is: the store's artefacts, the size of domains, the encoders; and the demonstration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from antpipe.api.data import embedded
from antpipe.api.keywords import DemoKeywords
from antpipe.api.settings import given, names_of, store_of, takes
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.demo import DemoConfig
from antpipe.store.artefacts import State
from antpipe.store.store import Store

if TYPE_CHECKING:
    from antpipe.features.encoders.known import Encoder
    from antpipe.training.listing import RunSummary


def status(
    store: Store | str | Path, domains: str | Sequence[str] | None = None, *, verify: bool = False
) -> dict[str, list[State]]:
    """The state of every artefact, by domain: fresh, stale (why), partial or missing, and the command that updates it.

    domains: default all. verify: read every file and compare its content hash.

    >>> [state.artefact for state in ant.status("shop", ["Toys"])["Toys"] if state.status == "fresh"]
    ['items', 'text', 'price', 'sequences']
    """
    from antpipe.features.status import status as look

    return look(store_of(store), names_of(domains) if domains else None, verify=verify)


def runs(store: Store | str | Path, folder: str | Path | None = None) -> "list[RunSummary]":
    """The finished runs that were trained on domains of the store, with stage, way (stage and method), domains and
    modalities.

    folder: where to look for runs, subfolders included (default: the folder that holds the store). If the data of a run
    have changed since, `changed` names the domains.

    >>> [run.stage for run in ant.runs("shop", "runs") if run.folder == "runs/toys"]
    ['scratch']
    """
    from antpipe.training.listing import runs_of

    place = store_of(store)
    return runs_of(place, place.root.parent if folder is None else Path(folder))


def next_step(store: Store | str | Path, states: Mapping[str, Sequence[State]], found: "Sequence[RunSummary]") -> str:
    """The command that comes next for a store: build features, train, compare or recommend; '' if there is none.

    states, found: what `status` and `runs` returned.

    >>> ant.next_step("shop", ant.status("shop", ["Toys"]), ant.runs("shop", "runs")).split()[:2]
    ['antpipe', 'recommend']
    """
    from antpipe.training.listing import next_step as step

    return step(store_of(store), states, found)


def stats(store: Store | str | Path, domains: str | Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Size, density, coverage and order of each domain, and the users and items that each pair of domains shares.

    domains: default all. Returns `domains`, one row of figures each, and `shared`, one row per pair. Warns about a
    domain whose order cannot be chronological (docs/time-order.md).

    >>> [row.items for row in ant.stats("shop", ["Toys"])["domains"]]
    [12]
    """
    from antpipe.store.figures import statistics

    place = store_of(store)
    return statistics(place, names_of(domains) if domains else place.domains())


def encoders(kind: str | None = None, match: str | None = None, *, everything: bool = False) -> "list[Encoder]":
    """Encoders for embed_text and embed_image, by the names that they take.

    kind: `text` or `image`. match: only names that contain this, among all that open_clip and timm can load;
    everything: all of these.

    >>> "packaged/all-MiniLM-L6-v2" in [encoder.name for encoder in ant.encoders("text")]
    True
    """
    from antpipe.features.encoders.listing import list_encoders

    return list_encoders(embedded(kind, "--kind") if kind else None, match, everything or match is not None)


@takes(DemoConfig)
def demo(
    store: Store | str | Path,
    *,
    force: bool = False,
    config: str | Path | None = None,
    progress: Progress = silent,
    **settings: Unpack[DemoKeywords],
) -> Mapping[str, Any]:
    """The whole pipeline on generated shops: scratch, finetune, relearn and floor compared on the smallest one.

    Returns `target`, `seeds`, the figures of the `arms` as a comparison has them, their `table` as text, the folder of
    the `comparison`, the path of a `report` (None if its libraries are missing), and what may come `next`: three
    commands, each with what it is `about`. Takes about two minutes.
    """
    from antpipe.demonstration import run_demo

    return run_demo(store_of(store), given(settings, config).resolve(DemoConfig), force=force, progress=progress)
