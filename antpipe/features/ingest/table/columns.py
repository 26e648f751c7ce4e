"""Which column of a table is what: as the user says, or by the names columns usually have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.table.files import Table
from antpipe.settings.ingest import TableConfig

# For each role the usual names of its column, the surest first; of names in one group none is surer than the other.
# Names are compared without case, blanks, '_', '-' and '.'.
INTERACTION_ROLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "user": (("userid", "user", "reviewerid", "uid", "customerid", "visitorid"), ("sessionid",)),
    "item": (("itemid", "item", "parentasin", "productid", "articleid", "movieid", "sku"), ("asin",), ("id",)),
    "time": (
        ("timestamp", "unixreviewtime", "ts"),
        ("time", "datetime", "eventtime", "createdat"),
        ("date", "tdat"),
    ),
    "rating": (("rating",), ("overall", "stars", "score")),
}
ITEM_ROLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
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
REQUIRED = ("user", "item")
ROLES = tuple(dict.fromkeys((*INTERACTION_ROLES, *ITEM_ROLES)))


@dataclass(frozen=True)
class Columns:
    """The columns of a table by role; only `text` may have several."""

    table: Table
    roles: dict[str, list[str]]

    def told(self) -> str:
        chosen = " ".join(f"{role}={'+'.join(columns)}" for role, columns in self.roles.items())
        used = {column for columns in self.roles.values() for column in columns}
        rest = [column for column in self.table.columns if column not in used]
        return f"{self.table.path.name}: {self.table.form}, {chosen}" + (
            f"; not used: {', '.join(rest)}" if rest else ""
        )


def parse_map(config: TableConfig) -> dict[str, list[str]]:
    """--map as columns by role. UsageError for what is not ROLE=COLUMN, an unknown role, one named twice."""
    wanted: dict[str, list[str]] = {}
    for part in config.map:
        role, equals, column = (word.strip() for word in part.partition("="))
        if role not in ROLES:
            raise UsageError(f"--map {part}: {role!r} is none of {', '.join(ROLES)}")
        columns = [name.strip() for name in column.split("+")] if role == "text" else [column]
        if not equals or not all(columns) or role in wanted:
            raise UsageError(f"--map {part}: name each role once, as {role}=COLUMN")
        wanted[role] = columns
    return wanted


def choose_columns(
    table: Table, roles: Mapping[str, tuple[tuple[str, ...], ...]], wanted: Mapping[str, Sequence[str]], required: str
) -> Columns:
    """The columns of one file. DataError, which names the columns there are, for a required one that is missing and
    for one that could be either of two.

    wanted: from --map. A column of `item` that this file lacks is looked for by its usual names: the two files may
    name it differently.
    """
    chosen: dict[str, list[str]] = {}
    for role, usual in roles.items():
        named = [name for name in wanted.get(role, []) if name in table.columns]
        if role in wanted and (len(named) == len(wanted[role]) or role != "item"):
            missing = [name for name in wanted[role] if name not in table.columns]
            if missing:
                raise _refusal(table, f"no column {missing[0]!r} (--map {role}={'+'.join(wanted[role])})", role)
            chosen[role] = named
            continue
        found = _usual(table, usual)
        if len(found) > 1:
            raise _refusal(table, f"the {role} could be {' or '.join(repr(name) for name in found)}", role)
        if found:
            chosen[role] = found
        elif role in required.split():
            raise _refusal(table, f"no column looks like the {role}", role)
    for role, names in chosen.items():
        twice = [name for name in names if table.columns.count(name) > 1]
        if twice:
            raise _refusal(table, f"there are {table.columns.count(twice[0])} columns {twice[0]!r}", role)
    return Columns(table, {role: chosen[role] for role in roles if role in chosen})


def require_known(tables: Sequence[Table], wanted: Mapping[str, Sequence[str]]) -> None:
    """A column of --map must be in one of the files at least."""
    for role, names in wanted.items():
        for name in names:
            if not any(name in table.columns for table in tables):
                there = "; ".join(f"{table.path.name} has {', '.join(table.columns)}" for table in tables)
                raise DataError(
                    f"--map {role}={name}: there is no such column: {there}",
                    f"repeat the command with --map {role}=COLUMN",
                )


def _usual(table: Table, usual: tuple[tuple[str, ...], ...]) -> list[str]:
    plain = {column: "".join(letter for letter in column.lower() if letter not in " _-.") for column in table.columns}
    for group in usual:
        found = [column for column, name in plain.items() if name in group]
        if found:
            return found
    return []


def _refusal(table: Table, why: str, role: str) -> DataError:
    return DataError(
        f"{table.path}: {why}; columns there: {', '.join(table.columns)}",
        f"repeat the command with --map {role}=COLUMN",
    )
