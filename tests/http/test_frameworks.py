"""The response cache on Starlette, FastAPI, Litestar, Quart and a bare ASGI callable: the same must hold on each."""

import gzip
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import litestar
import pytest
import quart
from fastapi import FastAPI
from fastapi import WebSocket as FastApiSocket
from fastapi.responses import PlainTextResponse as FastApiText
from litestar.datastructures import State
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, Policy, cache_response
from asynctag.testing import FakeClock
from tests.http import driver
from tests.http.driver import Call, Message, all_blocked, running
from tests.http.serving import Connection, serve

pytestmark = pytest.mark.anyio

DECLARED = {"cache-control": "public, s-maxage=60"}
LONG = "long " * 1000


def request(path: str, **more: Any) -> Call:
    """A request whose client hears no more once the response is out, as servers say it: Litestar's streams wait for
    that."""
    call = driver.request(path, **more)

    def look(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            call.disconnect()

    call.on_message = look
    return call


async def ask(app: Any, path: str = "/", **more: Any) -> Call:
    """Send a request and wait for its end."""
    with anyio.fail_after(10):
        return await request(path, **more).run(app)


class Site:
    """What the pages of an application say, and how often each was made."""

    def __init__(self, name: str = "site", *, headers: dict[str, str] | None = None) -> None:
        self.name = name
        self.headers = headers or {}
        self.runs: Counter[str] = Counter()
        self.lived: list[str] = []
        #: Event streams wait for it between their two events.
        self.go = anyio.Event()
        #: Products and streams wait for it, where it is there.
        self.hold: anyio.Event | None = None

    def _run(self, page: str) -> str:
        self.runs[page] += 1
        return f"run {self.runs[page]}"

    async def product(self, product_id: int, size: str) -> str:
        add_tags(f"product:{product_id}")
        text = f"{self.name}: product {product_id} in {size}, {self._run('product')}"
        if self.hold is not None:
            await self.hold.wait()
        return text

    def greeting(self, language: str) -> str:
        return f"{language}, {self._run('greeting')}"

    def where(self, root_path: str) -> str:
        return f"{self.name} at {root_path}, {self._run('where')}"

    def long(self) -> str:
        return f"{LONG}{self._run('long')}"

    async def parts(self) -> AsyncIterator[bytes]:
        yield b"first, "
        if self.hold is not None:
            await self.hold.wait()
        add_tags("streamed")
        yield self._run("stream").encode()

    def missing(self) -> str:
        return self._run("missing")

    async def events(self) -> AsyncIterator[bytes]:
        yield b"data: first\n\n"
        await self.go.wait()
        yield f"data: {self._run('events')}\n\n".encode()


Decorate = Callable[..., Callable[[Any], Any]]


def undecorated(*args: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda endpoint: endpoint


def starlette_app(site: Site, decorate: Decorate = undecorated) -> Any:
    @decorate(60, public=True, tags=["product:{product_id}"])
    async def product(request: Request) -> Response:
        size = request.query_params.get("size", "m")
        return PlainTextResponse(await site.product(int(request.path_params["product_id"]), size), headers=site.headers)

    @decorate(60, public=True)
    async def greeting(request: Request) -> Response:
        language = request.headers.get("accept-language", "")
        return PlainTextResponse(site.greeting(language), headers={**site.headers, "vary": "accept-language"})

    @decorate(60, public=True)
    async def where(request: Request) -> Response:
        return PlainTextResponse(site.where(request.scope.get("root_path", "")), headers=site.headers)

    @decorate(60, public=True)
    async def long(request: Request) -> Response:
        return PlainTextResponse(site.long(), headers=site.headers)

    @decorate(60, public=True)
    async def stream(request: Request) -> Response:
        return StreamingResponse(site.parts(), headers=site.headers)

    @decorate(60, public=True)
    async def missing(request: Request) -> Response:
        return PlainTextResponse(site.missing(), status_code=404, headers=site.headers)

    @decorate(60, public=True)
    async def events(request: Request) -> Response:
        return StreamingResponse(site.events(), media_type="text/event-stream", headers=site.headers)

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        site.lived.append("startup")
        yield
        site.lived.append("shutdown")

    return Starlette(
        routes=[
            Route("/products/{product_id}", product),
            Route("/greeting", greeting),
            Route("/where", where),
            Route("/long", long),
            Route("/stream", stream),
            Route("/missing", missing),
            Route("/events", events),
            WebSocketRoute("/echo", echo),
        ],
        lifespan=lifespan,
    )


def fastapi_app(site: Site, decorate: Decorate = undecorated) -> Any:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        site.lived.append("startup")
        yield
        site.lived.append("shutdown")

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.api_route("/products/{product_id}", methods=["GET", "HEAD"])
    @decorate(60, public=True, tags=["product:{product_id}"])
    async def product(product_id: int, size: str = "m") -> FastApiText:
        return FastApiText(await site.product(product_id, size), headers=site.headers)

    @app.get("/greeting")
    @decorate(60, public=True)
    async def greeting(request: Request) -> FastApiText:
        language = request.headers.get("accept-language", "")
        return FastApiText(site.greeting(language), headers={**site.headers, "vary": "accept-language"})

    @app.get("/where")
    @decorate(60, public=True)
    async def where(request: Request) -> FastApiText:
        return FastApiText(site.where(request.scope.get("root_path", "")), headers=site.headers)

    @app.api_route("/long", methods=["GET", "HEAD"])
    @decorate(60, public=True)
    async def long() -> FastApiText:
        return FastApiText(site.long(), headers=site.headers)

    @app.get("/stream")
    @decorate(60, public=True)
    async def stream() -> StreamingResponse:
        return StreamingResponse(site.parts(), headers=site.headers)

    @app.get("/missing")
    @decorate(60, public=True)
    async def missing() -> FastApiText:
        return FastApiText(site.missing(), status_code=404, headers=site.headers)

    @app.get("/events")
    @decorate(60, public=True)
    async def events() -> StreamingResponse:
        return StreamingResponse(site.events(), media_type="text/event-stream", headers=site.headers)

    @app.websocket("/echo")
    async def echo(websocket: FastApiSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")

    return app


def litestar_app(site: Site) -> Any:
    def text(content: str, **more: Any) -> litestar.Response[str]:
        more["headers"] = {**site.headers, **more.get("headers", {})}
        return litestar.Response(content, media_type="text/plain", **more)

    @litestar.route("/products/{product_id:int}", http_method=["GET", "HEAD"])
    async def product(request: litestar.Request[Any, Any, State]) -> litestar.Response[str]:
        size = request.query_params.get("size", "m")
        return text(await site.product(request.path_params["product_id"], size))

    @litestar.get("/greeting")
    async def greeting(request: litestar.Request[Any, Any, State]) -> litestar.Response[str]:
        language = request.headers.get("accept-language", "")
        return text(site.greeting(language), headers={"vary": "accept-language"})

    @litestar.get("/where")
    async def where(request: litestar.Request[Any, Any, State]) -> litestar.Response[str]:
        return text(site.where(request.scope.get("root_path", "")))

    @litestar.route("/long", http_method=["GET", "HEAD"])
    async def long() -> litestar.Response[str]:
        return text(site.long())

    @litestar.get("/stream")
    async def stream() -> litestar.response.Stream:
        return litestar.response.Stream(site.parts(), headers=site.headers)

    @litestar.get("/missing")
    async def missing() -> litestar.Response[str]:
        return text(site.missing(), status_code=404)

    @litestar.get("/events")
    async def events() -> litestar.response.Stream:
        return litestar.response.Stream(site.events(), media_type="text/event-stream", headers=site.headers)

    @litestar.websocket_listener("/echo")
    async def echo(data: str) -> str:
        return f"echo {data}"

    return litestar.Litestar(
        [product, greeting, where, long, stream, missing, events, echo],
        on_startup=[lambda: site.lived.append("startup")],
        on_shutdown=[lambda: site.lived.append("shutdown")],
        openapi_config=None,
        logging_config=None,
    )


def quart_app(site: Site) -> Any:
    app = quart.Quart("site")

    def text(content: Any, **more: Any) -> quart.Response:
        more["headers"] = {**site.headers, **more.get("headers", {})}
        return quart.Response(content, **{"mimetype": "text/plain", **more})

    @app.route("/products/<int:product_id>")
    async def product(product_id: int) -> quart.Response:
        return text(await site.product(product_id, quart.request.args.get("size", "m")))

    @app.route("/greeting")
    async def greeting() -> quart.Response:
        language = quart.request.headers.get("accept-language", "")
        return text(site.greeting(language), headers={"vary": "accept-language"})

    @app.route("/where")
    async def where() -> quart.Response:
        return text(site.where(quart.request.scope.get("root_path", "")))

    @app.route("/long")
    async def long() -> quart.Response:
        return text(site.long())

    @app.route("/stream")
    async def stream() -> quart.Response:
        return text(site.parts())

    @app.route("/missing")
    async def missing() -> quart.Response:
        return text(site.missing(), status=404)

    @app.route("/events")
    async def events() -> quart.Response:
        return text(site.events(), mimetype="text/event-stream")

    @app.websocket("/echo")
    async def echo() -> None:
        while True:
            await quart.websocket.send(f"echo {await quart.websocket.receive()}")

    @app.before_serving
    async def startup() -> None:
        site.lived.append("startup")

    @app.after_serving
    async def shutdown() -> None:
        site.lived.append("shutdown")

    return app


class BareApp:
    """A site as nothing but an ASGI callable."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._page(scope, send)
        elif scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                self.site.lived.append(step)
                await send({"type": f"lifespan.{step}.complete"})
        else:
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": f"echo {message['text']}"})

    async def _page(self, scope: Any, send: Any) -> None:
        site, sent = self.site, dict(scope["headers"])
        status, headers = 200, dict(site.headers)
        root_path = scope.get("root_path", "")
        parts: list[bytes] | AsyncIterator[bytes]
        match scope["path"].removeprefix(root_path).split("/")[1:]:
            case ["products", product_id]:
                size = scope["query_string"].decode().removeprefix("size=") or "m"
                parts = [(await site.product(int(product_id), size)).encode()]
            case ["greeting"]:
                headers["vary"] = "accept-language"
                parts = [site.greeting(sent.get(b"accept-language", b"").decode()).encode()]
            case ["where"]:
                parts = [site.where(root_path).encode()]
            case ["long"]:
                parts = [site.long().encode()]
            case ["stream"]:
                parts = site.parts()
            case ["events"]:
                headers["content-type"] = "text/event-stream"
                parts = site.events()
            case _:
                status, parts = 404, [site.missing().encode()]
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        if isinstance(parts, list):
            await send({"type": "http.response.body", "body": parts[0]})
            return
        async for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})


KINDS: dict[str, Callable[..., Any]] = {
    "starlette": starlette_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
    "bare": BareApp,
}


#: Each with the ways in which it may say that its responses are to be stored.
WAYS = [
    *((kind, "headers") for kind in KINDS),
    *((kind, "policy") for kind in KINDS),
    *((kind, "decorator") for kind in ("starlette", "fastapi")),
]


def check_loop(kind: str, anyio_backend: str) -> None:
    if kind == "quart" and anyio_backend == "trio":
        pytest.skip("Quart is for asyncio")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, anyio_backend: str) -> str:
    check_loop(request.param, anyio_backend)
    return str(request.param)


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest, anyio_backend: str) -> tuple[str, str]:
    kind, said = request.param
    check_loop(kind, anyio_backend)
    return kind, said


def everything(connection: HTTPConnection) -> Policy:
    return Policy(ttl=60, public=True)


@pytest.fixture
async def site(way: tuple[str, str]) -> Site:
    return Site(headers=DECLARED if way[1] == "headers" else None)


@pytest.fixture
def app(cache: Cache, way: tuple[str, str], site: Site) -> Any:
    """The application, with the cache around it."""
    kind, said = way
    inner = KINDS[kind](site, cache_response) if said == "decorator" else KINDS[kind](site)
    return CacheMiddleware(inner, cache=cache, policy=everything if said == "policy" else None)


# --- pages ----------------------------------------------------------------------------------------------


async def test_a_page_is_stored_and_served(app: Any, site: Site) -> None:
    first = await ask(app, "/products/1")
    assert first.error is None
    assert (first.status, first.text) == (200, "site: product 1 in m, run 1")
    assert first.cache_status.startswith("asynctag; fwd=uri-miss")
    second = await ask(app, "/products/1")
    assert second.hit
    assert (second.status, second.text) == (200, first.text)
    assert second.header("content-type") == first.header("content-type")
    assert second.header("content-length") == str(len(first.body))
    assert second.header("etag") is not None
    assert first.header("etag") in (None, second.header("etag"))  # Quart says that a body ends only after its last byte
    assert site.runs["product"] == 1


async def test_its_tags_invalidate_it(app: Any, cache: Cache) -> None:
    """Tags that the endpoint adds arrive at the middleware, whichever tasks and contexts the framework runs it in."""
    for path in ("/products/1", "/products/2"):
        await ask(app, path)
    await cache.invalidate("product:1")
    dropped = await ask(app, "/products/1")
    assert dropped.text.endswith("run 3")
    assert "fwd=stale" in dropped.cache_status
    assert "product:1" in dropped.cache_status
    assert (await ask(app, "/products/2")).hit
    assert (await ask(app, "/products/1")).hit


async def test_path_parameters_and_queries_tell_pages_apart(app: Any, site: Site) -> None:
    paths = {"/products/1": "1 in m", "/products/2": "2 in m", "/products/1?size=l": "1 in l", "/products/01": "1 in m"}
    first = {path: await ask(app, path) for path in paths}
    for path, what in paths.items():
        call = await ask(app, path)
        assert call.hit
        assert call.text == first[path].text
        assert f"product {what}," in call.text
    assert site.runs["product"] == len(paths)


async def test_vary_tells_pages_apart(app: Any, site: Site) -> None:
    for language in ("en", "de", "en", "de"):
        call = await ask(app, "/greeting", headers={"accept-language": language})
        assert call.text.startswith(f"{language}, ")
        assert call.header("vary") == "accept-language"
    assert call.hit
    assert site.runs["greeting"] == 2


async def test_head_is_served_from_the_page_and_is_never_the_page(app: Any, site: Site) -> None:
    assert (await ask(app, "/products/1", method="HEAD")).status == 200
    page = await ask(app, "/products/1")
    assert page.text == f"site: product 1 in m, run {site.runs['product']}"
    await ask(app, "/products/1", method="HEAD")  # so that the cache knows that the application accepts it
    runs = site.runs["product"]
    head = await ask(app, "/products/1", method="HEAD")
    assert head.hit
    assert site.runs["product"] == runs
    assert head.status == 200
    assert head.body in (b"", page.body)  # servers send none of it
    assert head.header("content-length") == str(len(page.body))
    later = await ask(app, "/products/1")
    assert later.text == page.text
    assert head.header("etag") == later.header("etag")


async def test_a_client_that_has_the_page_gets_304(app: Any, site: Site) -> None:
    await ask(app, "/products/1")
    etag = (await ask(app, "/products/1")).header("etag")
    assert etag is not None
    call = await ask(app, "/products/1", headers={"if-none-match": etag})
    assert (call.status, call.body, call.header("etag")) == (304, b"", etag)
    assert call.hit
    assert site.runs["product"] == 1


async def test_a_streamed_body_is_stored_whole_with_the_tags_of_its_end(app: Any, cache: Cache) -> None:
    first = await ask(app, "/stream")
    assert first.text == "first, run 1"
    assert len([chunk for chunk in first.chunks if chunk]) == 2
    second = await ask(app, "/stream")
    assert second.hit
    assert second.text == first.text
    await cache.invalidate("streamed")
    assert (await ask(app, "/stream")).text == "first, run 2"


async def test_a_client_that_goes_away_in_the_middle_leaves_no_half(app: Any, cache: Cache, site: Site) -> None:
    site.hold = anyio.Event()
    call = request("/stream")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.run, app)
            while not call.body:
                await all_blocked()
            call.disconnect()
            await all_blocked()
            stopped = call.ended.is_set()
            site.hold.set()
    assert call.error is None
    later = await ask(app, "/stream")
    assert later.text == f"first, run {site.runs['stream']}"
    if stopped:  # an application that does not listen makes a whole of it, for others
        assert not later.hit
    assert (await ask(app, "/stream")).hit


async def test_an_error_is_not_stored(app: Any, site: Site) -> None:
    for run in (1, 2):
        call = await ask(app, "/missing")
        assert (call.status, call.text) == (404, f"run {run}")
        assert not call.hit


async def test_the_renewal_of_a_stream_ends(cache: Cache, clock: FakeClock, kind: str) -> None:
    """Servers say `http.disconnect` once a response is out: what stands for the client of a renewal has to, too."""
    site = Site()

    def stale(connection: HTTPConnection) -> Policy:
        return Policy(ttl=60, stale_while_revalidate=600, public=True)

    inner, running_now = KINDS[kind](site), 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running_now
        running_now += 1
        try:
            await inner(scope, receive, send)
        finally:
            running_now -= 1

    app = CacheMiddleware(counted, cache=cache, policy=stale)
    async with cache:
        await ask(app, "/stream")
        clock.advance(61)
        assert (await ask(app, "/stream")).text == "first, run 1"
        await all_blocked()
        assert (await ask(app, "/stream")).text == "first, run 2"
        assert running_now == 0


async def test_twenty_clients_at_once_make_a_page_once(app: Any, cache: Cache, site: Site) -> None:
    """Of a URL that is known to be cached: of another, nobody knows before its first response."""
    await ask(app, "/products/1")
    await cache.invalidate("product:1")
    site.hold = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [request("/products/1") for _ in range(20)]
            for call in calls:
                tasks.start_soon(call.run, app)
            await all_blocked()
            site.hold.set()
    assert {call.text for call in calls} == {"site: product 1 in m, run 2"}
    assert site.runs["product"] == 2


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_the_same_over_tcp(clock: FakeClock, build: Any) -> None:
    cache, site = Cache(MemoryBackend(clock=clock)), Site(headers=DECLARED)
    site.go.set()
    app = CacheMiddleware(build(site), cache=cache)
    with serve(app) as served, Connection(served) as connection:
        for path, body in (("/products/1", b"site: product 1 in m, run 1"), ("/stream", b"first, run 1")):
            miss, hit, head = connection.ask(path), connection.ask(path), connection.ask(path, "If-None-Match: *")
            assert miss.body == hit.body == body
            assert (miss.hit, hit.hit) == (False, True)
            assert hit.header("content-length") == str(len(body))
            assert (head.status, head.body) == (304, b"")
        anyio.run(cache.invalidate, "product:1")
        assert connection.ask("/products/1").body == b"site: product 1 in m, run 2"
        assert connection.ask("/missing").status == 404
        for run in (1, 2):
            assert connection.ask("/events").body == b"data: first\n\ndata: run %d\n\n" % run
        assert connection.ask("/products/1").hit
        assert site.lived == ["startup"]
    assert site.lived == ["startup", "shutdown"]


# --- what passes ----------------------------------------------------------------------------------------


async def test_events_come_one_by_one_to_each_client_and_are_never_stored(app: Any, site: Site) -> None:
    """Fails where the body is gathered, and where the second client waits for the first one's stream to end."""
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [request("/events"), request("/events")]
            for call in calls:
                tasks.start_soon(call.run, app)
                while not call.body:
                    await all_blocked()
            for call in calls:
                assert call.body == b"data: first\n\n"
                assert not call.ended.is_set()
            site.go.set()
    assert sorted(call.text.split("\n\n")[1] for call in calls) == ["data: run 1", "data: run 2"]
    later = await ask(app, "/events")
    assert later.text.endswith("data: run 3\n\n")
    assert not later.hit


async def test_a_websocket_talks_through_the_cache(app: Any, cache: Cache) -> None:
    to_app, incoming = anyio.create_memory_object_stream[Message](10)
    outgoing, from_app = anyio.create_memory_object_stream[Message](10)
    scope = {**request("/echo").scope, "type": "websocket", "scheme": "ws", "subprotocols": []}
    del scope["method"]

    async def live() -> None:
        await app(scope, incoming.receive, outgoing.send)
        await outgoing.aclose()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, to_app, incoming, outgoing, from_app:
            tasks.start_soon(live)
            await to_app.send({"type": "websocket.connect"})
            assert (await from_app.receive())["type"] == "websocket.accept"
            for text in ("one", "two"):
                await to_app.send({"type": "websocket.receive", "text": text})
                assert (await from_app.receive())["text"] == f"echo {text}"
            await to_app.send({"type": "websocket.disconnect", "code": 1000})
            async for message in from_app:
                assert message["type"] == "websocket.close"
    assert len(cache._filling().backend) == 0  # type: ignore[arg-type]


async def test_the_lifespan_runs_once_and_opens_and_closes_the_cache(app: Any, cache: Cache, site: Site) -> None:
    assert not cache._background.is_open
    async with running(app) as said:
        assert cache._background.is_open
        assert site.lived == ["startup"]
        await ask(app, "/products/1")
        assert (await ask(app, "/products/1")).hit
    assert not cache._background.is_open
    assert site.lived == ["startup", "shutdown"]
    assert [one["type"] for one in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# --- mounted applications, root paths and prefixes ------------------------------------------------------


@pytest.mark.parametrize("around", ["all", "each"])
async def test_mounted_applications_never_get_each_others_pages(cache: Cache, kind: str, around: str) -> None:
    """Both have the same paths. The cache stands around what mounts them, or around each."""
    sites = [Site("one", headers=DECLARED), Site("two", headers=DECLARED)]
    apps: list[Any] = [KINDS[kind](site) for site in sites]
    if around == "each":
        apps = [CacheMiddleware(app, cache=cache) for app in apps]
    whole: Any = Starlette(routes=[Mount("/one", apps[0]), Mount("/two", apps[1])])
    if around == "all":
        whole = CacheMiddleware(whole, cache=cache)
    for run in (1, 1):
        for name in ("one", "two"):
            call = await ask(whole, f"/{name}/products/1")
            assert call.text == f"{name}: product 1 in m, run {run}"
    assert call.hit
    await cache.invalidate("product:1")
    for name in ("one", "two"):
        assert (await ask(whole, f"/{name}/products/1")).text == f"{name}: product 1 in m, run 2"


@pytest.mark.parametrize("stripped", [True, False])
async def test_pages_are_kept_apart_by_the_root_path_that_the_server_sets(
    cache: Cache, kind: str, stripped: bool
) -> None:
    """Links are made with it. Servers put it in front of the path, and older ones leave the path as it is."""
    if stripped and kind == "quart":
        pytest.skip("Quart refuses paths outside its root path")
    site = Site(headers=DECLARED)
    app = CacheMiddleware(KINDS[kind](site), cache=cache)
    for _ in range(2):
        for root_path in ("", "/one", "/two"):
            path = "/where" if stripped else f"{root_path}/where"
            call = await ask(app, path, root_path=root_path, raw_path=b"/where")
            assert call.status == 200
            assert f"site at {root_path}, " in call.text
    assert call.hit
    assert site.runs["where"] == 3


async def test_pages_are_kept_apart_by_the_prefix_that_a_proxy_names(cache: Cache, kind: str) -> None:
    """As middleware around the cache reads it: the path stays as it was sent to the proxy's upstream."""
    site = Site(headers=DECLARED)
    inner = CacheMiddleware(KINDS[kind](site), cache=cache)

    async def behind_proxy(scope: Any, receive: Any, send: Any) -> None:
        prefix = dict(scope["headers"]).get(b"x-forwarded-prefix", b"").decode()
        await inner({**scope, "root_path": prefix, "path": prefix + scope["path"]}, receive, send)

    for _ in range(2):
        for prefix in ("/one", "/two"):
            call = await ask(behind_proxy, "/where", headers={"x-forwarded-prefix": prefix})
            assert f"site at {prefix}, " in call.text
    assert call.hit
    assert site.runs["where"] == 2


# --- compression ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("first", ["gzip", "identity", None])
async def test_gzip_on_either_side_gives_each_client_what_it_can_read(
    cache: Cache, kind: str, place: str, first: str | None
) -> None:
    site = Site(headers=DECLARED)
    inner = KINDS[kind](site)
    if place == "inside":
        app: Any = CacheMiddleware(GZipMiddleware(inner), cache=cache)
    else:
        app = GZipMiddleware(CacheMiddleware(inner, cache=cache))
    encodings = [first, *({"gzip", "identity", None} - {first})]
    etags: dict[str | None, str | None] = {}
    for encoding in encodings * 2:
        headers = {"accept-encoding": encoding} if encoding is not None else {}
        call = await ask(app, "/long", headers=headers)
        assert call.error is None
        assert call.header("content-encoding") == ("gzip" if encoding == "gzip" else None)
        body = gzip.decompress(call.body) if encoding == "gzip" else call.body
        assert body.decode().startswith(f"{LONG}run ")
        assert call.header("content-length") in (None, str(len(call.body)))
        assert "accept-encoding" in (call.header("vary") or "").lower()
        etags[encoding] = call.header("etag")
    assert call.hit
    assert site.runs["long"] == (3 if place == "inside" else 1)
    if place == "inside":
        assert len(set(etags.values())) == 3  # a strong validator is of the bytes that are sent
    for encoding in encodings:
        headers = {"accept-encoding": encoding} if encoding is not None else {}
        etag = etags[encoding]
        assert etag is not None
        call = await ask(app, "/long", headers={**headers, "if-none-match": etag})
        assert (call.status, call.body) == (304, b"")
        assert call.header("etag") == etag


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_head_with_gzip_inside_says_what_a_get_would(cache: Cache, kind: str, encoding: str) -> None:
    site = Site(headers=DECLARED)
    app = CacheMiddleware(GZipMiddleware(KINDS[kind](site)), cache=cache)
    headers = {"accept-encoding": encoding}
    await ask(app, "/long", method="HEAD", headers=headers)
    page = await ask(app, "/long", headers=headers)
    await ask(app, "/long", method="HEAD", headers=headers)
    head, again = await ask(app, "/long", method="HEAD", headers=headers), await ask(app, "/long", headers=headers)
    assert head.hit
    assert again.hit
    assert again.body == page.body
    for name in ("content-encoding", "content-length", "content-type", "etag", "vary"):
        assert head.header(name) == again.header(name), name


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_head_with_gzip_outside_says_what_a_get_would(cache: Cache, kind: str, encoding: str) -> None:
    """Its Content-Length is that of the content that a GET brings, or is not there (RFC 9110 §8.6)."""
    app = GZipMiddleware(CacheMiddleware(KINDS[kind](Site(headers=DECLARED)), cache=cache))
    headers = {"accept-encoding": encoding}
    await ask(app, "/long", headers=headers)
    await ask(app, "/long", method="HEAD", headers=headers)
    head, page = await ask(app, "/long", method="HEAD", headers=headers), await ask(app, "/long", headers=headers)
    assert head.hit
    assert page.hit
    assert head.header("content-length") in (None, str(len(page.body)))


@pytest.mark.parametrize("build", [starlette_app, fastapi_app])
@pytest.mark.parametrize("public", [True, False])
async def test_a_hit_at_the_endpoint_is_not_compressed_twice(cache: Cache, build: Any, public: bool) -> None:
    """Such a hit goes out through the compression that its response went through when it was stored."""

    def decorate(ttl: float, **options: Any) -> Callable[[Any], Any]:
        return cache_response(ttl, **{**options, "public": public})

    site = Site()
    app = CacheMiddleware(GZipMiddleware(build(site, decorate)), cache=cache)
    for encoding in ("gzip", "identity") * 3:
        call = await ask(app, "/long", headers={"accept-encoding": encoding})
        assert call.all("content-encoding") == (["gzip"] if encoding == "gzip" else [])
        body = gzip.decompress(call.body) if encoding == "gzip" else call.body
        assert body.decode().startswith(f"{LONG}run ")
        assert call.header("content-length") == str(len(call.body))
        assert {one.strip().lower() for one in ",".join(call.all("vary")).split(",")} == {"accept-encoding"}
    assert call.hit
    assert site.runs["long"] == 2


# --- messages of extensions -----------------------------------------------------------------------------

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(name.encode(), value.encode()) for name, value in DECLARED.items()],
}
BODY: Message = {"type": "http.response.body", "body": b"page", "more_body": False}
DEBUG: Message = {"type": "http.response.debug", "info": {"template": object()}}
HINT: Message = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}
PUSH: Message = {"type": "http.response.push", "path": "/style.css", "headers": [(b"accept", b"text/css")]}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
PATH: Message = {"type": "http.response.pathsend", "path": "/a/file"}
COPY: Message = {"type": "http.response.zerocopysend", "file": 3}


@pytest.mark.parametrize(
    ("messages", "stored"),
    [
        pytest.param([DEBUG, START, BODY], True, id="debug first"),
        pytest.param([START, DEBUG, BODY], False, id="debug after the start"),
        pytest.param([HINT, HINT, START, BODY], True, id="early hints"),
        pytest.param([PUSH, START, BODY], True, id="push first"),
        pytest.param([START, PUSH, BODY], False, id="push after the start"),
        pytest.param([START, {**BODY, "more_body": True}, PUSH, BODY], False, id="push in the middle"),
        pytest.param([{**START, "trailers": True}, {**BODY, "more_body": True}, TRAILERS], False, id="trailers"),
        pytest.param([START, PATH], False, id="pathsend"),
        pytest.param([START, COPY], False, id="zerocopysend"),
        pytest.param([START, {**BODY, "more_body": True}, COPY, BODY], False, id="zerocopysend in the middle"),
        pytest.param([{**START, "status": 103}, START, BODY], False, id="103 as a response of its own"),
    ],
)
async def test_messages_of_extensions_pass_and_nothing_is_stored_in_part(
    cache: Cache, messages: list[Message], stored: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    cached = CacheMiddleware(app, cache=cache, policy=everything)
    call = await ask(cached)
    assert [one["type"] for one in call.messages] == [one["type"] for one in messages]
    for sent, meant in zip(call.messages, messages, strict=True):
        if sent["type"] == "http.response.start":
            assert set(START["headers"]) <= set(sent["headers"])
            assert (sent["status"], sent.get("trailers")) == (meant["status"], meant.get("trailers"))
        else:
            assert sent == meant
    later = await ask(cached)
    assert later.hit == stored
    if stored:
        assert later.body == b"page"


async def test_an_extension_that_is_offered_reaches_the_application(cache: Cache) -> None:
    """The scope that a miss is computed in says what the server can do, as it did without the cache."""
    offered: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        offered.append(scope["extensions"])
        await send(START)
        await send(BODY)

    extensions = {"http.response.early_hint": {}, "http.response.pathsend": {}}
    await ask(CacheMiddleware(app, cache=cache), extensions=extensions)
    assert offered == [extensions]


async def test_the_last_byte_of_a_body_of_known_length_goes_out_after_it_is_stored(cache: Cache) -> None:
    """Its client has the whole of it then, whatever the application still has to say: its next request finds it."""
    entries: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**START, "headers": [*START["headers"], (b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"page", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    call = request("/")

    def look(message: Message) -> None:
        if message.get("body") == b"page":
            entries.append(len(cache._filling().backend))  # type: ignore[arg-type]

    call.on_message = look
    await call.run(CacheMiddleware(app, cache=cache))
    assert (await ask(CacheMiddleware(app, cache=cache))).hit
    assert entries == [2]  # the URL's record and the response
