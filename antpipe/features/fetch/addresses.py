"""Which addresses may be asked for pictures: a catalogue's URLs, and where they redirect to, are untrusted data.

A name is resolved once, all its addresses are checked, and the connection goes to one of those checked addresses, so a
name server that changes its answer (DNS rebinding) gains nothing. This happens where connections are opened, below HTTP
and TLS: no request, first or redirected, gets around it, and Host header, SNI and certificate check still use the name.
Looking at the peer after connecting would be too late, because the mere attempt reveals which ports are open inside.
Proxies from the environment are not used, as they would resolve names themselves.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence

import httpcore2
import httpx2

LONGEST_URL = 4096
MOST_ADDRESSES = 4  # tried per name
LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)({LABEL}\.)*{LABEL}\.?")
TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
LOCAL_TRANSLATED = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
# Reserved after Python 3.11 came out: documentation (RFC 9637) and segment routing (RFC 9602).
NEWLY_RESERVED = (ipaddress.IPv6Network("3fff::/20"), ipaddress.IPv6Network("5f00::/16"))
Resolve = Callable[[str, int], Awaitable[list[str]]]


class RefusedError(Exception):
    """A URL or address that must not be asked. reason: why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_url(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """A URL that may be asked, without its fragment. base: what a relative URL (of a redirect) refers to.

    Raises RefusedError if it is not an http(s) URL, is too long, carries credentials or has an odd host or port.
    """
    if len(text) > LONGEST_URL:
        raise RefusedError(f"URL longer than {LONGEST_URL} characters")
    try:
        url = base.join(text) if base else httpx2.URL(text)
        port, host = url.port, url.raw_host.decode("ascii")
    except (httpx2.InvalidURL, ValueError) as error:  # idna and codecs raise ValueError for odd hosts
        raise RefusedError(f"not a URL: {error}") from None
    if url.scheme not in ("http", "https"):
        raise RefusedError("neither http nor https")
    if url.userinfo:
        raise RefusedError("credentials in the URL")
    if port is not None and not 0 < port < 65_536:
        raise RefusedError(f"no such port: {port}")
    if not (is_ip(host) or HOST_NAME.fullmatch(host)):
        raise RefusedError("not a host name")
    return url.copy_with(fragment=None)


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def why_not_public(address: str) -> str | None:
    """Why an IP address does not belong to the public internet, in one word; None if it does.

    IPv6 addresses that embed IPv4 addresses (mapped, 6to4, NAT64) are judged by the latter.
    """
    ip = ipaddress.ip_address(address)
    inner = _embedded(ip) if isinstance(ip, ipaddress.IPv6Address) else None
    if inner is not None:
        return why_not_public(str(inner))
    kinds = {
        "unspecified": ip.is_unspecified,
        "loopback": ip.is_loopback,
        "link-local": ip.is_link_local,
        "multicast": ip.is_multicast,
        "private": ip.is_private or (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local),
        "reserved": ip.is_reserved or not ip.is_global or any(ip in net for net in (*NEWLY_RESERVED, LOCAL_TRANSLATED)),
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in TRANSLATED:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def require_public(host: str, addresses: Sequence[str]) -> None:
    """Raises RefusedError unless all addresses of a name are public; one with both kinds is a trick or a mistake."""
    for address in addresses:
        why = why_not_public(address)
        if why:
            raise RefusedError(f"{why} address {address}" + ("" if address == host else f" of {host}"))


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a name, each once; odd spellings of an IP address (0x7f.1, 2130706433) are normalised.

    Raises httpcore2.ConnectError if there are none.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"{host}: no address: {getattr(error, 'strerror', None) or error}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections to public addresses; raises RefusedError for others, unless they are allowed."""

    def __init__(self, allow_private: bool, resolve: Resolve = resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that answers; each gets an equal share of the timeout."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"{host}: name not resolved in time") from None
        if not self._allow_private:
            require_public(host, addresses)
        *others, last = addresses[:MOST_ADDRESSES]
        share = timeout and timeout / (len(others) + 1)
        for address in others:
            try:
                return await self._plain.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue  # only the last one's error is reported
        return await self._plain.connect_tcp(last, port, share, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
