"""Advice if rows of a table cannot be read: the cause, if it is in the settings or in the file as a whole."""

from collections.abc import Mapping
from pathlib import Path

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.delimited import NOT_A_ROW
from antpipe.features.ingest.table.quotes import ESCAPED, doubling
from antpipe.features.ingest.table.records import NOT_AN_OBJECT, NOT_JSON
from antpipe.settings.ingest import TableConfig
from antpipe.store.looking import first_lines

MOST = 0.5  # share of a file's rows from which one reason is the cause, and tolerating the rows does not help


def no_row(path: Path, rejects: Rejects, malformed: int, dropped: Mapping[str, int], config: TableConfig) -> DataError:
    """The error for a file without a usable row. dropped: rows that --where and --drop-users left out."""
    if malformed:
        kind, _ = rejects.main_kind(path)
        what = f"{rejects.example(path)}; no row of {malformed + sum(dropped.values())} is usable"
        return _cure(kind, path, what, config) or DataError(
            f"{what}; name the right columns with --map ROLE=COLUMN", first_lines(path)
        )
    if sum(dropped.values()):
        how = f"--where {config.where!r}" if dropped.get("where_dropped") else "--drop-users"
        better = {"where": None} if dropped.get("where_dropped") else {"drop_users": ()}
        return SettingsError(f"{path}: {how} leaves none of its {sum(dropped.values())} rows", better)
    return DataError(f"{path}: it has a header, but no row", first_lines(path))


def require_few(rejects: Rejects, lines: Mapping[Path, int], config: TableConfig) -> None:
    """Raises DataError if there are too many malformed rows: with the cause if most of a file have the same.

    lines: rows of each file.
    """
    if rejects.total <= rejects.limit:
        return
    for path, count in lines.items():
        kind, times = rejects.main_kind(path)
        if times >= MOST * max(count, 1):
            what = f"{rejects.example(path)}; {times} of {count} rows are like this"
            if cure := _cure(kind, path, what, config):
                raise cure
    rejects.require_few(lines)


def _cure(kind: str, path: Path, what: str, config: TableConfig) -> DataError | None:
    """The error for a cause that is known, else None. kind: as of rejects.kind_of. what: happened."""
    if ESCAPED in what:
        return DataError(what, doubling(path))
    if kind.startswith("time"):
        if config.date_format != "auto":
            return SettingsError(f"{what}; they do not fit --date-format {config.date_format}", {"date_format": "auto"})
        better = (
            "say how its dates are written with --date-format, such as '%d.%m.%Y %H:%M', or name the column of the "
            "times with --map time=COLUMN"
        )
    elif kind == "verified":
        better = (
            "if this column does not say which purchases are verified, rename it, or name the one that does with "
            "--map verified=COLUMN"
        )
    elif kind in (NOT_JSON, NOT_AN_OBJECT):
        better = "every line must be one JSON object"
    elif kind.startswith("not ") and kind != NOT_A_ROW:
        if config.encoding != "auto":
            return SettingsError(f"{what}; its encoding is not {config.encoding}", {"encoding": "auto"})
        better = "name its encoding with --encoding, such as cp1251, cp850 or gbk"
    else:
        return None
    return DataError(f"{what}; {better}", first_lines(path))
