"""Commands that export a run or a domain to other programs."""

from pathlib import Path
from typing import Annotated

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import (
    RUN,
    Call,
    OneDomain,
    RunFolder,
    command,
    exports,
    flag,
    hub,
)

Out = Annotated[Path, flag("--out", "folder of the export")]
Replace = Annotated[bool, flag("--force", "replace an earlier export", RUN)]
MaybeRun = Annotated[Path | None, flag("--run", "folder of a trained run")]
Repository = Annotated[str, flag("--repo", "repository of the hub, OWNER/NAME")]


@command(exports, "vectors", examples=["antpipe export vectors --run runs/shop --domains Shop --out vectors"])
def export_vectors(call: Call, run: RunFolder, domains: OneDomain, out: Out, force: Replace = False) -> None:
    """Item and user vectors: .npy with ids, and Parquet."""
    found = api.exports.export_vectors(api.runs.Run.open(run, call.store), domains, out=out, force=force)
    call.show(show.export_data(found), show.export(found))


@command(exports, "faiss", examples=["antpipe export faiss --run runs/shop --domains Shop --out index"])
def export_faiss(call: Call, run: RunFolder, domains: OneDomain, out: Out, force: Replace = False) -> None:
    """FAISS indices of the items, flat and HNSW, with their ids."""
    found = api.exports.export_faiss(api.runs.Run.open(run, call.store), domains, out=out, force=force)
    call.show(show.export_data(found), show.export(found))


@command(exports, "onnx", examples=["antpipe export onnx --run runs/shop --domains Shop --out networks"])
def export_onnx(call: Call, run: RunFolder, domains: OneDomain, out: Out, force: Replace = False) -> None:
    """Item tower and sequence encoder as ONNX, checked by onnxruntime."""
    found = api.exports.export_onnx(api.runs.Run.open(run, call.store), domains, out=out, force=force)
    call.show(show.export_data(found), show.export(found))


@command(
    exports,
    "recbole",
    examples=[
        "antpipe export recbole --domains Shop --out dataset/Shop",
        "antpipe export recbole --run runs/shop --domains Shop --out dataset/Shop",
    ],
)
def export_recbole(call: Call, domains: OneDomain, out: Out, run: MaybeRun = None, force: Replace = False) -> None:
    """RecBole's atomic files with our split; --run adds item vectors."""
    opened = api.runs.Run.open(run, call.store) if run else None
    found = api.exports.export_recbole(call.store, domains, out=out, run=opened, force=force)
    call.show(show.export_data(found), show.export(found))


@command(exports, "unisrec", examples=["antpipe export unisrec --domains Shop --out downstream/Shop"])
def export_unisrec(
    call: Call,
    domains: OneDomain,
    out: Out,
    layout: Annotated[
        str, flag("--layout", "names of feature files: unisrec (MISSRec too) or ant [default: unisrec]")
    ] = api.exports.LAYOUTS[0],
    run: MaybeRun = None,
    force: Replace = False,
) -> None:
    """Data sets of UniSRec, MISSRec and ANT, with split and features."""
    opened = api.runs.Run.open(run, call.store) if run else None
    found = api.exports.export_unisrec(call.store, domains, out=out, layout=layout, run=opened, force=force)
    call.show(show.export_data(found), show.export(found))


@command(
    exports,
    "huggingface",
    examples=["antpipe export huggingface --run runs/shop --domains Shop --license mit --out shop-model"],
)
def export_huggingface(
    call: Call,
    run: RunFolder,
    out: Out,
    domains: Annotated[
        str | None, flag("--domains", "domains whose evaluations the card shows [default: all there are]")
    ] = None,
    name: Annotated[str | None, flag("--name", "title of the card [default: that of the run's folder]")] = None,
    license: Annotated[
        str, flag("--license", "licence of the weights, as the hub spells it [default: unknown]")
    ] = api.exports.UNKNOWN,
    comparison: Annotated[Path | None, flag("--comparison", "folder of `compare` with the verdict on this run")] = None,
    force: Replace = False,
) -> None:
    """A folder for a model hub: safetensors, config, model card."""
    found = api.exports.export_huggingface(
        api.runs.Run.open(run, call.store),
        domains,
        out=out,
        name=name,
        license=license,
        comparison=comparison,
        force=force,
    )
    call.show(show.export_data(found), show.export(found))


@command(hub, "push", examples=["antpipe hub push --path shop-model --repo me/shop-model"])
def hub_push(
    call: Call,
    path: Annotated[Path, flag("--path", "folder of `export huggingface`")],
    repo: Repository,
    public: Annotated[bool, flag("--public", "a new repository is public, not private")] = False,
) -> None:
    """Upload a run's folder to a model hub."""
    found = api.exports.hub_push(path, repo, public=public)
    call.show(found, f"{path}  pushed  {show.inline(found)}")


@command(hub, "pull", examples=["antpipe hub pull --repo me/shop-model --out runs/pulled"])
def hub_pull(
    call: Call,
    repo: Repository,
    out: Annotated[Path, flag("--out", "folder of the run")],
    revision: Annotated[str | None, flag("--revision", "branch, tag or commit [default: main]")] = None,
    force: Replace = False,
) -> None:
    """Download a run from a model hub."""
    run = api.exports.hub_pull(repo, out=out, revision=revision, force=force, store=call.store)
    call.show(run.checkpoint, show.run(run))
