"""What stands before the routes: the token, and bounds on size, number and time."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from antpipe.errors import DataError, UsageError
from antpipe.runtime.logs import log
from antpipe.serving.web.app import make_app
from antpipe.serving.web.gate import Gate, Message
from antpipe.serving.web.metrics import Metrics
from antpipe.serving.web.run import bound_socket, is_loopback, token_of
from antpipe.settings.serving import ServeConfig
from tests.serving.web.conftest import Loads, current_of

TOKEN = "correct horse battery".replace(" ", "-")
SMALL = ServeConfig(max_body=1000, max_requests=2, timeout=0.1)


async def fine(_: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """An application that answers with the length of the body."""
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


async def passed(gate: Gate, parts: Iterable[bytes] = (b"",), headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """Status and body of one request through a gate. The body comes in parts; after the last one, nothing comes."""
    left, sent = list(parts), []

    async def receive() -> Message:
        if not left:
            await asyncio.sleep(60)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left) or part == b"unfinished"}

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await gate({"type": "http", "method": "POST", "path": "/recommend", "headers": named}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def gate(app: Any = fine, limits: ServeConfig = SMALL, token: str | None = None) -> Gate:
    return Gate(app, limits, token, Metrics())


def test_a_body_up_to_the_limit_passes_whole() -> None:
    assert asyncio.run(passed(gate(), [b"x" * 600, b"y" * 400])) == (200, 1000)


def test_a_longer_body_is_refused_while_it_comes() -> None:
    status, found = asyncio.run(passed(gate(), [b"x" * 600, b"y" * 401, b"never read"]))
    assert (status, found["what"]) == (413, "more than 1000 bytes")


@pytest.mark.parametrize("length", ["1001", "9" * 30])
def test_a_longer_body_is_refused_before_it_comes(length: str) -> None:
    assert asyncio.run(passed(gate(), [], {"content-length": length}))[0] == 413


def test_a_request_that_does_not_arrive_in_time_is_refused() -> None:
    assert asyncio.run(passed(gate(), [b"unfinished"]))[0] == 408


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async def slow(*_: Any) -> None:
        await asyncio.sleep(60)

    assert asyncio.run(passed(gate(slow)))[0] == 504


def test_a_bug_tells_the_request_nothing_and_the_log_everything(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret")

    with caplog.at_level("ERROR", logger=log.name):
        status, found = asyncio.run(passed(gate(broken)))
    assert (status, found["what"]) == (500, "unexpected error")
    assert "secret" in caplog.text


def test_more_requests_than_allowed_are_refused_at_once_and_counted() -> None:
    async def main() -> tuple[list[int], Metrics]:
        go_on = asyncio.Event()

        async def waiting(*given: Any) -> None:
            await go_on.wait()
            await fine(*given)

        door = gate(waiting, ServeConfig(max_requests=2))
        first = [asyncio.create_task(passed(door)) for _ in range(2)]
        await asyncio.sleep(0)
        third, _ = await passed(door)
        go_on.set()
        return [third, *(status for status, _ in await asyncio.gather(*first))], door.metrics

    statuses, metrics = asyncio.run(main())
    assert statuses == [503, 200, 200]
    assert metrics.in_progress == 0
    assert metrics.requests == {("other", 503): 1, ("other", 200): 2}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer wrong", 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
    ],
)
def test_only_the_token_opens_the_gate(header: str | None, status: int) -> None:
    headers = {} if header is None else {"authorization": header}
    assert asyncio.run(passed(gate(token=TOKEN), headers=headers))[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("", 421),
    ],
)
def test_without_a_token_only_names_of_loopback_are_answered(host: str, status: int) -> None:
    door = Gate(fine, SMALL, None, Metrics(), local_only=True)
    assert asyncio.run(passed(door, headers={"host": host}))[0] == status


def test_page_and_health_need_no_token_and_readiness_says_less_without(shop: Path, loaded: Loads) -> None:
    with TestClient(make_app(current_of(shop, loaded("strong")), ServeConfig(), TOKEN)) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 200
        assert client.get("/ready").json() == {"ready": True, "reload": "ok"}
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/ready", headers=headers).json()["domain"] == "Shop"
        for path in ("/metrics", "/openapi.json", "/items/i01", "/items?search=a"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers=headers).status_code == 200, path


def test_ten_megabytes_are_refused(shop: Path, loaded: Loads) -> None:
    with TestClient(make_app(current_of(shop, loaded("strong")), ServeConfig())) as client:
        answer = client.post("/recommend", json={"items": ["x" * 10_000_000]})
        assert answer.status_code == 413
        assert answer.json() == {"what": "more than 1000000 bytes", "next": "send a smaller request"}


# -- token and address ------------------------------------------------------------------------------------------------


def test_the_token_of_the_file_comes_before_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token_of(ServeConfig()) is None
    monkeypatch.setenv("ANTPIPE_TOKEN", "of-the-environment")
    assert token_of(ServeConfig()) == "of-the-environment"
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    assert token_of(ServeConfig(token_file=tmp_path / "token")) == TOKEN


@pytest.mark.parametrize("token", ["", "short", "has blanks in its middle", "schlüsselschlüssel"])
def test_a_weak_token_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    with pytest.raises(UsageError, match="16 or more printable ASCII characters"):
        token_of(ServeConfig(token_file=tmp_path / "token"))


def test_a_token_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--token-file .*none"):
        token_of(ServeConfig(token_file=tmp_path / "none"))


def test_a_port_in_use_is_refused_with_a_command_that_works() -> None:
    with bound_socket(ServeConfig(port=0)) as first:
        first.listen()
        with pytest.raises(UsageError, match="in use") as refused:
            bound_socket(ServeConfig(port=first.getsockname()[1]))
    assert str(refused.value.next_command) == "the same command with --port 0"


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("shop", False)]
)
def test_loopback_addresses_are_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
