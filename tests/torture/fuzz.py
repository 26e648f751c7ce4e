"""Files, values and requests of strangers, given to what reads them: a value or a refusal, and in time."""

import bz2
import gzip
import io
import json
import lzma
import traceback
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from antpipe.errors import AntpipeError
from antpipe.features.fetch.addresses import RefusedError, parse_url
from antpipe.features.fetch.encodings import EncodedError, unpacked
from antpipe.features.image.decoding import FORMATS, UnreadableError, decode_picture
from antpipe.features.ingest.literals import parsed, texts_of
from antpipe.features.ingest.price import parse_price
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.dates import require_date_format
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.times import parse_time
from antpipe.features.ingest.table.values import described, levels_of, listed, pictures_of, text_of, to_id, to_rating
from antpipe.features.ingest.text import MISSING_WORDS, category_path, clean_html, clean_title, item_text
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.features.vectors.formats import open_vectors
from antpipe.interop.ant_checkpoint import read_checkpoint
from antpipe.runtime import terminal, words
from antpipe.runtime.conditions import row_filter
from antpipe.settings.ingest import AmazonConfig, IngestConfig, TableConfig
from antpipe.settings.sections import CONFIGS
from antpipe.settings.sources import read_toml
from antpipe.store.documents import parse_json
from antpipe.store.store import Store
from tests.support.releases import encode, ingest_release, product, review, review_2023
from tests.support.shops import picture
from tests.torture import mutations
from tests.torture.accidents import limit_memory
from tests.torture.mutations import mutants, mutated
from tests.torture.trial import REFUSED, UNEXPECTED, WHOLE, Found, Place

FORGIVING = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=10**6)
MEMORY = 6 << 30  # bytes that a batch may add to its process
Read = Callable[[Any], object]


class FaultError(Exception):
    """Something that no input may lead to."""


# -- values of a cell -------------------------------------------------------------------------------------------------

CELLS = [
    b"['Beauty', 'Hair Care']", b"array(['a', 'b'], dtype=object)", b'["a", {"name": "x", "id": 3}]', b"{'a': 1.5}",
    b"$1,234.56", b"EUR 12,50 - 14", b"1.234,5 kr", b"3 for $5", b"2021-03-04T05:06:07+01:00", b"1617181920", b"4.5",
    b"<p>Wool &amp; <b>silk</b></p>", b"A title &#39;with&#39; marks", b"Home > Kitchen | Pots", b"a.png, b.jpg",
    b"http://user@example.org:80/p%20q.png?x=1#f", b"https://[2001:db8::1]/x", b"//cdn.example.com/a.webp", b"nan",
    b"price < 50 and in_stock = 'yes' or not lower(title) like 'a%'", b"%d.%m.%Y %H:%M", b"\xe6\x97\xa5", b"",
]  # fmt: skip
COLUMNS = {"price": "Float64", "in_stock": "String", "title": "String", "n": "Int64", "ok": "Boolean"}


def shown_safely(text: str) -> None:
    for found in (terminal.shown(text), terminal.cell(text), words.command_line([text])):
        if any(words.is_hidden(one) and one not in "\n\t" for one in found):
            raise FaultError(f"{found!r} is shown with what a terminal would obey")


def names_below(text: str) -> None:
    folder = Path("/usr/share")
    _, files = pictures_of(text, folder, [], [])
    if any(not Path(file).is_relative_to(folder) for file in files):
        raise FaultError(f"{text!r} leads to {files}")


def condition(text: str) -> None:
    import polars as pl

    schema = {name: getattr(pl, kind)() for name, kind in COLUMNS.items()}
    pl.DataFrame(schema=schema).filter(row_filter(text, schema))


CELL_READERS: dict[str, Read] = {
    "literals": lambda text: texts_of(parsed(text), MISSING_WORDS),
    "lists": lambda text: (listed(text), described(text), levels_of(text), text_of(text)),
    "prices": parse_price,
    "times": parse_time,
    "ids": lambda text: to_id(text, "item"),
    "ratings": to_rating,
    "titles": lambda text: (clean_title(text), clean_html(text), category_path([text, text])),
    "texts": lambda text: item_text({"title": text, "description": [text]}, ("title", "description")),
    "pictures": names_below,
    "addresses": lambda text: (base := parse_url("http://a.example/b"), parse_url(text), parse_url(text, base)),
    "terminal": shown_safely,
    "conditions": condition,
    "date formats": require_date_format,
}
SLOW = ("conditions",)
REFUSALS = (AntpipeError, ValueError, RefusedError, EncodedError, UnreadableError)


