"""Which column of a table is what: as --map says, or by the usual names of columns."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import read_rows
from antpipe.features.ingest.table.table import Table
from antpipe.settings.ingest import TableConfig
from antpipe.store.looking import first_lines

# Groups of names, the surest group first; names of one group are equally sure. They are compared without case, blanks,
# '_', '-' and '.'.
UsualNames = tuple[tuple[str, ...], ...]
# The usual names of the column of each role.
INTERACTION_ROLES: Mapping[str, UsualNames] = {
    "user": (
        ("userid", "user", "reviewerid", "uid", "customerid", "visitorid"),
        ("customer", "customernumber", "customerno", "clientid", "client", "buyerid", "buyer", "memberid"),
        ("kunde", "kundennummer", "kundennr", "kundenid", "kundeid", "cliente"),
        ("sessionid",),
    ),
    "item": (
        ("itemid", "item", "parentasin", "productid", "articleid", "movieid", "sku"),
        (
            "itemno",
            "itemnumber",
            "productno",
            "productnumber",
            "productcode",
            "articleno",
            "articlenumber",
            "stockcode",
        ),
        ("artikelnummer", "artikelnr", "artikelid", "produktnummer", "produktnr", "produktid"),
        ("asin",),
        ("ean", "gtin"),
        ("product", "article", "artikel", "produkt"),
        ("id",),
    ),
    "time": (
        ("timestamp", "unixreviewtime", "ts"),
        ("time", "datetime", "eventtime", "createdat"),
        ("date", "tdat"),
        ("orderdate", "ordertime", "orderedat", "purchasedate", "purchasedat", "invoicedate", "saledate"),
        ("datum", "bestelldatum", "kaufdatum", "auftragsdatum", "rechnungsdatum", "zeitpunkt", "zeit", "fecha"),
    ),
    "rating": (("rating",), ("overall", "stars", "score"), ("bewertung", "sterne")),
    "verified": (("verified", "verifiedpurchase"),),
    "quantity": (("quantity", "qty"), ("menge", "anzahl", "stück", "stueck", "stückzahl")),
}
ITEM_ROLES: Mapping[str, UsualNames] = {
    "item": (*INTERACTION_ROLES["item"][:-2], ("id",), ("product", "article", "artikel", "produkt")),
    "title": (
        ("title",),
        ("producttitle", "itemtitle", "movietitle", "productname", "itemname", "prodname", "productdisplayname"),
        ("name",),
        ("titel", "bezeichnung", "artikelbezeichnung", "produktbezeichnung", "artikelname", "produktname"),
    ),
    "text": (("text", "itemtext"),),
    "price": (("price",), ("formattedprice",), ("unitprice", "saleprice", "preis", "einzelpreis", "verkaufspreis")),
    "image": (
        ("imageurlhighres",),
        ("images", "imageurls", "image", "imageurl", "imurl", "imagepath", "imagefile"),
        ("largeimageurl",),
        ("mediumimageurl",),
        ("smallimageurl",),
        ("picture", "pictures", "pictureurl", "photo", "photos", "photourl", "imagelink", "thumbnail"),
        ("bild", "bilder", "bildurl", "bilddatei", "foto", "fotos"),
    ),
    "category": (
        ("category", "categories", "categorypath"),
        ("maincategory", "maincat", "producttypename"),
        ("kategorie", "kategorien", "warengruppe", "produktkategorie"),
    ),
    "brand": (("brand",), ("store",), ("manufacturer",), ("vendor", "marke", "hersteller")),
    "features": (("features", "feature", "bulletpoints"), ("merkmale", "eigenschaften")),
    "description": (
        ("description", "descriptions", "productdescription"),
        ("beschreibung", "artikelbeschreibung", "produktbeschreibung", "langtext"),
    ),
}
LOOKED_AT, MOST_ALIKE = 100, 0.9  # rows that show whether a file has a header, and the share that are like line 1
SMALLEST_VALUE = 1000  # numbers from here are not names of columns
ROLES = tuple(dict.fromkeys((*INTERACTION_ROLES, *ITEM_ROLES)))


@dataclass(frozen=True)
class Columns:
    """The columns of a table by role; only `text` may have several."""

    table: Table
    roles: dict[str, list[str]]

    def described(self, mapped: Container[str]) -> dict[str, list[str]]:
        """The columns by role that go into the fingerprint of the domain. mapped: the roles that --map names.

        The quantity is left out, as it only warns of returns. So are verified purchases found by their usual name: what
        earlier versions ingested without them stays fresh.
        """
        unsaid = {"quantity", *(() if "verified" in mapped else ("verified",))}
        return {role: columns for role, columns in self.roles.items() if role not in unsaid}

    def in_words(self) -> str:
        """The file, its format and its columns by role, for the user."""
        chosen = " ".join(f"{role}={'+'.join(columns)}" for role, columns in self.roles.items())
        used = {column for columns in self.roles.values() for column in columns}
        rest = [column for column in self.table.columns if column not in used]
        return f"{self.table.path.name}: {self.table.form}, {chosen}" + (
            f"; not used: {', '.join(rest)}" if rest else ""
        )


def parse_map(config: TableConfig) -> dict[str, list[str]]:
    """--map as columns by role; `ROLE=` gives none, so that the usual names do not count either.

    Raises UsageError for an entry that is not ROLE=COLUMN, a role named twice, and no column of users or items.
    """
    wanted: dict[str, list[str]] = {}
    for entry in config.map:
        role, equals, column = (word.strip() for word in entry.partition("="))
        if role not in ROLES:
            raise UsageError(f"--map {entry}: unknown role {role!r}; choose from {', '.join(ROLES)}")
        columns = [name.strip() for name in column.split("+")] if role == "text" else [column]
        columns = columns if column or role in ("user", "item") else []
        if not equals or not all(columns) or role in wanted:
            raise UsageError(f"--map {entry}: name each role once, as {role}=COLUMN")
        wanted[role] = columns
    return wanted


def choose_columns(
    table: Table, roles: Mapping[str, UsualNames], wanted: Mapping[str, Sequence[str]], required: Sequence[str]
) -> Columns:
    """The columns of one file, by role.

    wanted: from --map; an empty list means that there is none. A column of `item` that this file lacks is looked for by
    its usual names, since the two files may name it differently. Raises DataError, which names the existing columns, if
    a required one is missing or if two columns could have the same role.
    """
    chosen: dict[str, list[str]] = {}
    for role, usual in roles.items():
        if role in wanted and not wanted[role]:
            continue
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
        if any(_is_data(name) for name in names):
            raise _no_header(table)
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
    """The columns whose names are in the surest group that matches any."""
    plain = {column: "".join(letter for letter in column.lower() if letter not in " _-.") for column in columns}
    found = ([column for column, name in plain.items() if name in group] for group in usual)
    return next(filter(None, found), [])


def require_header(columns: Columns, config: TableConfig) -> None:
    """Raises DataError if the columns of a text table that --map names look like the values below them: then the file
    has no header, and its first row would be lost."""
    table = columns.table
    names = [name for entries in parse_map(config).values() for name in entries if name in table.columns]
    odd = [name for name in dict.fromkeys(names) if any(letter.isdigit() for letter in name)]
    if not odd or not table.delimiter:
        return
    rows = [row.values for row in read_rows(table, odd, Rejects(0), LOOKED_AT)]
    for name, values in zip(odd, zip(*rows, strict=True), strict=False):
        if sum(_shape(value) == _shape(name) for value in values) >= MOST_ALIKE * len(rows):
            raise _no_header(table)


def _shape(text: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text.strip()))


def _is_data(name: str) -> bool:
    """Whether the name of a column is more likely a value, such as a time, a price or a date: the file has no header.

    Small whole numbers are names that pandas gives.
    """
    try:
        number = float(name)
        return isfinite(number) and (not name.isdecimal() or number >= SMALLEST_VALUE)
    except ValueError:
        return bool(re.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}.*|https?://.*", name))


def _no_header(table: Table) -> DataError:
    return DataError(
        f"{table.path}: line 1 looks like data, not like a header: {', '.join(table.columns)}; put a line with the "
        "names of the columns above it",
        first_lines(table.path),
    )


def _unclear(table: Table, why: str, role: str) -> DataError:
    if any(_is_data(name) for name in table.columns) and why.startswith("no column looks"):
        return _no_header(table)
    return DataError(
        f"{table.path}: {why}; columns there: {', '.join(table.columns)}; name it with --map {role}=COLUMN"
    )
