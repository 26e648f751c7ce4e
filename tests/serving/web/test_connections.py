"""Connections to a server of this machine: how many, and how long they may be silent."""

import http.client
import json
import socket
import time
from urllib.parse import urlsplit

from antpipe.settings.serving import ServeConfig
from tests.serving.web.conftest import Serving


def post(url: str, body: object) -> tuple[int, object]:
    address = urlsplit(url)
    assert address.hostname is not None
    with_port = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    try:
        with_port.request("POST", "/recommend", json.dumps(body), {"content-type": "application/json"})
        answer = with_port.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        with_port.close()


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=20)


def received(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def test_a_request_is_answered_over_a_socket(serving: Serving) -> None:
    with serving() as url:
        status, found = post(url, {"items": ["i03"], "k": 3})
    assert status == 200
    assert isinstance(found, dict)
    assert len(found["items"]) == 3


def test_a_flood_of_connections_is_refused_and_the_service_goes_on(serving: Serving) -> None:
    with serving(config=ServeConfig(port=0, max_connections=20, timeout=20)) as url:
        flood = [connect(url) for _ in range(200)]
        answers = [received(connection) for connection in flood[20:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
        assert json.loads(answers[0].partition(b"\r\n\r\n")[2])["next"] == "ask again in a second"
        for connection in flood:
            connection.close()
        deadline = time.monotonic() + 20
        while (found := post(url, {"items": ["i03"]})[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert found == 200


def test_a_connection_that_sends_nothing_is_closed(serving: Serving) -> None:
    with serving(config=ServeConfig(port=0, timeout=0.2)) as url:
        silent, half = connect(url), connect(url)
        half.sendall(b"POST /recommend HTTP/1.1\r\nhost: localhost\r\n")
        began = time.monotonic()
        assert received(silent) == received(half) == b""
        assert time.monotonic() - began < 10


def test_a_body_that_does_not_come_is_refused(serving: Serving) -> None:
    with serving(config=ServeConfig(port=0, timeout=0.2)) as url:
        connection = connect(url)
        connection.sendall(b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert received(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_is_too_long_is_refused_while_it_comes(serving: Serving) -> None:
    with serving(config=ServeConfig(port=0, max_body=2000)) as url:
        connection = connect(url)
        connection.sendall(b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            connection.sendall(b"400\r\n" + b"x" * 0x400 + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 413 ")
