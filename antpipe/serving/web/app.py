"""The service as an ASGI application: its routes, and what lives as long as it does."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from antpipe import __version__
from antpipe.serving.web import answers
from antpipe.serving.web.answers import RefusedError
from antpipe.serving.web.batching import Batcher, Best, Question, answer_together
from antpipe.serving.web.gate import Gate
from antpipe.serving.web.messages import (
    SEARCH_LENGTH,
    Details,
    FoundAnswer,
    RankedAnswer,
    RecommendRequest,
    Refusal,
    SimilarRequest,
)
from antpipe.serving.web.metrics import Metrics
from antpipe.serving.web.reloading import Current
from antpipe.settings.serving import ServeConfig

T = TypeVar("T")
SCHEMA = "see /openapi.json"
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": about}
    for status, about in (
        (400, "not JSON"),
        (401, "no valid token"),
        (404, "no such user or item"),
        (413, "the request is too large"),
        (422, "a field is wrong, or nothing passes the filters"),
        (503, "too many requests are in progress"),
        (504, "no answer in time"),
    )
}


class Json(Response):
    """Plain data as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


class Service:
    """What the routes share. batcher: there while the application runs. slow: a thread for what would delay batches."""

    batcher: Batcher[Question, Best]

    def __init__(self, current: Current, limits: ServeConfig) -> None:
        self.current, self.limits = current, limits
        self.metrics = Metrics()
        self.slow = ThreadPoolExecutor(1, "antpipe-slow")

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that takes milliseconds or more, computed outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.slow, function, *arguments)

    async def recommend(self, asked: RecommendRequest) -> dict[str, Any]:
        answers.require_k(asked.k, self.limits.max_k)
        held, offers = self.current.loaded.held, self.current.loaded.offers
        slow = asked.where is not None or asked.exclude or asked.only is not None or asked.new_items
        searched = (
            await self.aside(answers.question, held, offers, asked) if slow else answers.question(held, offers, asked)
        )
        best = await self.batcher.ask(searched)
        if asked.explain:
            return await self.aside(answers.recommended, asked, searched, best)
        return answers.recommended(asked, searched, best)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Answer in batches and follow changes of the run until the application ends."""
        limits = self.limits
        self.batcher = Batcher(answer_together, limits.batch, limits.wait / 1000, self.metrics.batches.add)
        following = asyncio.create_task(self.current.follow(limits.reload_every, self._loaded))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self.batcher.close()
            self.slow.shutdown(wait=False, cancel_futures=True)

    def _loaded(self, outcome: str) -> None:
        self.metrics.loads[outcome] += 1


def make_app(current: Current, limits: ServeConfig, token: str | None = None, *, local_only: bool = False) -> Gate:
    """The application. token: what requests must carry; None: nothing. local_only: see Gate."""
    service = Service(current, limits)
    app = FastAPI(
        title="antpipe",
        version=__version__,
        summary=f"What to show next in {current.domain}",
        lifespan=service.running,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    add_asking(app, service)
    add_watching(app, service)
    add_page(app)
    add_errors(app)
    return Gate(app, limits, token, service.metrics, local_only)


def add_asking(app: FastAPI, service: Service) -> None:
    """The routes that answer from the run and the catalogue."""

    @app.post("/recommend", responses={200: {"model": RankedAnswer}, **REFUSALS})
    async def recommend(asked: RecommendRequest) -> Json:
        """The next items for a user or after a history."""
        return Json(await service.recommend(asked))

    @app.post("/similar", responses={200: {"model": RankedAnswer}, **REFUSALS})
    async def similar(asked: SimilarRequest) -> Json:
        """The items most like one item."""
        answers.require_k(asked.k, service.limits.max_k)
        loaded = service.current.loaded
        return Json(await service.aside(answers.similar, loaded.held, loaded.offers, asked))

    @app.get("/items", responses={200: {"model": FoundAnswer}, **REFUSALS})
    async def items(search: Annotated[str, Query(min_length=1, max_length=SEARCH_LENGTH)]) -> Json:
        """Items whose titles contain all words of a search."""
        return Json(await service.aside(answers.search, service.current.loaded.held, search))

    @app.get("/items/{item_id:path}", responses={200: {"model": Details}, **REFUSALS})
    async def item(item_id: str) -> Json:
        """What the catalogue says about an item."""
        return Json(answers.described(service.current.loaded.held, item_id))

    @app.get("/pictures/{item_id:path}", responses={200: {"content": {"image/*": {}}}, **REFUSALS})
    async def picture(item_id: str) -> Response:
        """The picture of an item whose `picture` is a path."""
        content, kind = await service.aside(answers.picture, service.current.loaded.held, item_id)
        headers = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'"}
        return Response(content, media_type=kind, headers=headers)


def add_watching(app: FastAPI, service: Service) -> None:
    """The routes for those who run the service."""

    @app.get("/health")
    async def health() -> Json:
        """The service is running."""
        return Json({"status": "ok"})

    @app.get("/ready")
    async def ready(request: Request) -> Json:
        """A run is loaded. `reload_failed`: why a newer one could not be loaded (shown only with the token)."""
        current = service.current
        found: dict[str, Any] = {"ready": True, "reload": "failed" if current.failure else "ok"}
        if request.scope["antpipe_authorised"]:
            held = current.loaded.held
            found |= {"run": held.fingerprint, "domain": current.domain, "items": len(held.item_ids)}
            found |= {"users": len(held.histories), "reload_failed": current.failure or None}
        return Json(found)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures in the text format of Prometheus."""
        held = service.current.loaded.held
        text = service.metrics.text(len(held.item_ids), len(held.histories))
        return Response(text, media_type="text/plain; version=0.0.4")


def add_page(app: FastAPI) -> None:
    """A page to try the service by hand. It may load nothing but pictures, and run nothing but its own script."""
    page = files("antpipe.serving.web").joinpath("page.html").read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    policy = (
        f"default-src 'none'; script-src {hash_of(script)}; style-src {hash_of(style)}; connect-src 'self'; "
        "img-src https: http: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def hash_of(inline: str) -> str:
    """An inline script or style, as a policy names it (W3C Content Security Policy Level 3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


def add_errors(app: FastAPI) -> None:
    """All errors are answered with `what` is wrong and what to do `next`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Json:
        return Json({"what": error.what, "next": error.next_step}, error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Json:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return Json({"what": "the request is not JSON", "next": SCHEMA}, 400)
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        why = "no such field" if first["type"] == "extra_forbidden" else first["msg"]
        return Json({"what": f"{where or 'the request'}: {why}", "next": SCHEMA}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Json:
        what = f"{request.method} {request.url.path}: {error.detail}"
        return Json({"what": what, "next": SCHEMA}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Json:
        return Json({"what": "unexpected error", "next": "see the log of the service"}, 500)
