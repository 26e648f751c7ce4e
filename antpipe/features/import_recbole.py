"""`import recbole`: RecBole's atomic files NAME.inter and NAME.item of a folder, read as `ingest table` reads tables.

The format (recbole.io/docs/user_guide/data/atomic_files.html): tab-separated, a header of NAME:TYPE, types token,
token_seq, float and float_seq; nothing is quoted.
"""

from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest_table import TableSource
from antpipe.store.next_command import spell

SUFFIXES = (".inter", ".inter.gz")
PARTS = (".train", ".valid", ".test")


def find_recbole(path: Path, domain: str, store: Path, keep_without_metadata: bool) -> TableSource:
    """The atomic files of a folder, for `ingest_table`. domain, store: for the next command.

    Raises DataError unless the folder holds exactly one data set, or if it has no items (unless they may be missing).
    """
    if not path.is_dir():
        raise DataError(f"--path {path}: no such folder")
    names = {file.name.removesuffix(".gz").removesuffix(".inter") for file in path.iterdir() if _is_inter(file)}
    split = sorted({name.removesuffix(part) for name in names for part in PARTS if name.endswith(part)})
    whole = sorted(name for name in names if not name.endswith(PARTS))
    if not whole and split:
        raise DataError(
            f"{path}: {split[0]} is split into .train, .valid and .test files, as UniSRec does",
            _command("unisrec", path, domain, store),
        )
    if len(whole) != 1:
        raise DataError(f"{path}: expected one file NAME.inter; there: {', '.join(whole) or 'none'}")
    items = _one(path, whole[0], ".item")
    if items is None and not keep_without_metadata:
        raise DataError(
            f"{path}: no file {whole[0]}.item, so no item has a text, price or picture; to keep them all, add "
            "--keep-without-metadata",
            _command("recbole", path, domain, store, "--keep-without-metadata"),
        )
    return TableSource(_one(path, whole[0], ".inter"), items, "import recbole", ("--path", str(path)), cold=0)


def _command(layout: str, path: Path, domain: str, store: Path, *more: str) -> str:
    return spell(f"import {layout}", domains=[domain], store=store, flags=["--path", path, *more])


def _is_inter(file: Path) -> bool:
    return file.name.endswith(SUFFIXES) and file.is_file()


def _one(path: Path, name: str, suffix: str) -> Path | None:
    files = [path / f"{name}{suffix}", path / f"{name}{suffix}.gz"]
    return next((file for file in files if file.is_file()), None)
