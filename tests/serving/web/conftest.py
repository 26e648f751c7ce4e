"""The service of the shop: in process, and behind a socket of this machine."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install 'antpipe[serve]'")
pytest.importorskip("uvicorn", reason="pip install 'antpipe[serve]'")
from starlette.testclient import TestClient

from antpipe.serving.web.app import make_app
from antpipe.serving.web.held import HeldRun, hold
from antpipe.serving.web.reloading import Current, Loaded, load
from antpipe.serving.web.run import bound_socket, make_server
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store

CACHE = 1_000_000
ANY_PORT = ServeConfig(port=0)
Loads = Callable[[str], Loaded]
Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def held(shop: Path) -> Callable[[str], HeldRun]:
    """Holds a run by name, once."""
    return cache(lambda name: hold(Store(shop / "store"), shop / "runs" / name, "Shop"))


@pytest.fixture(scope="session")
def loaded(shop: Path) -> Loads:
    """Loads a run by name, once."""
    return cache(lambda name: load(Store(shop / "store"), shop / "runs" / name, "Shop", CACHE))


def current_of(shop: Path, loaded: Loaded) -> Current:
    return Current(Store(shop / "store"), shop / "runs" / "strong", "Shop", CACHE, loaded)


@pytest.fixture(scope="session")
def client(shop: Path, loaded: Loads) -> Iterator[TestClient]:
    """The service of the run `strong`, without a token, with at most 20 items per answer."""
    with TestClient(make_app(current_of(shop, loaded("strong")), ServeConfig(max_k=20))) as found:
        yield found


@pytest.fixture
def serving(shop: Path, loaded: Loads) -> Serving:
    """Serves a loaded run at a free port: `with serving(run, config, token) as url`."""

    @contextmanager
    def serve(run: Loaded | None = None, config: ServeConfig = ANY_PORT, token: str | None = None) -> Iterator[str]:
        server = make_server(current_of(shop, run or loaded("strong")), config, token)
        listening = bound_socket(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return serve
