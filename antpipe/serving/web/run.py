"""The service as a process: its token, its socket, its server."""

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.runtime.logs import log
from antpipe.serving.web.reloading import Current, Loaded, load
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store

if TYPE_CHECKING:
    import uvicorn

TOKEN = "ANTPIPE_TOKEN"  # nosec B105 # the name of a variable
INSTALL = "pip install 'antpipe[serve]'"
SHORTEST = 16  # characters of a token
MB = 1_000_000
BACKLOG = 2048  # connections that wait to be accepted


def require_libraries() -> None:
    """Raise UsageError unless the libraries of a service are installed."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serve needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} missing", INSTALL
        )


def token_of(config: ServeConfig) -> str | None:
    """The token in the file, else in the environment, else None.

    Raises DataError for a file that cannot be read, UsageError for a token that is short or not of printable ASCII.
    """
    if config.token_file is not None:
        where = f"--token-file {config.token_file}"
        try:
            token = config.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: {error}") from None
    elif TOKEN in os.environ:
        where, token = TOKEN, os.environ[TOKEN].strip()
    else:
        return None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        advice = "python -c 'import secrets; print(secrets.token_urlsafe())'"
        raise UsageError(f"{where}: a token has {SHORTEST} or more printable ASCII characters and no blanks", advice)
    return token


def current_run(store: Store, run: Path, domain: str, config: ServeConfig) -> Current:
    """The run, loaded. Raises DataError as `recommend` does."""
    loaded: Loaded = load(store, run, domain, config.cache * MB)
    return Current(store, run, domain, config.cache * MB, loaded)


def bound_socket(config: ServeConfig) -> socket.socket:
    """A socket that listens at the address and port. Raises UsageError if it is not available."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        where = f"--host {config.host} --port {config.port}: {error.strerror or error}"
        raise UsageError(where, SameCommand({"--port": "0"} if config.port else {"--host": "127.0.0.1"})) from None
    return found


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_server(current: Current, config: ServeConfig, token: str | None) -> "uvicorn.Server":
    """A uvicorn server for sockets from bound_socket."""
    import uvicorn

    from antpipe.serving.web.app import make_app
    from antpipe.serving.web.connections import bounded_protocol

    settings = uvicorn.Config(
        make_app(current, config, token, local_only=token is None and is_loopback(config.host)),
        http=bounded_protocol(config.max_connections, config.timeout),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(config.timeout) + 1,
    )
    return uvicorn.Server(settings)


def run_service(current: Current, config: ServeConfig) -> None:
    """Answer requests until Ctrl-C or SIGTERM. Raises as token_of and bound_socket."""
    token = token_of(config)
    listening = bound_socket(config)
    host, port = listening.getsockname()[:2]
    if token is None and not is_loopback(config.host):
        log.warning(f"--host {config.host}: without a token (--token-file), anyone who reaches it can send requests")
    shown = f"[{host}]" if ":" in host else host
    log.info(f"{current.domain}: serving {current.run} at http://{shown}:{port}/ (Ctrl-C stops it)")
    # After Ctrl-C, uvicorn answers what is in progress and then passes the signal on.
    with listening, suppress(KeyboardInterrupt):
        make_server(current, config, token).run(sockets=[listening])
    log.info("stopped")
