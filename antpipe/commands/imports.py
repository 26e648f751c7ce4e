"""Commands that import what other tools made: data sets in their own layouts, vectors, checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import Call, DryRun, Force, Modality, Name, command, flag, imports
from antpipe.settings.model import ModelConfig

Folder = Annotated[Path, flag("--path", "folder of the data set")]


@command(
    imports,
    "recbole",
    takes=api.data.import_recbole,
    examples=["antpipe import recbole --path dataset/ml-100k --domain ml-100k"],
)
def import_recbole(call: Call, path: Folder, domain: Name, dry_run: DryRun = False, force: Force = False) -> None:
    """RecBole's atomic files NAME.inter and NAME.item."""
    result = api.data.import_recbole(call.store, domain, path, dry_run=dry_run, force=force, **call.settings)
    call.show([result], show.artefacts([result]))


@command(
    imports,
    "unisrec",
    takes=api.data.import_unisrec,
    examples=["antpipe import unisrec --path dataset/downstream/Scientific --domain Scientific"],
)
def import_unisrec(call: Call, path: Folder, domain: Name, force: Force = False) -> None:
    """Processed data sets of UniSRec, MISSRec and ANT."""
    results = api.data.import_unisrec(call.store, domain, path, force=force, **call.settings)
    call.show(results, show.artefacts(results))


@command(
    imports,
    "embeddings",
    takes=api.data.import_embeddings,
    examples=["antpipe import embeddings --path vectors.npy --ids ids.txt --domain Shop --modality text"],
)
def import_embeddings(
    call: Call,
    path: Annotated[Path, flag("--path", "file or folder of the vectors")],
    domain: Name,
    modality: Modality,
    force: Force = False,
) -> None:
    """Vectors made elsewhere: .npy, Parquet, .feat1CLS, clip-retrieval."""
    result = api.data.import_embeddings(call.store, domain, path, modality, force=force, **call.settings)
    call.show([result], show.artefacts([result]))


@command(
    imports, "ant-checkpoint", examples=["antpipe import ant-checkpoint pretrained.pth --out runs/authors --heads 2"]
)
def import_ant_checkpoint(
    call: Call,
    path: Annotated[Path, typer.Argument(help="torch file, .safetensors, or .npz of the authors' arrays")],
    out: Annotated[Path, flag("--out", "folder of the run")],
    heads: Annotated[int, flag("--heads", "attention heads; shapes do not show them [default: 2]")] = ModelConfig.heads,
    fusion: Annotated[float, flag("--fusion", "weight of image * text [default: 0.1]")] = ModelConfig.fusion,
    transductive: Annotated[bool, flag("--transductive", "keep the item ids")] = False,
    force: Force = False,
) -> None:
    """A checkpoint of the authors' code, to evaluate or start from."""
    run = api.training.import_ant_checkpoint(
        path, out, heads=heads, fusion=fusion, transductive=transductive, force=force, store=call.store
    )
    call.show(run.checkpoint, show.run(run))
