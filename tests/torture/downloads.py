"""Pictures fetched from a server that answers as badly as it can, and again when it has come to its senses."""

import gzip
import hashlib
from pathlib import Path
from random import Random

from antpipe.errors import AntpipeError
from antpipe.features.fetch.ledger import OK, read_ledger
from antpipe.features.fetch_images import FOLDER, fetch_images
from antpipe.settings.features import FetchConfig
from antpipe.store.store import Store
from tests.support.picture_server import Part, PictureServer, answer, picture_server, redirect
from tests.support.shops import make_domain, picture
from tests.torture.mutations import mutated
from tests.torture.trial import LOST, REFUSED, SILENT, WHOLE, Found, Place

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


def kept_wrong(domain: Path) -> str:
    """A picture in the cache that is not what its name says; '' if there is none."""
    for path in (domain / FOLDER).rglob("*"):
        named = path.is_file() and len(path.stem) == 64
        if named and hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
            return f"{path} has other content than its name says"
    return ""
