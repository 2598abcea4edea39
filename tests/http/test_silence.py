"""A request of which nobody wants the response cached till late: what comes of it is what an exchange would make."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from asynctag import Cache, ConfigurationError
from asynctag.backends.base import Entry, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from asynctag.http.request import cache_of
from asynctag.http.wanted import SILENT_FOLDER
from asynctag.scope import current_scope
from asynctag.testing import FakeClock
from asynctag.windows import Window
from tests.http.driver import ask, request

pytestmark = pytest.mark.anyio

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
PUBLIC = (b"cache-control", b"public, max-age=60")


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def whole(body: bytes = b"x") -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": False}


def page(**policy: Any) -> Any:
    @cache_response(60, **policy)
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    return endpoint


async def set_precedent(app: Any, *paths: str) -> None:
    """Ask for enough that begin alike for the next one to go by precedent."""
    for path in paths or ("/first", "/second"):
        assert "stored" in (await ask(app, path)).cache_status


# --- what a response is judged by ----------------------------------------------------------------------


async def test_headers_that_can_be_looked_at_only_once(cache: Cache) -> None:
    """Any iterable of headers is read once, and all of it counts: what is private is not stored."""

    async def respond(scope: Any, receive: Receive, send: Send) -> None:
        private = [(b"set-cookie", b"user=alice"), (b"cache-control", b"private")]
        await send({"type": "http.response.start", "status": 200, "headers": (pair for pair in private)})
        await send(whole(b"alice's page"))

    class Endpoint:
        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            await respond(scope, receive, send)

    @cache_response(60)
    async def endpoint(request: Request) -> Any:
        return Endpoint()

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    silent = CacheMiddleware(respond, cache=cache)
    for _ in range(3):
        answer = await ask(app, "/page")
        assert answer.header("set-cookie") == "user=alice"
        assert not answer.hit
        assert (await ask(silent, "/silent")).header("set-cookie") == "user=alice"


async def test_an_error_after_the_start_is_not_stored_as_the_response(cache: Cache) -> None:
    """A second start, of who answers for the error, goes on to the server, which refuses it; nothing is stored."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start(PUBLIC))
        if scope["path"] == "/fails":
            await send(start(status=500))
            await send(whole(b"Internal Server Error"))
        else:
            await send(whole())

    cached = CacheMiddleware(app, cache=cache)
    await set_precedent(cached)
    failed = await ask(cached, "/fails")
    assert [one.get("status", "body") for one in failed.messages] == [200, 500, "body"]
    assert not (await ask(cached, "/fails")).hit


async def test_a_request_is_judged_as_it_came(cache: Cache) -> None:
    """What stands between the middleware and the endpoint may take the credentials off its headers."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        who = dict(scope["headers"]).get(b"authorization", b"nobody")
        scope["headers"][:] = [pair for pair in scope["headers"] if pair[0] != b"authorization"]
        await send(start((b"cache-control", b"max-age=60")))
        await send(whole(who))

    cached = CacheMiddleware(app, cache=cache, store="rfc9111")
    await set_precedent(cached)
    for path in ("/new", "/new"):
        assert (await ask(cached, path, headers={"Authorization": "alice"})).text == "alice"
        assert (await ask(cached, path)).text == "nobody"


async def test_a_word_about_the_connection_is_heeded(cache: Cache) -> None:
    """A field that is named by `Connection` is not kept, whatever else the start is like (RFC 9111 §3.1)."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start(PUBLIC, (b"connection", b"etag")))
        await send(whole())

    cached = CacheMiddleware(app, cache=cache)
    for name in ("/a", "/b", "/c", "/d"):
        await ask(cached, name)
        assert (await ask(cached, name)).header("etag") is None


async def test_headers_are_taken_as_they_are_sent(cache: Cache) -> None:
    """What becomes of a list of headers after it was sent, is no part of the response."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        message = start(PUBLIC)
        await send(message)
        message["headers"].append((b"x-late", b"1"))
        await send(whole())

    cached = CacheMiddleware(app, cache=cache)
    for name in ("/a", "/b", "/c", "/d"):
        assert (await ask(cached, name)).header("x-late") is None


async def test_a_response_may_be_sent_in_a_task(cache: Cache) -> None:
    """What `send` returns can be run by others, with a precedent and without one."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for message in (start(PUBLIC), whole()):
            async with anyio.create_task_group() as group:
                group.start_soon(send, message)

    cached = CacheMiddleware(app, cache=cache)
    await set_precedent(cached)
    await set_precedent(cached, "/third")
    assert (await ask(cached, "/third")).hit


