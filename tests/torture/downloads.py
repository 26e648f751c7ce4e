"""Pictures fetched from a server that answers as badly as it can, by a process that is killed, or into a ledger that
is damaged; and again when all is well."""

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from antpipe.errors import AntpipeError
from antpipe.features.fetch.ledger import LEDGER, OK, read_ledger
from antpipe.features.fetch_images import FOLDER, fetch_images
from antpipe.settings.features import FetchConfig
from antpipe.store.store import Store
from tests.support.picture_server import Part, PictureServer, answer, picture_server, redirect
from tests.support.shops import make_domain, picture
from tests.torture.accidents import cut_power, ended_at, facts_in, killed_at, unpowered_at, unpowered_facts
from tests.torture.corruption import damage
from tests.torture.mutations import mutated
from tests.torture.trial import LOST, REFUSED, SILENT, UNEXPECTED, WHOLE, Forked, Found, Place
from tests.torture.works import Work

HASTY = FetchConfig(
    allow_private=True, rate=0, backoff=0.001, max_wait=0.01, retries=1, timeout=0.3, deadline=0.6, give_up=0,
    max_bytes=100_000, placeholder_urls=0,
)  # fmt: skip
PATIENT = FetchConfig(
    allow_private=True, rate=0, backoff=0.001, retries=2, give_up=0, placeholder_urls=0, retry_failed=True,
    retry_permanent=True,
)  # fmt: skip
ADDRESSES = 25
SIZES = (b"5", b"zz", b"-1", b"f" * 30)  # of chunks
LINES = ("HTTP/1.1 200 OK\r\n", "HTTP/9 200 OK\r\n", "HTTP/1.1 2000 OK\r\n", "HTP\r\n", "\r\n")


