"""Which column of a table is what: as --map says, or by the usual names of columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.table.files import Table
from antpipe.settings.ingest import TableConfig

# Groups of names, the surest group first; names of one group are equally sure. They are compared without case, blanks,
# '_', '-' and '.'.
UsualNames = tuple[tuple[str, ...], ...]
# The usual names of the column of each role.
INTERACTION_ROLES: Mapping[str, UsualNames] = {
    "user": (("userid", "user", "reviewerid", "uid", "customerid", "visitorid"), ("sessionid",)),
    "item": (("itemid", "item", "parentasin", "productid", "articleid", "movieid", "sku"), ("asin",), ("id",)),
    "time": (
        ("timestamp", "unixreviewtime", "ts"),
        ("time", "datetime", "eventtime", "createdat"),
        ("date", "tdat"),
    ),
    "rating": (("rating",), ("overall", "stars", "score")),
}
ITEM_ROLES: Mapping[str, UsualNames] = {
    "item": INTERACTION_ROLES["item"],
    "title": (
        ("title",),
        ("producttitle", "itemtitle", "movietitle", "productname", "itemname", "prodname", "productdisplayname"),
        ("name",),
    ),
    "text": (("text", "itemtext"),),
    "price": (("price",), ("formattedprice",)),
    "image": (
        ("imageurlhighres",),
        ("images", "imageurls", "image", "imageurl", "imurl", "imagepath", "imagefile"),
        ("largeimageurl",),
        ("mediumimageurl",),
        ("smallimageurl",),
    ),
    "category": (("category", "categories", "categorypath"), ("maincategory", "maincat", "producttypename")),
    "brand": (("brand",), ("store",), ("manufacturer",)),
    "features": (("features", "feature", "bulletpoints"),),
    "description": (("description", "descriptions", "productdescription"),),
}
ROLES = tuple(dict.fromkeys((*INTERACTION_ROLES, *ITEM_ROLES)))


@dataclass(frozen=True)
class Columns:
    """The columns of a table by role; only `text` may have several."""

    table: Table
    roles: dict[str, list[str]]

    def in_words(self) -> str:
        """The file, its format and its columns by role, for the user."""
        chosen = " ".join(f"{role}={'+'.join(columns)}" for role, columns in self.roles.items())
        used = {column for columns in self.roles.values() for column in columns}
        rest = [column for column in self.table.columns if column not in used]
        return f"{self.table.path.name}: {self.table.form}, {chosen}" + (
            f"; not used: {', '.join(rest)}" if rest else ""
        )


def parse_map(config: TableConfig) -> dict[str, list[str]]:
    """--map as columns by role. Raises UsageError for an entry that is not ROLE=COLUMN or a role named twice."""
    wanted: dict[str, list[str]] = {}
    for entry in config.map:
        role, equals, column = (word.strip() for word in entry.partition("="))
        if role not in ROLES:
            raise UsageError(f"--map {entry}: unknown role {role!r}; choose from {', '.join(ROLES)}")
        columns = [name.strip() for name in column.split("+")] if role == "text" else [column]
        if not equals or not all(columns) or role in wanted:
            raise UsageError(f"--map {entry}: name each role once, as {role}=COLUMN")
        wanted[role] = columns
    return wanted


def choose_columns(
    table: Table, roles: Mapping[str, UsualNames], wanted: Mapping[str, Sequence[str]], required: Sequence[str]
) -> Columns:
    """The columns of one file, by role.

    wanted: from --map. A column of `item` that this file lacks is looked for by its usual names, since the two files
    may name it differently. Raises DataError, which names the columns there are, if a required one is missing or if one
    could be either of two.
    """
    chosen: dict[str, list[str]] = {}
    for role, usual in roles.items():
        named = [name for name in wanted.get(role, []) if name in table.columns]
        if role in wanted and (len(named) == len(wanted[role]) or role != "item"):
            missing = [name for name in wanted[role] if name not in table.columns]
            if missing:
                raise _unclear(table, f"no column {missing[0]!r} (--map {role}={'+'.join(wanted[role])})", role)
            chosen[role] = named
            continue
        found = usual_columns(table.columns, usual)
        if len(found) > 1:
            why = f"the {role} could be {' or '.join(repr(name) for name in found)}"
            raise SettingsError(_unclear(table, why, role).message, {"map": (f"{role}={found[0]}",)})
        if found:
            chosen[role] = found
        elif role in required:
            raise _unclear(table, f"no column looks like the {role}", role)
    for role, names in chosen.items():
        twice = next((name for name in names if table.columns.count(name) > 1), None)
        if twice is not None:
            raise _unclear(table, f"there are {table.columns.count(twice)} columns {twice!r}", role)
    return Columns(table, {role: chosen[role] for role in roles if role in chosen})


def require_known(tables: Sequence[Table], wanted: Mapping[str, Sequence[str]]) -> None:
    """Raises DataError if a column of --map is in none of the files."""
    for role, names in wanted.items():
        for name in names:
            if not any(name in table.columns for table in tables):
                there = "; ".join(f"{table.path.name} has {', '.join(table.columns)}" for table in tables)
                raise DataError(f"--map {role}={name}: there is no such column: {there}")


def usual_columns(columns: Iterable[str], usual: UsualNames) -> list[str]:
    """The columns with a name of the surest group that has any."""
    plain = {column: "".join(letter for letter in column.lower() if letter not in " _-.") for column in columns}
    found = ([column for column, name in plain.items() if name in group] for group in usual)
    return next(filter(None, found), [])


def _unclear(table: Table, why: str, role: str) -> DataError:
    return DataError(
        f"{table.path}: {why}; columns there: {', '.join(table.columns)}; name it with --map {role}=COLUMN"
    )
