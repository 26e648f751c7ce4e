"""Import of RecBole's atomic files: NAME.inter and NAME.item of a folder, read as `ingest table` reads tables.

The format (recbole.io/docs/user_guide/data/atomic_files.html): tab-separated, a header of NAME:TYPE, types token,
token_seq, float and float_seq; nothing is quoted.
"""

import shlex
from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest_table import Source

SUFFIXES = (".inter", ".inter.gz")
PARTS = (".train", ".valid", ".test")


def find_recbole(path: Path, domain: str, store: Path, keep_without_metadata: bool) -> Source:
    """The atomic files of a folder. DataError where there is not exactly one data set in it, or none with items.

    domain, store: what is asked for, for the next command."""
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
        raise DataError(f"{path}: one file NAME.inter is expected; there: {', '.join(whole) or 'none'}")
    items = _one(path, whole[0], ".item")
    if items is None and not keep_without_metadata:
        raise DataError(
            f"{path}: no file {whole[0]}.item, so no item has a text, price or picture; keep them all the same?",
            f"{_command('recbole', path, domain, store)} --keep-without-metadata",
        )
    return Source(_one(path, whole[0], ".inter"), items, "import recbole", ("--path", str(path)))


def _command(layout: str, path: Path, domain: str, store: Path) -> str:
    words = ["antpipe", "import", layout, "--path", str(path), "--domains", domain, "--store", str(store)]
    return shlex.join(words)


def _is_inter(file: Path) -> bool:
    return file.name.endswith(SUFFIXES) and file.is_file()


def _one(path: Path, name: str, suffix: str) -> Path | None:
    files = [path / f"{name}{suffix}", path / f"{name}{suffix}.gz"]
    return next((file for file in files if file.is_file()), None)