async def test_the_application_gets_a_state_of_its_own(cache: Cache) -> None:
    """What an application writes into an empty state is not there for who is served from the cache."""
    seen: list[dict[str, Any]] = []

    @cache.window(name="greeting")
    async def greeting() -> str:
        from asynctag.http import current_request

        seen.append(dict(current_request().scope["state"]))
        return "hello"

    async def endpoint(request: Request) -> PlainTextResponse:
        request.state.user = "alice"
        return PlainTextResponse(f"{greeting()}", headers={"cache-control": "public, max-age=60"})

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    assert [(await ask(app, "/page")).text for _ in range(2)] == ["hello"] * 2
    assert seen == [{}, {}]


# --- what changes while a request is under way ---------------------------------------------------------


@pytest.mark.parametrize("change", ["disabled", "override"])
async def test_who_waits_goes_on_when_the_cache_is_switched(cache: Cache, change: str) -> None:
    """A flight lands where it began, whatever backend counts by then."""
    reached, go_on = anyio.Event(), anyio.Event()

    @cache_response(60)
    async def endpoint(request: Request) -> PlainTextResponse:
        reached.set()
        await go_on.wait()
        return PlainTextResponse("page")

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    calls = [request("/page"), request("/page")]
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(calls[0].run, app)
            await reached.wait()
            group.start_soon(calls[1].run, app)
            await anyio.wait_all_tasks_blocked()
            with cache.disabled() if change == "disabled" else cache.override(MemoryBackend()):
                go_on.set()
                for one in calls:
                    await one.ended.wait()
        assert [one.text for one in calls] == ["page"] * 2
        assert (await ask(app, "/page")).status == 200
    assert not cache._filling().flights._open


async def test_disabled_while_the_look_up_waits(clock: FakeClock) -> None:
    """The request goes on as any does while the cache is disabled."""

    class Slow(MemoryBackend):
        in_process = False
        reached, go_on = anyio.Event(), anyio.Event()

        async def read(self, key: str) -> Any:
            self.reached.set()
            await self.go_on.wait()
            return await super().read(key)

    backend = Slow(clock=clock)
    cache = Cache(backend)
    app = CacheMiddleware(Starlette(routes=[Route("/{name}", page())]), cache=cache)
    call = request("/page")
    async with anyio.create_task_group() as group:
        group.start_soon(call.run, app)
        await backend.reached.wait()
        with cache.disabled():
            backend.go_on.set()
            await call.ended.wait()
    assert (call.error, call.text) == (None, "page")


async def test_an_error_is_answered_with_what_another_has_stored_meanwhile(cache: Cache) -> None:
    """`stale_if_error` counts for who brought nothing, too."""
    reached, go_on = anyio.Event(), anyio.Event()

    @cache_response(60, stale_if_error=60)
    async def endpoint(request: Request) -> PlainTextResponse:
        if "cache-control" in request.headers:
            return PlainTextResponse("stored")
        reached.set()
        await go_on.wait()
        raise RuntimeError("the database is gone")

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    call = request("/page")
    async with anyio.create_task_group() as group:
        group.start_soon(call.run, app)
        await reached.wait()
        await ask(app, "/page", headers={"Cache-Control": "no-cache"})
        go_on.set()
    assert (call.status, call.text) == (200, "stored")


async def test_what_cannot_be_meant_is_refused_each_time(cache: Cache) -> None:
    """Also where an error handler answers, which wants nothing cached."""

    @cache_response(10**9)
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__}, 500)

    handlers: Any = {ConfigurationError: handle}
    starlette = Starlette(routes=[Route("/{name}", endpoint)], exception_handlers=handlers)
    app = CacheMiddleware(starlette, cache=cache)
    assert [(await ask(app, "/page")).status for _ in range(3)] == [500] * 3