def fault(good: bytes, server: PictureServer, random: Random) -> bytes | list[Part]:
    """One answer to a request for a picture; most of them are bad."""
    length = len(good)
    choices: list[bytes | list[Part]] = [
        answer(good),
        answer(good, headers=["Content-Type: text/html"]),
        answer(good[: length // 2], length=length),
        answer(good, length=length // 2),
        answer(good[: length // 2]),
        answer(mutated(good, random)),
        answer(b""),
        answer(b"<html>no picture</html>"),
        answer(good, length=10**12),
        [answer(length=length), good[: length // 3], 0.5, good[length // 3 :]],
        [answer(length=length), *(part for byte in good[:20] for part in (bytes([byte]), 0.01))],
        [0.5],
        [],
        answer(status="404 Not Found"),
        answer(status="410 Gone"),
        answer(status="429 Too Many Requests", headers=[f"Retry-After: {random.choice(['0', '1e9', 'soon', '-1'])}"]),
        answer(status=f"{random.choice([100, 204, 206, 304, 399, 418, 500, 503, 599])} Odd"),
        answer(gzip.compress(good), headers=["Content-Encoding: gzip"]),
        answer(gzip.compress(bytes(10**6)), headers=["Content-Encoding: gzip"]),
        answer(gzip.compress(good)[:-9], headers=["Content-Encoding: gzip, br"]),
        redirect(
            random.choice(["/", "/0", "file:///etc/passwd", "//[::1", "http://[", "ftp://x/", "\\\\x", "a" * 5000])
        ),
        redirect(server.url(f"/{random.randrange(ADDRESSES)}")),
        random.choice(LINES).encode() + b"Transfer-Encoding: chunked\r\n\r\n" + random.choice(SIZES) + b"\r\n",
        random.choice(LINES).encode() + b"X: " + random.randbytes(40) + b"\r\n\r\n" + good,
        answer(good, headers=[f"X-{n}: {'y' * 500}" for n in range(random.choice([3, 300]))]),
        mutated(answer(good), random),
    ]
    return random.choice(choices)


def bad_server(place: Place, random: Random) -> Found:
    """A trial: each address answers badly once or often; what is kept is right, and a good server heals the rest."""
    store, refused = Store(place.scratch / "s"), ""
    goods = {f"/{number}": picture(number) for number in range(ADDRESSES)}
    with picture_server() as server:
        rows = [{"item_id": f"i{path[1:]}", "image_urls": [server.url(path)]} for path in goods]
        make_domain(store, "N", rows)
        for path, good in goods.items():
            server.serve(path, *(fault(good, server, random) for _ in range(random.choice([1, 2, 3]))))
        try:
            fetch_images(store, "N", HASTY)
        except AntpipeError as error:
            refused = error.message
        if wrong := kept_wrong(store.domain("N").path):
            return Found(SILENT, "bad answers", wrong, ADDRESSES)
        for path, good in goods.items():
            server.serve(path, answer(good))
        fetch_images(store, "N", PATIENT)
        wanted = {server.url(path): hashlib.sha256(good).hexdigest() for path, good in goods.items()}
    entries = read_ledger(store.domain("N").path / FOLDER)
    lost = [url for url in wanted if entries[url].state != OK]
    if lost or store.domain("N").verify("pictures").status != "fresh":
        return Found(LOST, "good answers after bad ones", f"{lost}: {[entries[url] for url in lost]}", ADDRESSES)
    return Found(REFUSED if refused else WHOLE, "bad answers", refused[:200], ADDRESSES)


FEW = 8  # addresses


@contextmanager
def good_shop(place: Place) -> Iterator[Store]:
    """A store with a domain N whose addresses all answer well."""
    store = Store(place.scratch / "s")
    with picture_server() as server:
        urls = [server.serve(f"/{number}", answer(picture(number))) for number in range(FEW)]
        items = [{"item_id": f"i{n}", "image_urls": [url]} for n, url in enumerate(urls)]
        made = Forked(lambda: make_domain(store, "N", items).name).end()  # threads of libraries do not survive a fork
        assert made.value == "N", made.wrong
        yield store


def fetched(store: Store) -> str:
    """What fetch_images refused with; '' if it did not."""
    try:
        fetch_images(store, "N", PATIENT)
    except (AntpipeError, OSError) as error:
        return str(error)
    return ""


def all_there(store: Store) -> str:
    """What is wrong with the pictures of a domain that were fetched; '' if all are there."""
    domain = store.domain("N")
    states = [entry.state for entry in read_ledger(domain.path / FOLDER).values()]
    if states != [OK] * FEW or domain.verify("pictures").status != "fresh":
        return f"{states}, pictures are {domain.verify('pictures')}"
    return kept_wrong(domain.path) or ("" if len(list((domain.path / FOLDER).glob("??/*"))) == FEW else "some are gone")


def damaged_downloads(place: Place, random: Random) -> Found:
    """A trial: what fetch-images keeps is damaged; the next one refuses it by name, or fetches again what is lost."""
    with good_shop(place) as store:
        assert fetched(store) == ""
        folder = store.domain("N").path
        files = [path for path in sorted((folder / FOLDER).rglob("*")) if path.is_file() and path.stat().st_size]
        chosen = random.choice([folder / FOLDER / LEDGER, folder / FOLDER / LEDGER, random.choice(files)])
        how = damage(folder, chosen.relative_to(folder), random)
        refused = fetched(store)
        if refused:
            if chosen.name not in refused:
                return Found(UNEXPECTED, "damaged downloads", f"{how}: the file is not named: {refused}")
            chosen.unlink()  # as it proposes
            if again := fetched(store):
                return Found(UNEXPECTED, "damaged downloads", f"{how}, then removed: {again}")
        if wrong := all_there(store):
            return Found(SILENT, "damaged downloads", f"{how}: {wrong}")
    return Found(REFUSED if refused else WHOLE, "damaged downloads", f"{how}: {refused[:200]}")


def killed_download(place: Place, random: Random) -> Found:
    """A trial: fetch-images is killed at an operation on files, perhaps by a power cut; the next one ends as always."""
    how, at = random.choice((killed_at, unpowered_at)), random.randint(1, 12 * FEW)
    what = f"fetch-images, {how.__name__} operation {at}"
    with good_shop(place) as store:
        work = Work("fetch-images", "", lambda _, __: fetched(store), *2 * [lambda _: None])
        before = facts_in(store.root)
        ended = ended_at(how, work, store.root, at)
        if (flushed := unpowered_facts(store.root)) is not None:
            cut_power(store.root, before, flushed, random)
        if ended.hung or (ended.wrong and "Counted: " not in ended.wrong):
            return Found(UNEXPECTED, what, ended.wrong)
        after = Forked(lambda: [fetched(store), all_there(store)]).end()
        if after.wrong or any(after.value):
            return Found(LOST, what, f"{after.wrong} {after.value}")
    return Found(WHOLE, what)


def kept_wrong(domain: Path) -> str:
    """A picture in the cache that is not what its name says; '' if there is none."""
    for path in (domain / FOLDER).rglob("*"):
        named = path.is_file() and len(path.stem) == 64
        if named and hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            return f"{path} has other content than its name says"
    return ""
