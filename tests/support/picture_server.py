"""A web server on loopback that answers as badly as a test wants, and counts its requests."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Part = bytes | float  # bytes to send, or seconds to wait
Route = Callable[[int], Sequence[Part]]


def answer(
    content: bytes = b"", status: str = "200 OK", headers: Sequence[str] = (), length: int | None = None
) -> bytes:
    """A whole HTTP answer. length: what Content-Length claims (the truth by default)."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(content) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(status=status, headers=[f"Location: {to}"])


@dataclass
class PictureServer:
    """hits: requests by path. times: of the requests, in order. headers: of the last request, by lower-case name.

    busy: most requests at the same time.
    """

    port: int
    routes: dict[str, Route] = field(default_factory=dict)
    hits: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    busy: int = 0
    now_busy: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def serve(self, path: str, *answers: bytes | Sequence[Part]) -> str:
        """Answer a path with these in turn, and with the last one from then on; returns its URL."""

        def route(hit: int) -> Sequence[Part]:
            parts = answers[min(hit, len(answers)) - 1]
            return [parts] if isinstance(parts, bytes) else parts

        self.routes[path] = route
        return self.url(path)


def _handler(server: PictureServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with server.lock:
                server.hits[self.path] += 1
                hit = server.hits[self.path]
                server.times.append(time.monotonic())
                server.headers = {name.lower(): value for name, value in self.headers.items()}
                server.now_busy += 1
                server.busy = max(server.busy, server.now_busy)
            route = server.routes.get(self.path)
            try:
                for part in route(hit) if route else [answer(status="404 Not Found")]:
                    if isinstance(part, bytes):
                        self.wfile.write(part)
                        self.wfile.flush()
                        # An incomplete answer closes the connection.
                        whole = part.startswith(b"HTTP/1.1 ") and len(part.partition(b"\r\n\r\n")[2]) == int(
                            part.partition(b"Content-Length: ")[2].partition(b"\r")[0] or -1
                        )
                        self.close_connection = not whole
                    else:
                        time.sleep(part)
            except OSError:  # the client has seen enough
                self.close_connection = True
            finally:
                with server.lock:
                    server.now_busy -= 1

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # some answers never end

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may hang up."""


@contextmanager
def picture_server() -> Iterator[PictureServer]:
    """A running server; it listens on all of 127.0.0.0/8, so that 127.0.0.1, 127.0.0.2 … are different hosts."""
    listening = _Quiet(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False)
    listening.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.server_address = ("0.0.0.0", 0)
    listening.server_bind()
    listening.server_activate()
    server = PictureServer(listening.server_address[1])
    listening.RequestHandlerClass = _handler(server)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