def cells(place: Place, random: Random) -> Found:
    name = random.choice(list(CELL_READERS))
    texts = [mutations.text_of(one) for one in mutants(CELLS, random, 1500 if name in SLOW else 15_000)]
    return judged(f"cells: {name}", place, texts, CELL_READERS[name])


def judged(what: str, place: Place, inputs: Iterable[Any], read: Read) -> Found:
    """Read each input; a refusal is an answer."""
    limit_memory(MEMORY)  # no input may make a process as large as the machine
    count = refused = 0
    for count, one in enumerate(inputs, 1):
        try:
            read(one)
        except REFUSALS as error:
            if isinstance(error, UnicodeError) and not isinstance(one, str | bytes):
                raise
            refused += 1
        except Exception:
            (place.scratch / "input").write_bytes(repr(one).encode())
            return Found(UNEXPECTED, what, f"{traceback.format_exc()[-1500:]}\n{one!r}"[:3000], count)
    return Found(REFUSED if refused else WHOLE, what, f"{refused} of {count} refused", count)


# -- rows and lines ---------------------------------------------------------------------------------------------------

CSV_ROWS = [b'u%d,i%d,%d,"a, b ""c""",4.5' % (n % 7, n % 5, 1_600_000_000 + n) for n in range(40)]
CSV_HEAD = b"user_id,item_id,timestamp,title,rating"
JSON_ROWS = [
    encode({"user_id": f"u{n % 7}", "item_id": f"i{n % 5}", "timestamp": 1_600_000_000 + n, "t": ["x", None]}).rstrip()
    for n in range(40)
]
REVIEWS = [encode(review(f"A{n}", f"B{n % 5}", n, reviewText="good")).rstrip() for n in range(20)]
REVIEWS_2023 = [encode(review_2023(f"A{n}", f"B{n % 5}", n)).rstrip() for n in range(20)]
PRODUCTS = [encode(product(f"B{n}", price=f"${n}.5", description=["a", "b"])).rstrip() for n in range(20)]
ROWS = 3000  # per file
SHARE = 0.3  # of rows that are mutated


def some_mutated(rows: Sequence[bytes], random: Random, share: float = SHARE, count: int = ROWS) -> list[bytes]:
    return [mutated(one, random, rows) if random.random() < share else one for one in random.choices(rows, k=count)]


def table_rows(place: Place, random: Random) -> Found:
    """Rows of a text table or of JSON lines, read to the end; those that were read count as inputs."""
    form, quotes = random.choice(("csv", "tsv", "jsonl")), random.choice((None, True, False, False))
    if form == "jsonl":
        content = b"\n".join(some_mutated(JSON_ROWS, random))
    else:  # a quote too many hides the rest of a file, which is then refused
        lines = [CSV_HEAD, *some_mutated(CSV_ROWS, random, SHARE if quotes is False else 0.001)]
        content = b"\n".join(lines).replace(b",", b"\t" if form == "tsv" else b",")
    path = place.scratch / f"rows.{form}"
    path.write_bytes(content)
    read, rejects = 0, Rejects(10**6)
    limit_memory(MEMORY)  # no input may make a process as large as the machine
    try:
        table = open_table(path, quotes)
        for read, _ in enumerate(read_rows(table, table.columns, rejects), 1):  # noqa: B007
            pass
    except AntpipeError as error:
        return Found(REFUSED, f"rows of {form}", error.message[:200], max(1, read))
    return Found(WHOLE, f"rows of {form}", "", read)


def ingested_table(place: Place, random: Random) -> Found:
    """A domain made of mutated rows; rows that are kept, repeated or rejected add up."""
    orders, items = place.scratch / "orders.csv", place.scratch / "items.csv"
    orders.write_bytes(b"\n".join([CSV_HEAD, *some_mutated(CSV_ROWS, random)]))
    described = [b"i%d,Thing %d,$%d,['a' 'b'],x.png,a <b>thing</b>" % (n, n, n) for n in range(5)]
    rows = [b"item_id,title,price,category,image,description", *described, *mutants(described, random, 1000)]
    items.write_bytes(b"\n".join(rows))
    store = Store(place.scratch / "s")
    settings = TableConfig(quotes=False, time_unit=random.choice(("order", "order", "auto", "s")))
    limit_memory(MEMORY)  # no input may make a process as large as the machine
    try:
        ingest_table(store, "N", table_source(orders, items), FORGIVING, settings)
    except AntpipeError as error:
        return Found(REFUSED, "ingest table", error.message[:200])
    return added_up(store, "N", "ingest table")


