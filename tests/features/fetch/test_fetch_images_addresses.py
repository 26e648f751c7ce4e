"""Which URLs and addresses fetch-images asks: the rules as functions, and connections made by name."""

import asyncio
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.features.fetch.addresses import (
    CheckedNetwork,
    RefusedError,
    parse_url,
    require_public,
    resolve,
    why_not_public,
)

PRIVATE = {
    "0.0.0.0": "unspecified",
    "::": "unspecified",
    "127.0.0.1": "loopback",
    "127.255.0.9": "loopback",
    "::1": "loopback",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
    "10.0.0.1": "private",
    "172.16.3.4": "private",
    "192.168.1.1": "private",
    "fc00::1": "private",
    "fd12::1": "private",
    "fec0::1": "private",
    "192.0.2.1": "private",
    "198.18.0.1": "private",
    "2001:db8::1": "private",
    "255.255.255.255": "private",
    "240.0.0.1": "private",
    "100.64.0.1": "reserved",
    "64:ff9b:1::1": "reserved",
    "3fff::1": "reserved",
    "5f00::1": "reserved",
    "::7f00:1": "reserved",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:a00:1": "private",
    "2002:7f00:1::": "loopback",
    "64:ff9b::a9fe:a9fe": "link-local",
}
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::", "64:ff9b::808:808"]


@pytest.mark.parametrize(("address", "kind"), PRIVATE.items())
def test_an_address_that_is_not_public_is_named_by_its_kind(address: str, kind: str) -> None:
    assert why_not_public(address) == kind


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_let_through(address: str) -> None:
    assert why_not_public(address) is None


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_the_same_in_all_its_ipv6_forms(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    forms = [ipaddress.IPv6Address(start | number) for start in (0xFFFF << 32, 0x64FF9B << 96)]
    forms.append(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))
    assert {why_not_public(str(form)) is None for form in forms} == {why_not_public(str(plain)) is None}


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_is_let_through(address: Any) -> None:
    mapped = isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in TRANSLATED)
    if not mapped and (address.is_private or address.is_loopback or address.is_link_local or address.is_multicast):
        assert why_not_public(str(address))


TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    with pytest.raises(RefusedError, match=r"loopback address 127\.0\.0\.1 of shop\.example"):
        require_public("shop.example", ["8.8.8.8", "127.0.0.1"])
    require_public("shop.example", ["8.8.8.8", "2606:4700::1111"])


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0", "localhost"])
def test_odd_spellings_of_an_address_are_judged_by_their_meaning(host: str) -> None:
    addresses = asyncio.run(resolve(host, 80))
    with pytest.raises(RefusedError, match=r"loopback|unspecified"):
        require_public(host, addresses)


# -- URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://shop.example/a.jpg", "neither http nor https"),
        ("file:///etc/passwd", "neither http nor https"),
        ("javascript:alert(1)", "neither http nor https"),
        ("data:image/png;base64,AAAA", "neither http nor https"),
        ("//shop.example/a.jpg", "neither http nor https"),
        ("a.jpg", "neither http nor https"),
        ("http://user:secret@shop.example/", "credentials in the URL"),
        ("http://user@shop.example/", "credentials in the URL"),
        ("http:///a.jpg", "not a host name"),
        ("http://shop example/a.jpg", "not a host name"),
        ("http://shop..example/", "not a host name"),
        ("http://a\\@127.0.0.1/", "credentials in the URL"),
        ("http://shop\\x/", "not a host name"),
        ("http://-shop/", "not a host name"),
        (f"http://{'a' * 64}.example/", "not a host name"),
        ("http://shop.example:0/", "no such port: 0"),
        ("http://shop.example:99999/", "no such port: 99999"),
        ("http://shop.example:abc/", "not a URL"),
        ("http://shop\n.example/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://shop.example/" + "a" * 5000, "longer than 4096"),
    ],
)
def test_odd_urls_are_refused(url: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        parse_url(url)


def test_a_url_keeps_its_escapes_and_loses_its_fragment() -> None:
    url = parse_url("HTTPS://Shop.Example/I/51+a%2B b.jpg?x=1#top")
    assert str(url) == "https://shop.example/I/51+a%2B%20b.jpg?x=1"


def test_a_redirect_is_joined_with_where_it_came_from() -> None:
    base = httpx2.URL("https://shop.example/a/b.jpg")
    assert str(parse_url("../c.jpg", base)) == "https://shop.example/c.jpg"
    assert str(parse_url("//other.example/c", base)) == "https://other.example/c"
    with pytest.raises(RefusedError, match="neither http"):
        parse_url("file:///etc/passwd", base)


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_a_valid_url_or_refused(text: str, prefixed: bool) -> None:
    try:
        url = parse_url("http://" + text if prefixed else text)
    except RefusedError:
        return
    assert url.scheme in ("http", "https")
    assert url.raw_host
    assert not url.userinfo


# -- connections ----------------------------------------------------------------------------------------------


def names(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[str]:
    """Let the name server give these answers in turn (the last for ever); returns what it is asked."""
    asked: list[str] = []

    def instead(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", instead)
    return asked


def test_a_name_server_that_changes_its_answer_is_asked_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was checked is the one connected to."""
    connected: list[str] = []

    async def connect(_self: Any, host: str, *_: Any) -> httpcore2.AsyncNetworkStream:
        connected.append(host)
        return httpcore2.AsyncMockStream([])

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    asked = names(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    asyncio.run(CheckedNetwork(allow_private=False).connect_tcp("shop.example", 80))
    assert (asked, connected) == (["shop.example"], ["93.184.216.34"])
    with pytest.raises(RefusedError, match="loopback"):
        asyncio.run(CheckedNetwork(allow_private=False).connect_tcp("shop.example", 80))
    assert connected == ["93.184.216.34"]


def test_the_next_address_is_tried_if_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as listening:
        port = listening.getsockname()[1]
        names(monkeypatch, ["127.0.0.3", "127.0.0.2"])

        async def connect() -> Any:
            stream = await CheckedNetwork(allow_private=True).connect_tcp("shop.example", port, timeout=4.0)
            peer = stream.get_extra_info("server_addr")
            await stream.aclose()
            return peer

        assert asyncio.run(connect()) == ("127.0.0.2", port)


def test_a_name_without_an_address_is_a_connection_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", instead)
    with pytest.raises(httpcore2.ConnectError, match=r"shop\.example: no address: Name or service not known"):
        asyncio.run(resolve("shop.example", 80))


def test_certificates_are_checked_for_the_name_not_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=shop.example",
        "-addext",
        "subjectAltName=DNS:shop.example",
        "-out",
        str(certificate),
        "-keyout",
        str(key),
    ]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here to make a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names(monkeypatch, ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    seen: list[bytes] = []
    indicated: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: indicated.append(name)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    async def ask(host: str, port: int) -> bytes:
        network = CheckedNetwork(allow_private=True)
        async with httpcore2.AsyncConnectionPool(network_backend=network) as pool:
            return (await pool.request("GET", f"https://{host}:{port}/")).content

    async def talk() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            assert await ask("shop.example", port) == b"hi"
            with pytest.raises(httpcore2.ConnectError, match="certificate"):
                await ask("other.example", port)

    asyncio.run(talk())
    assert indicated == ["shop.example", "other.example"]
    assert b"Host: shop.example:" in seen[0]
