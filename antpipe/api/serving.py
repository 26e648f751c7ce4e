"""A run as a service over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from antpipe.api.keywords import ServeKeywords
from antpipe.api.settings import given, store_of, takes
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store

if TYPE_CHECKING:
    from antpipe.serving.web.gate import Gate


@takes(ServeConfig)
def serve(
    store: Store | str | Path,
    run: str | Path,
    domain: str,
    *,
    config: str | Path | None = None,
    **settings: Unpack[ServeKeywords],
) -> None:
    """Answer requests for recommendations over HTTP until Ctrl-C (docs/serving.md). Needs `antpipe[serve]`.

    The run is reloaded while it serves if it is trained again or the domain changes. Raises DataError if the run cannot
    be loaded, UsageError if the address is not available or the token is not acceptable.
    """
    from antpipe.serving.web.run import current_run, require_libraries, run_service, token_of

    require_libraries()
    chosen = given(settings, config).resolve(ServeConfig)
    token_of(chosen)  # before the run is loaded
    run_service(current_run(store_of(store), Path(run), domain, chosen), chosen)


@takes(ServeConfig)
def service(
    store: Store | str | Path,
    run: str | Path,
    domain: str,
    *,
    config: str | Path | None = None,
    **settings: Unpack[ServeKeywords],
) -> "Gate":
    """The same as an ASGI application, for a server of your own or a test. Needs `antpipe[serve]`.

    `host`, `port` and `max_connections` are the server's business. Raises as `serve`.

    >>> from starlette.testclient import TestClient
    >>> with TestClient(ant.service("shop", "runs/toys", "Toys")) as client:
    ...     answer = client.post("/recommend", json={"items": ["Toys03"], "k": 2})
    >>> [item["rank"] for item in answer.json()["items"]]
    [1, 2]
    """
    from antpipe.serving.web.run import current_run, require_libraries, token_of

    require_libraries()
    chosen = given(settings, config).resolve(ServeConfig)
    token = token_of(chosen)
    from antpipe.serving.web.app import make_app

    return make_app(current_run(store_of(store), Path(run), domain, chosen), chosen, token)