def ingested_reviews(place: Place, random: Random) -> Found:
    form = random.choice(("reviews-2018", "reviews-2023"))
    rows = REVIEWS if form == "reviews-2018" else REVIEWS_2023
    (place.scratch / "N.json").write_bytes(b"\n".join([rows[0], *some_mutated(rows, random)]))
    (place.scratch / "meta_N.json").write_bytes(b"\n".join([PRODUCTS[0], *some_mutated(PRODUCTS, random, count=600)]))
    store = Store(place.scratch / "s")
    limit_memory(MEMORY)  # no input may make a process as large as the machine
    try:
        options = AmazonConfig(review_format=form)
        ingest_release(store, place.scratch, "N", FORGIVING, options=options)
    except AntpipeError as error:
        return Found(REFUSED, f"ingest amazon, {form}", error.message[:200])
    return added_up(store, "N", f"ingest amazon, {form}")


def added_up(store: Store, name: str, what: str) -> Found:
    """What an ingest says of its rows, after checking that none went missing."""
    report, lines = store.domain(name).entry("items")["report"], 0
    for part in ("interactions", "items"):
        facts = report[part]
        lines += facts["lines"]
        if facts["lines"] != facts["kept"] + facts["duplicate_lines"] + facts["malformed"]:
            return Found(UNEXPECTED, what, f"rows do not add up: {facts}", lines)
    return Found(WHOLE, what, "", lines)


# -- whole files ------------------------------------------------------------------------------------------------------

TABLE = pa.table(
    {
        "user_id": [f"u{n % 7}" for n in range(40)],
        "item_id": pa.array([f"i{n % 5}" for n in range(40)]).dictionary_encode(),
        "timestamp": pa.array(range(40), pa.timestamp("ns")),
        "tags": [["a", "b"], None] * 20,
        "id": [f"i{n}" for n in range(40)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(120, dtype=np.float32)), 3),
    }
)