# --- around and within ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["nothing", "headers", "policy"])
async def test_what_a_middleware_within_gathers_counts_for_the_one_around(wanted: str) -> None:
    """Two caches on one backend: an invalidation in the one drops what the other has stored of it."""
    backend = MemoryBackend()
    inner, outer = Cache(backend, namespace="inner"), Cache(backend, namespace="outer")
    ran: list[str] = []

    async def plain(request: Request) -> PlainTextResponse:
        ran.append(request.url.path)
        cache_of(request).add_tags("product:1")
        headers = {"cache-control": "public, max-age=60"} if wanted == "headers" else {}
        return PlainTextResponse("page", headers=headers)

    endpoint = cache_response(60)(plain) if wanted == "policy" else plain
    within = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=inner)

    async def says_public(scope: Any, receive: Receive, send: Send) -> None:
        async def send_public(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [PUBLIC, *(h for h in message["headers"] if h[0] != PUBLIC[0])]}
            await send(message)

        await within(scope, receive, send_public)

    app = CacheMiddleware(says_public, cache=outer)
    names = ["/a", "/b", "/c"]
    for name in names * 2:
        await ask(app, name)
    assert ran == names
    await inner.invalidate("product:1")
    for name in names:
        await ask(app, name)
    assert ran == names * 2


async def test_a_request_may_be_tried_again(cache: Cache) -> None:
    """What stands around may send the same scope through the middleware once more."""
    app = CacheMiddleware(
        Starlette(routes=[Route("/{name}", page()), Route("/quiet/x", lambda r: PlainTextResponse())]), cache=cache
    )
    for path in ("/page", "/quiet/x", "/page"):
        first = request(path)
        second = request(path)
        await first.run(app)
        second.scope = first.scope
        await second.run(app)
        assert (first.error, second.error, second.status) == (None, None, 200)


async def test_a_mounted_application_with_the_same_cache_counts_once(cache: Cache) -> None:
    """Whatever is asked for first, the middleware around sees to it."""
    mounted = CacheMiddleware(Starlette(routes=[Route("/{name}", page())]), cache=cache)
    app = CacheMiddleware(Starlette(routes=[Mount("/shop", mounted)]), cache=cache)
    for name in ("/shop/a", "/shop/b", "/shop/c"):
        answers = [await ask(app, name) for _ in range(2)]
        assert [one.hit for one in answers] == [False, True]


# --- a path that was silent before ---------------------------------------------------------------------


async def test_a_silent_path_can_be_cached_from_the_next_request_on(cache: Cache) -> None:
    """By headers and by a policy; what was asked for in silence is not stored, and costs no scope."""
    wants = False

    async def endpoint(request: Request) -> PlainTextResponse:
        cache_of(request).add_tags("product:1")
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"} if wants else {})

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    assert [(await ask(app, "/page")).cache_status for _ in range(3)] == [""] * 3
    wants = True
    assert [(await ask(app, "/page")).hit for _ in range(3)] == [False, False, True]
    await cache.invalidate("product:1")
    assert not (await ask(app, "/page")).hit


@pytest.mark.parametrize("asked", [SILENT_FOLDER - 1, SILENT_FOLDER])
async def test_a_new_path_among_many_silent_ones_is_taken_for_silent(cache: Cache, asked: int) -> None:
    """What can be lost is one response of a folder, which is stored a request later, and never a hit after that."""

    async def silent(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    routes = [Route(f"/{folder}/silent/{{name}}", silent) for folder in "ab"]
    routes += [Route(f"/{folder}/{kind}/{{name}}", page()) for folder in "ab" for kind in ("silent/wanted", "other")]
    routes += [Route("/a/silent-wanted/{name}", page())]
    app = CacheMiddleware(Starlette(routes=[Route("/a/silent/wanted-{name}", page()), *routes]), cache=cache)
    for number in range(asked):
        assert (await ask(app, f"/a/silent/{number}")).cache_status == ""
    guessed = asked == SILENT_FOLDER
    for path in ("/a/other/1", "/b/silent/wanted/1", "/a/silent-wanted/1"):  # not in that folder
        assert [(await ask(app, path)).hit for _ in range(2)] == [False, True]
    hits = [(await ask(app, "/a/silent/wanted-1")).hit for _ in range(3)]
    assert hits == ([False, False, True] if guessed else [False, True, True])
    for number in range(2 * SILENT_FOLDER):  # silent ones do not count any more, where one was wanted
        await ask(app, f"/a/silent/more-{number}")
    assert [(await ask(app, "/a/silent/wanted-2")).hit for _ in range(2)] == [False, True]


async def test_a_path_that_is_asked_for_again_counts_once_in_its_folder(cache: Cache) -> None:
    routes = [Route("/wanted", page()), Route("/{name}", lambda request: PlainTextResponse("page"))]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)
    for _ in range(2 * SILENT_FOLDER):
        await ask(app, "/silent")
    assert [(await ask(app, "/wanted")).hit for _ in range(2)] == [False, True]


