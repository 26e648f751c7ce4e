"""What other programs can use of a run or a domain, and runs on a model hub."""

from collections.abc import Sequence
from pathlib import Path

from antpipe.api.runs import Run
from antpipe.api.settings import names_of, store_of
from antpipe.errors import UsageError
from antpipe.export.folder import Exported
from antpipe.store.store import Store

LAYOUTS = ("unisrec", "ant")
UNKNOWN = "unknown"  # the hub's word for a licence that nobody stated


def export_vectors(run: Run, domain: str, *, out: str | Path, force: bool = False) -> Exported:
    """The vectors of a domain's items and users as .npy with their ids, and as Parquet.

    Users are those with interactions; their vectors stand for their whole histories. A run with a floor has score terms
    that no vector holds: export.json names them with their weights. force: replace an earlier export. Raises DataError
    if the run cannot read the domain, or `out` exists.

    >>> run = ant.Run.open("runs/toys", "shop")
    >>> ant.export_vectors(run, "Toys", out="exports/vectors").figures
    {'items': 12, 'users': 20, 'width': 16}
    """
    from antpipe.export.vectors import export_vectors

    return export_vectors(run.store, run.folder, domain, Path(out), force=force)


def export_faiss(run: Run, domain: str, *, out: str | Path, force: bool = False) -> Exported:
    """A flat and an HNSW index of FAISS over a domain's items, with the ids of their rows, and users' vectors.

    HNSW has the sizes of `evaluate --index hnsw`; export.json says how much of the exact search it finds. Score terms
    that no vector holds, and errors: as in export_vectors.

    >>> run = ant.Run.open("runs/toys", "shop")
    >>> ant.export_faiss(run, "Toys", out="exports/faiss").figures["hnsw_recall@10"]
    1.0
    """
    from antpipe.export.search_index import export_faiss

    return export_faiss(run.store, run.folder, domain, Path(out), force=force)


def export_onnx(run: Run, domain: str, *, out: str | Path, force: bool = False) -> Exported:
    """The item tower and the sequence encoder as ONNX, and an example that runs them with onnxruntime.

    domain: its items and histories serve to check that onnxruntime computes what torch does, within 1e-4. Needs
    `antpipe[export]`. Raises DataError if it is not installed, the run cannot read the domain, or `out` exists, and
    AntpipeError if the check fails.
    """
    from antpipe.export.networks import export_onnx

    return export_onnx(run.store, run.folder, domain, Path(out), force=force)


def export_recbole(
    store: Store | str | Path, domain: str, *, out: str | Path, run: Run | None = None, force: bool = False
) -> Exported:
    """RecBole's atomic files of a domain, whole and with its split, and a configuration that reads them.

    run: also export its item vectors, as features that RecBole loads. Raises DataError if the domain has no sequences,
    an id has a blank, or `out` exists.

    >>> ant.export_recbole("shop", "Toys", out="exports/recbole").figures["test"]
    20
    """
    from antpipe.export.recbole import export_recbole

    folder = run.folder if run is not None else None
    return export_recbole(store_of(store), domain, Path(out), run=folder, force=force)


def export_unisrec(
    store: Store | str | Path,
    domain: str,
    *,
    out: str | Path,
    layout: str = LAYOUTS[0],
    run: Run | None = None,
    force: bool = False,
) -> Exported:
    """A domain in the layout of UniSRec, MISSRec and ANT, with its split and features; `import_unisrec` reads it back.

    layout: whose names the feature files have, `unisrec` (and MISSRec) or `ant`. run: export features in the form that
    it reads; default: as the encoders made them. Raises DataError if the domain has no sequences, an id has a line
    break, or `out` exists.

    >>> ant.export_unisrec("shop", "Toys", out="exports/unisrec").figures["valid"]
    20
    """
    from antpipe.export.unisrec import export_unisrec

    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: choose from {', '.join(LAYOUTS)}")
    folder = run.folder if run is not None else None
    return export_unisrec(store_of(store), domain, Path(out), layout=layout, run=folder, force=force)


def export_huggingface(
    run: Run,
    domains: str | Sequence[str] | None = None,
    *,
    out: str | Path,
    name: str | None = None,
    license: str = UNKNOWN,
    comparison: str | Path | None = None,
    force: bool = False,
) -> Exported:
    """A run as a folder for a model hub: safetensors, configuration, evaluations and a model card made from them.

    The folder is a run that Run.open takes. domains: whose evaluations the card shows (default: all there are). name:
    the title of the card (default: that of the folder). license: as the hub spells it. comparison: a folder of
    `compare` with the verdict on this run. Raises DataError if the run was not evaluated on one of the domains, the
    comparison does not have it, or `out` exists.

    >>> run = ant.Run.open("runs/toys", "shop")
    >>> found = ant.export_huggingface(run, "Toys", out="exports/toys-model", license="mit")
    >>> ant.Run.open(found.folder, "shop").recommend("Toys", users="u00", k=1)["rank"].to_list()
    [1]
    """
    from antpipe.export.model_folder import export_huggingface

    return export_huggingface(
        run.store,
        run.folder,
        Path(out),
        domains=names_of(domains) if domains is not None else None,
        name=name,
        licence=license,
        comparison=Path(comparison) if comparison is not None else None,
        force=force,
    )


def hub_push(folder: str | Path, repository: str, *, public: bool = False) -> dict[str, str]:
    """Upload a folder of export_huggingface to OWNER/NAME of a model hub; a new repository is private unless `public`.

    The hub is $HF_ENDPOINT or huggingface.co, with the token of `hf auth login`. Returns repository, url and commit.
    Raises DataError for any other folder, AntpipeError if the hub refuses.
    """
    from antpipe.export.hub import push

    return push(Path(folder), repository, public=public)


def hub_pull(
    repository: str,
    *,
    out: str | Path,
    revision: str | None = None,
    force: bool = False,
    store: Store | str | Path | None = None,
) -> Run:
    """Download a run that hub_push uploaded, and open it. revision: a branch, tag or commit. store: as for Run.open.

    Raises DataError if the repository holds no run or `out` exists, IntegrityError if its weights are damaged,
    AntpipeError if the hub refuses.
    """
    from antpipe.export.hub import pull

    return Run.open(pull(repository, Path(out), revision=revision, force=force).folder, store)