def written(write: Callable[[Any], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def arrow_file(stream: Any) -> None:
    with pa.ipc.new_file(stream, TABLE.schema) as writer:
        writer.write_table(TABLE)


def arrow_stream(stream: Any) -> None:
    with pa.ipc.new_stream(stream, TABLE.schema) as writer:
        writer.write_table(TABLE)


def zip_of(stream: Any) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.csv", CSV)


CSV = b"\n".join([CSV_HEAD, *CSV_ROWS])
FILES: dict[str, bytes] = {
    "t.parquet": written(lambda stream: pq.write_table(TABLE, stream)),
    "plain.parquet": written(lambda stream: pq.write_table(TABLE, stream, compression="none", use_dictionary=False)),
    "t.arrow": written(arrow_file),
    "s.arrow": written(arrow_stream),
    "t.csv.gz": gzip.compress(CSV),
    "t.csv.bz2": bz2.compress(CSV),
    "t.csv.xz": lzma.compress(CSV),
    "t.csv.zst": pa.compress(CSV, "zstd", asbytes=True),
    "t.csv.zip": written(zip_of),
    "t.csv": CSV,
    "utf16.csv": CSV.decode().encode("utf-16"),
    "t.jsonl": b"\n".join(JSON_ROWS),
}


def read_table(path: Path) -> None:
    table = open_table(path, None)
    for _ in read_rows(table, table.columns, Rejects(10**6)):
        pass


def given_to(read: Callable[[Path], object], place: Place, name: str, contents: Iterable[bytes], what: str) -> Found:
    """Write each content to a file of this name, and read it."""
    path = place.scratch / name

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except (AntpipeError, *REFUSALS) as error:
            if isinstance(error, AntpipeError):
                raise
            raise FaultError(f"{type(error).__name__}: {error}") from error

    return judged(what, place, contents, attempt)


def table_files(place: Place, random: Random) -> Found:
    name = random.choice(list(FILES))
    contents = (mutated(FILES[name], random, list(FILES.values())) for _ in range(150))
    return given_to(read_table, place, name, contents, f"table file {name}")


VECTORS: dict[str, bytes] = {
    "v.npy": written(lambda stream: np.save(stream, np.arange(120, dtype=np.float32).reshape(40, 3))),
    "v.parquet": FILES["plain.parquet"],
    "v.feat1CLS": np.arange(768 * 2, dtype="<f4").tobytes(),
}


def vector_files(place: Place, random: Random) -> Found:
    name = random.choice(list(VECTORS))
    ids = place.scratch / "ids.txt"
    ids.write_text("".join(f"i{n}\n" for n in range(40)))

    def read(path: Path) -> None:
        given = open_vectors(path, "text", None if name.endswith("parquet") else ids, ())
        for _, block in given.blocks():
            np.asarray(block, np.float64).sum()

    contents = (mutated(VECTORS[name], random) for _ in range(200))
    return given_to(read, place, name, contents, f"file of vectors {name}")


def checkpoint_files(place: Place, random: Random) -> Found:
    import torch
    from safetensors.torch import save

    tensors = {"item.weight": torch.arange(12.0).reshape(4, 3), "n": torch.arange(3)}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    files = {
        "c.safetensors": save(tensors),
        "c.npz": written(lambda stream: np.savez(stream, **arrays)),
        "c.pt": written(lambda stream: torch.save({"state_dict": tensors}, stream)),
    }
    name = random.choice(list(files))
    contents = (mutated(files[name], random) for _ in range(150))
    return given_to(read_checkpoint, place, name, contents, f"checkpoint {name}")


SETTINGS = (
    b'[train]\nlr = 1e-3\nepochs = 3\n[model]\nwidth = 16\n[stage.mine]\nencoder = "reset"\n[ingest]\nmin_user = 5\n'
)


def settings_files(place: Place, random: Random) -> Found:
    contents = (mutated(SETTINGS, random) for _ in range(1500))
    return given_to(lambda path: read_toml(path, CONFIGS), place, "settings.toml", contents, "settings file")


def json_documents(place: Place, random: Random) -> Found:
    """Bytes of the documents of a store and a run, as any reader takes them."""
    shop = place.whole / "shop"
    seeds = [(shop / name).read_bytes() for name in ("s/A/manifest.json", "r/checkpoint.json", "r/cost.json")]
    return judged("JSON document", place, mutants(seeds, random, 1500), lambda one: parse_json(one, dict, "x", None))


def pictures(place: Place, random: Random) -> Found:
    form = random.choice(FORMATS)
    seeds = [picture(n, form=form) for n in range(2)]
    made = (mutated(random.choice(seeds), random, seeds) for _ in range(400))
    return judged(f"picture, {form}", place, made, lambda one: decode_picture(one, 10**6, random.choice((None, 8))))


def bodies(place: Place, random: Random) -> Found:
    """Bodies of answers that claim to be packed."""
    encoding = random.choice(("gzip", "deflate", "zstd", "br", "gzip, deflate", "x-gzip"))
    seeds = [gzip.compress(CSV), FILES["t.csv.zst"], pa.compress(CSV, "brotli", asbytes=True), b"x\x9c" + CSV[:50]]
    made = mutants(seeds, random, 1500)
    return judged(f"body, {encoding}", place, made, lambda one: unpacked(one, encoding, 10_000))


# -- requests ---------------------------------------------------------------------------------------------------------

REQUESTS = [
    ("POST", "/recommend", b'{"user": "u001", "k": 5, "where": "price < 50", "explain": true}'),
    ("POST", "/recommend", b'{"items": ["i001", "i007"], "k": 3, "diversify": 0.5, "exclude": ["i002"]}'),
    ("POST", "/recommend", b'{"items": [], "unknown": "popularity", "only": ["i003", "i004"]}'),
    ("POST", "/similar", b'{"item": "i001", "by": "text", "k": 5}'),
    ("GET", "/items?search=item", b""),
    ("GET", "/items/i001", b""),
    ("GET", "/pictures/i001", b""),
    ("GET", "/ready", b""),
]


def requests(place: Place, random: Random) -> Found:
    """Requests to the service, in process: an answer below 500, as JSON."""
    from starlette.testclient import TestClient

    from antpipe.serving.web.app import make_app
    from antpipe.serving.web.reloading import Current, load
    from antpipe.settings.serving import ServeConfig

    store, run = Store(place.whole / "shop" / "s"), place.whole / "shop" / "r"
    current = Current(store, run, "A", 10**6, load(store, run, "A", 10**6))
    with TestClient(make_app(current, ServeConfig(max_k=20, max_body=20_000)), raise_server_exceptions=True) as client:

        def ask(request: tuple[str, str, bytes]) -> None:
            method, path, body = request
            answer = client.request(method, path, content=body, headers={"content-type": "application/json"})
            if answer.status_code >= 500:
                raise FaultError(f"{answer.status_code}: {answer.text}")
            if answer.status_code >= 400:
                json.loads(answer.content)
                raise ValueError(answer.text)

        return judged("request", place, (request_of(random) for _ in range(150)), ask)


def request_of(random: Random) -> tuple[str, str, bytes]:
    method, path, body = random.choice(REQUESTS)
    if body and random.random() < 0.8:
        return method, path, mutated(body, random, [one for _, _, one in REQUESTS])
    name = mutated(path[1:].encode(), random).decode("latin-1")
    kept = "".join(one if one.isascii() and one.isprintable() and one != " " else f"%{ord(one):02x}" for one in name)
    return method, f"/{kept[:300].lstrip('/')}", body