async def test_a_path_that_passed_among_silent_ones_stays_silent(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a response in the folder is wanted, those that are known by then still cost no scope."""
    monkeypatch.setattr(Window, "any_defined", False)  # which other tests define
    scopes: list[object] = []

    async def silent(request: Request) -> PlainTextResponse:
        scopes.append(current_scope.get())
        return PlainTextResponse("page")

    app = CacheMiddleware(Starlette(routes=[Route("/wanted", page()), Route("/{name}", silent)]), cache=cache)
    for number in range(SILENT_FOLDER + 1):
        await ask(app, f"/{number}")
    assert None not in scopes[:-1]
    assert scopes[-1] is None
    for path in ("/wanted", f"/{SILENT_FOLDER}", "/new"):
        await ask(app, path)
    assert scopes[-2] is None
    assert scopes[-1] is not None


async def test_what_is_stored_while_a_request_passes_in_silence_is_found(cache: Cache) -> None:
    """One that ends later, and whose response nobody wanted, does not say that nobody wants any."""
    begun, go_on = anyio.Event(), anyio.Event()

    async def endpoint(request: Request) -> PlainTextResponse:
        if not begun.is_set():
            begun.set()
            await go_on.wait()
            return PlainTextResponse("silent")
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"})

    app = CacheMiddleware(Starlette(routes=[Route("/page", endpoint)]), cache=cache)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, app, "/page")
        await begun.wait()
        assert "stored" in (await ask(app, "/page")).cache_status
        go_on.set()
    assert (await ask(app, "/page")).hit


async def test_a_silent_path_within_a_computation_can_be_cached_from_the_next_request_on(cache: Cache) -> None:
    wants = False

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"} if wants else {})

    app = CacheMiddleware(Starlette(routes=[Route("/page", endpoint)]), cache=cache)

    async def within() -> bool:
        hits: list[bool] = []

        async def compute() -> str:
            hits.append((await ask(app, "/page")).hit)
            return "part"

        await cache.get_or_set("part", compute, ttl=60)
        await cache.delete("part")
        return hits[0]

    assert not await within()
    wants = True
    assert [await within() for _ in range(3)] == [False, False, True]


# --- what a backend adds, and what is left behind ------------------------------------------------------


async def test_a_backend_that_overrides_how_it_writes_is_asked_to_write(clock: FakeClock) -> None:
    """Whoever counts or copies what is stored in a class of their own misses nothing."""
    stored: list[str] = []

    class Counting(MemoryBackend):
        async def write(self, entry: Entry) -> Written:
            stored.append(entry.key)
            return await super().write(entry)

        async def write_many(self, entries: Any) -> list[Written]:
            return [await self.write(entry) for entry in entries]

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", page())]), cache=Cache(Counting(clock=clock)))
    for name in ("/a", "/b", "/c", "/d"):
        await ask(app, name)
    assert len(stored) == 8


async def test_no_request_leaves_a_cycle_behind(cache: Cache) -> None:
    """Whatever a request makes is freed as it ends, and not by the garbage collector."""

    async def silent(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def streamed(request: Request) -> StreamingResponse:
        return StreamingResponse(chunks(), headers={"cache-control": "public, max-age=60"})

    routes = [Route("/silent/{n}", silent), Route("/page/{n}", page()), Route("/stream/{n}", streamed)]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)

    class Nobody:
        async def receive(self) -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(self, message: Any) -> None:
            pass

    nobody = Nobody()
    for kind in ("silent", "page"):
        for n in range(5):
            await app(request(f"/{kind}/{n}").scope, nobody.receive, nobody.send)
        scopes = [request(f"/{kind}/x{n}").scope for n in range(20)]
        gc.collect()
        gc.disable()
        try:
            for scope in scopes:
                await app(scope, nobody.receive, nobody.send)
            assert gc.collect() < 20
        finally:
            gc.enable()
