"""`antpipe serve`: its flags reach the service, and what it refuses comes with a command that helps."""

from pathlib import Path

import pytest

from antpipe.serving.web import run as service
from antpipe.serving.web.reloading import Current
from antpipe.settings.serving import ServeConfig
from tests.support.commands import Outcome, run


def serve(shop: Path, *more: str) -> Outcome:
    return run("serve", "--run", shop / "runs" / "plain", "--domains", "Shop", "--store", shop / "store", *more)


def test_flags_and_run_reach_the_service(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[Current, ServeConfig]] = []
    monkeypatch.setattr(service, "run_service", lambda *given: served.append(given))
    outcome = serve(shop, "--port", "0", "--max-k", "7", "--timeout", "2.5")
    assert outcome.code == 0, outcome.err
    [(current, config)] = served
    assert current.loaded.held.item_ids[0] == "i00"
    assert config == ServeConfig(port=0, max_k=7, timeout=2.5)


def test_a_port_in_use_is_refused_with_another(shop: Path) -> None:
    with service.bound_socket(ServeConfig(port=0)) as first:
        outcome = serve(shop, "--port", str(first.getsockname()[1]))
    assert outcome.code == 2
    assert "in use" in outcome.err
    assert outcome.err.splitlines()[-1].endswith("--port 0")


def test_a_weak_token_is_refused_before_anything_is_loaded(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTPIPE_TOKEN", "short")
    monkeypatch.setattr(service, "load", None)
    outcome = serve(shop)
    assert outcome.code == 2
    assert "ANTPIPE_TOKEN: a token has 16 or more" in outcome.err


def test_what_is_not_installed_is_named(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    outcome = serve(shop)
    assert outcome.code == 2
    assert "serve needs uvicorn, which is missing" in outcome.err
    assert outcome.err.splitlines()[-1] == "antpipe: next: pip install 'antpipe[serve]'"


def test_a_run_that_is_not_there_is_refused(shop: Path, tmp_path: Path) -> None:
    outcome = run("serve", "--run", tmp_path / "none", "--domains", "Shop", "--store", shop / "store")
    assert outcome.code == 3
    assert "no finished run here" in outcome.err


def test_an_address_for_other_machines_without_a_token_is_warned_of(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped:
        def run(self, sockets: object) -> None:
            assert sockets
            raise KeyboardInterrupt

    monkeypatch.setattr(service, "make_server", lambda *_: Stopped())
    open_to_all = serve(shop, "--host", "0.0.0.0", "--port", "0")
    assert open_to_all.code == 0
    assert "without a token (--token-file), anyone who reaches it can send requests" in open_to_all.err
    assert open_to_all.err.splitlines()[-1] == "antpipe: stopped"
    monkeypatch.setenv("ANTPIPE_TOKEN", "a-token-of-the-shop")
    assert "anyone who reaches" not in serve(shop, "--host", "0.0.0.0", "--port", "0").err
    assert "anyone who reaches" not in serve(shop, "--port", "0").err
