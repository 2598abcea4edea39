"""A request of which nobody wants the response cached till late: what comes of it is what an exchange would make."""

import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any
from weakref import ref

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from asynctag import Cache, ConfigurationError, WindowError, add_tags
from asynctag.backends.base import Entry, Written
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response, silence
from asynctag.http.request import cache_of
from asynctag.http.rules import Policy
from asynctag.http.variants import DIMENSIONS
from asynctag.scope import current_scope
from asynctag.testing import FakeClock
from asynctag.windows import Window
from tests.http.driver import all_blocked, ask, request

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


def memory_of(cache: Cache) -> MemoryBackend:
    backend = cache._filling().backend
    assert isinstance(backend, MemoryBackend)
    return backend


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


@pytest.mark.parametrize("windows", [False, True])
async def test_a_silent_path_can_be_cached_from_the_next_request_on(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, windows: bool
) -> None:
    """By headers; what was asked for in silence is not stored, and costs no scope. With windows, all is gathered."""
    monkeypatch.setattr(Window, "any_defined", windows)
    wants = False
    scopes: list[object] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        cache_of(request).add_tags("product:1")
        scopes.append(current_scope.get())
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"} if wants else {})

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", endpoint)]), cache=cache)
    assert [(await ask(app, "/page")).cache_status for _ in range(3)] == [""] * 3
    wants = True
    assert [(await ask(app, "/page")).hit for _ in range(3)] == (
        [False, True, True] if windows else [False, False, True]
    )
    assert [one is None for one in scopes[:5]] == ([False] * 4 if windows else [False, True, True, True, False])
    await cache.invalidate("product:1")
    assert not (await ask(app, "/page")).hit


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


async def test_a_silent_path_within_a_computation_can_be_cached_at_once(either: Cache) -> None:
    wants = False

    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"} if wants else {})

    app = CacheMiddleware(Starlette(routes=[Route("/page", endpoint)]), cache=either)

    async def within() -> bool:
        hits: list[bool] = []

        async def compute() -> str:
            hits.append((await ask(app, "/page")).hit)
            return "part"

        await either.get_or_set("part", compute, ttl=60, returns=str)
        await either.delete("part")
        return hits[0]

    assert not await within()
    wants = True
    assert [await within() for _ in range(3)] == [False, True, True]


@pytest.mark.parametrize("status", [200, 404])
async def test_a_path_is_silent_once_it_has_answered(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """What is not there yet, or not for this caller, says nothing of the page that will be."""
    monkeypatch.setattr(Window, "any_defined", False)
    scopes: list[object] = []

    async def respond(scope: Any, receive: Receive, send: Send) -> None:
        scopes.append(current_scope.get())
        await send(start(status=status))
        await send(whole())

    app = CacheMiddleware(respond, cache=cache)
    for _ in range(2):
        await ask(app, "/page")
    assert (scopes[1] is None) == (status == 200)


class Remote(MemoryBackend):
    """One of which nobody in this process knows what others have stored in it."""

    in_process = False


class Site:
    """A path that answers in silence until `begin` gives it an endpoint, or more routes."""

    def __init__(self, cache: Cache, path: str = "/page", **options: Any) -> None:
        self.path = path
        self.inner = Starlette(routes=[Route("/{path:path}", self.silent)])
        self.app = CacheMiddleware(self.inner, cache=cache, **options)

    async def silent(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("silent")

    async def begin(self, endpoint: Any, *routes: Route) -> None:
        for _ in range(3):
            assert (await ask(self.app, self.path)).cache_status == ""
        self.inner.router.routes[:0] = [Route(self.path, endpoint), *routes]


@pytest.fixture(params=[MemoryBackend, Remote], ids=["memory", "remote"])
def either(request: pytest.FixtureRequest, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(Window, "any_defined", False)
    return Cache(request.param(clock=clock))


@pytest.mark.parametrize("change", ["tag", "ttl", "put"])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_computation_depends_on_a_page_that_was_silent_before(
    either: Cache, clock: FakeClock, change: str, declared: bool
) -> None:
    """By its tags, by its lifetime, and by its URL: what nobody wanted cached may be wanted now."""
    version = 1

    @cache_response(5, tags=["page"])
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(version))

    async def declaring(request: Request) -> PlainTextResponse:
        cache_of(request).add_tags("page")
        return PlainTextResponse(str(version), headers={"cache-control": "public, max-age=5"})

    site = Site(either)
    put = Route("/page", lambda request: PlainTextResponse("done"), methods=["PUT"])
    await site.begin(declaring if declared else page, put)

    async def compute() -> str:
        return (await ask(site.app, "/page")).text

    assert await either.get_or_set("around", compute, ttl=3600, returns=str) == "1"
    version = 2
    if change == "tag":
        await either.invalidate("page")
    elif change == "ttl":
        clock.advance(10)
    else:
        await ask(site.app, "/page", method="PUT")
    assert await either.get_or_set("around", compute, ttl=3600, returns=str) == "2"


async def test_a_middleware_around_another_stores_what_is_one_users_for_nobody_else() -> None:
    """And what is behind a route's tags goes with them, where the path was silent before."""
    backend = MemoryBackend()
    version = 1

    @cache_response(60, key=lambda request: request.headers["x-user"])
    async def mine(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"page of {request.headers['x-user']}")

    @cache_response(60, tags=["page"])
    async def tagged(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(version))

    def around(site: Site, cache: Cache) -> CacheMiddleware:
        return CacheMiddleware(site.app, cache=cache, policy=lambda connection: Policy(ttl=60, public=True))

    first, second = (Site(Cache(backend, namespace="inner"), path) for path in ("/mine", "/tagged"))
    await first.begin(mine)
    await second.begin(tagged)
    outer = around(first, Cache(backend))
    for user in ("alice", "bob"):
        assert (await ask(outer, "/mine", headers={"x-user": user})).text == f"page of {user}"
    outer = around(second, Cache(backend))
    assert (await ask(outer, "/tagged")).text == "1"
    version = 2
    await second.app.cache.invalidate("page")
    assert (await ask(outer, "/tagged")).text == "2"


async def test_a_first_response_says_to_caches_of_others_what_tells_it_apart(either: Cache) -> None:
    """It is not stored here, and may be stored on its way."""
    site = Site(either)
    await site.begin(page(vary=["accept-language"]))
    assert (await ask(site.app, "/page")).header("vary") == "accept-language"
    site = Site(either, "/mine")
    await site.begin(page(key=lambda request: "alice"))
    assert (await ask(site.app, "/mine")).header("cache-control") == "private, no-cache"


async def test_a_header_for_this_cache_alone_never_goes_out(either: Cache) -> None:
    async def targeted(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers={"x-own": "max-age=60"})

    site = Site(either, target="X-Own")
    await site.begin(targeted)
    calls = [await ask(site.app, "/page") for _ in range(3)]
    assert [call.header("x-own") for call in calls] == [None] * 3
    assert calls[-1].hit


async def test_what_fails_after_its_response_is_cached_at_last(either: Cache) -> None:
    """As where a background task fails with every request."""

    async def fail() -> None:
        raise RuntimeError

    @cache_response(60)
    async def failing(request: Request) -> PlainTextResponse:
        return PlainTextResponse("page", background=BackgroundTask(fail))

    site = Site(either)
    await site.begin(failing)
    assert [(await ask(site.app, "/page")).hit for _ in range(4)][-1]


async def test_one_run_brings_a_page_to_all_who_come_once_one_has_reached_it(either: Cache) -> None:
    """The first, whose response is not stored, tells those who come while it runs."""
    runs = 0
    go_on = anyio.Event()

    @cache_response(60)
    async def slow(request: Request) -> PlainTextResponse:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return PlainTextResponse("page")

    site = Site(either)
    await site.begin(slow)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ask, site.app, "/page")
            await anyio.wait_all_tasks_blocked()
        go_on.set()
    assert runs <= 2


async def test_a_request_of_a_silent_path_can_be_explained(either: Cache) -> None:
    said: list[Any] = []

    @cache_response(60)
    async def explained(request: Request) -> PlainTextResponse:
        said.append(await cache_of(request).explain_response())
        return PlainTextResponse("page")

    site = Site(either)
    await site.begin(explained)
    assert (await ask(site.app, "/page", headers={"authorization": "x"})).cache_status
    assert said[0].policy is not None
    assert said[0].bypass == "authorization"


# --- what was stored and is gone -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["at the endpoint", "public", "by headers"])
@pytest.mark.parametrize("url", ["/gone", "/gone?new=1", "/never"])
async def test_what_a_loop_leaves_behind_holds_nobody_up(cache: Cache, kind: str, url: str) -> None:
    """The garbage collector ends its coroutine, in a context that is not the request's: the flight lands still."""
    left = False

    class ForEver:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def endpoint(request: Request) -> PlainTextResponse:
        add_tags("gone")
        if left:
            await ForEver()
        return PlainTextResponse("page", headers=said)

    said = {"cache-control": "public, max-age=60"} if kind == "by headers" else {}
    cached = endpoint if kind == "by headers" else cache_response(60, public=kind == "public")(endpoint)
    app = CacheMiddleware(Starlette(routes=[Route("/{name}", cached)]), cache=cache)
    await set_precedent(app, "/first", "/second", "/gone")
    await cache.invalidate("gone")
    left, call = True, request(url)
    abandoned: Any = app(call.scope, call.receive, call.send)
    copy_context().run(abandoned.send, None)
    left = False
    with suppress(ValueError):
        abandoned.close()
    with anyio.fail_after(5):
        assert (await ask(app, url)).body == b"page"


async def test_a_guards_answer_tells_of_a_known_url_that_it_is_not_stored(cache: Cache) -> None:
    """Whether what is stored there is there, or gone."""
    open_to_all = True

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            answer = self.app if open_to_all or scope["type"] != "http" else PlainTextResponse("no", status_code=401)
            await answer(scope, receive, send)

    app = CacheMiddleware(Guard(Starlette(routes=[Route("/{name}", page(tags=["pages"]))])), cache=cache)
    await set_precedent(app)
    open_to_all = False
    assert (await ask(app, "/first")).cache_status == 'asynctag; fwd=uri-miss; detail="status"'
    await cache.invalidate("pages")
    for url in ("/first", "/first?new=1"):
        refused = await ask(app, url)
        assert (refused.status, refused.cache_status) == (401, 'asynctag; fwd=uri-miss; detail="status"')


async def test_tags_go_out_with_what_is_brought_again(cache: Cache) -> None:
    app = CacheMiddleware(
        Starlette(routes=[Route("/{name}", page(tags=["pages"], public=True))]), cache=cache, expose_tags="x-tags"
    )
    for _ in range(5):  # by then there would be a precedent
        assert (await ask(app, "/first")).header("x-tags") == "pages"
        await cache.invalidate("pages")


async def test_a_record_comes_to_say_what_a_response_says_that_is_brought_again(cache: Cache) -> None:
    """A page that becomes public: what is stored of its other queries is served before routing too."""
    public = False

    async def both(request: Request) -> PlainTextResponse:
        endpoint = declared if public else cached
        request.scope["endpoint"] = endpoint
        answer: PlainTextResponse = await endpoint(request)
        return answer

    async def declared(request: Request) -> PlainTextResponse:
        add_tags("pages")
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"})

    cached = page(tags=["pages"])
    routes = [Route("/both", both), Route("/{name}", declared)]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)
    await set_precedent(app)
    assert "stored" in (await ask(app, "/both")).cache_status
    await cache.invalidate("pages")
    public = True
    assert "; stored" in (await ask(app, "/both")).cache_status
    recorded = [
        entry.load() for key, entry in memory_of(cache)._entries.items() if entry.codec is DIMENSIONS and "/both" in key
    ]
    assert [one.public for one in recorded] == [True]


# --- a hit at the endpoint -------------------------------------------------------------------------------


async def test_a_hit_at_the_endpoint_needs_no_exchange(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the URL is the whole key: the application's words go out as they are, with those of a hit."""
    app = CacheMiddleware(Starlette(routes=[Route("/{name}", page(tags=["pages"]))]), cache=cache)
    first = await ask(app, "/page")

    def refuse(*args: object) -> None:
        raise AssertionError("an exchange is made")

    monkeypatch.setattr(silence, "Exchange", refuse)
    for _ in range(2):
        hit = await ask(app, "/page")
        assert hit.hit
        assert (hit.status, hit.body, hit.header("etag")) == (200, first.body, first.header("etag"))
    monkeypatch.undo()
    await cache.invalidate("pages")
    assert (await ask(app, "/page")).cache_status == 'asynctag; fwd=stale; stored; detail="tag pages"'


async def test_who_asks_of_a_hit_at_the_endpoint_is_told_and_nothing_more_is_stored(cache: Cache) -> None:
    """A middleware within asks as the hit goes by, and calls the endpoint once more as a function."""
    said: list[Any] = []
    cached = page(tags=["pages"])

    class Curious:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            async def send_on(message: Any) -> None:
                if scope["type"] == "http" and message["type"] == "http.response.start":
                    explained = await cache_of(Request(scope)).explain_response()
                    again = await cached(Request(scope))
                    said.append((explained.policy, explained.entry is not None, type(again)))
                await send(message)

            await self.app(scope, receive, send_on)

    app = CacheMiddleware(Curious(Starlette(routes=[Route("/{name}", cached)])), cache=cache)
    first = await ask(app, "/page")
    stored = dict(memory_of(cache)._entries)
    for _ in range(3):
        answer = await ask(app, "/page")
        assert answer.hit
        assert answer.body == first.body
    assert stored == memory_of(cache)._entries
    policy, found, kind = said[-1]
    assert policy is not None
    assert policy.ttl == 60
    assert found
    assert kind is PlainTextResponse, "not a hit for who calls the endpoint as a function"


async def test_a_window_may_be_put_into_a_hit_on_its_way(cache: Cache) -> None:
    """By what stands within, for who asks: it is filled, and the page is nobody else's."""

    @cache.window(name="badge")
    async def badge() -> str:
        return "BADGE"

    class Badges:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            if (b"x-badge", b"1") not in scope["headers"]:
                await self.app(scope, receive, send)
                return
            text = str(badge()).encode()

            async def send_on(message: Any) -> None:
                if message["type"] == "http.response.body":
                    message = {**message, "body": message["body"] + text}
                await send(message)

            await self.app(scope, receive, send_on)

    app = CacheMiddleware(Badges(Starlette(routes=[Route("/{name}", page())])), cache=cache)
    for _ in range(2):
        await ask(app, "/page")
    answer = await ask(app, "/page", headers={"x-badge": "1"})
    assert answer.hit
    assert answer.body == b"pageBADGE"
    assert answer.header("cache-control") == "private, no-store"
    assert (await ask(app, "/page")).body == b"page"


async def test_no_window_is_awaited_once_a_hit_was_found(cache: Cache) -> None:
    """As on a miss: what awaits it would work on hits alone."""
    said: list[str] = []

    @cache.window(name="badge")
    async def badge() -> str:
        return "BADGE"

    cached = page()

    async def around(request: Request) -> Any:
        request.scope["endpoint"] = cached
        response = await cached(request)
        try:
            await badge()
        except WindowError:
            said.append("refused")
        return response

    app = CacheMiddleware(Starlette(routes=[Route("/{name}", around)]), cache=cache)
    assert [(await ask(app, "/page")).hit for _ in range(2)] == [False, True]
    assert said == ["refused", "refused"]


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("hit", [False, True])
async def test_a_computation_within_depends_on_the_page_that_it_asks_for(cache: Cache, public: bool, hit: bool) -> None:
    """A middleware within caches what the rest of the application sends, a hit or not, by a computation of its own."""
    price = "old"

    @cache_response(60, tags=["price"], public=public)
    async def priced(request: Request) -> PlainTextResponse:
        return PlainTextResponse(price)

    class Fragments:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            if (b"x-fragment", b"1") not in scope["headers"]:
                await self.app(scope, receive, send)
                return

            async def compute() -> str:
                body = b""

                async def keep(message: Any) -> None:
                    nonlocal body
                    body += message.get("body", b"")

                await self.app(scope, receive, keep)
                return body.decode()

            await PlainTextResponse(await cache.get_or_set("fragment", compute, ttl=60))(scope, receive, send)

    app = CacheMiddleware(Fragments(Starlette(routes=[Route("/{name}", priced)])), cache=cache)
    await set_precedent(app, "/a", "/b", "/c")
    # With a cookie, a hit is not served before routing.
    headers = {"x-fragment": "1", "cookie": "id=1"} if public and hit else {"x-fragment": "1"}
    assert (await ask(app, "/a" if hit else "/new", headers=headers)).body == b"old"
    price = "new"
    await cache.invalidate("price")
    assert (await ask(app, "/newer", headers=headers)).body == b"new"


async def test_a_hit_at_the_endpoint_is_for_its_route_alone(cache: Cache) -> None:
    """An endpoint that another calls as a function gives no hit of the other's URL."""
    inner = page()

    @cache_response(60)
    async def outer(request: Request) -> PlainTextResponse:
        response = await inner(request)
        return PlainTextResponse(b"outer " + response.body)

    async def free(request: Request) -> PlainTextResponse:
        response = await inner(request)
        assert type(response) is PlainTextResponse
        return PlainTextResponse(b"free " + response.body)

    routes = [Route("/outer", outer), Route("/free", free), Route("/inner", inner)]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)
    for _ in range(3):
        bodies = [(await ask(app, path)).body for path in ("/inner", "/outer", "/free")]
        assert bodies == [b"page", b"outer page", b"free page"]


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


async def silent(request: Request) -> PlainTextResponse:
    return PlainTextResponse("page")


async def varied(request: Request) -> PlainTextResponse:
    add_tags("varied")
    return PlainTextResponse("page", headers={"cache-control": "public, max-age=60", "vary": "accept"})


async def chunks() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


async def streamed(request: Request) -> StreamingResponse:
    return StreamingResponse(chunks(), headers={"cache-control": "public, max-age=60"})


async def test_no_request_leaves_a_cycle_behind(cache: Cache) -> None:
    """Whatever a request makes is freed as it ends, and not by the garbage collector."""
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


class Connection:
    """As a server's: idle after the response, with a timer that keeps the context in which the last of it went out."""

    def __init__(self, timers: list[Context]) -> None:
        self.timers = timers

    async def receive(self) -> Any:
        await anyio.sleep_forever()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.timers.append(copy_context())


@pytest.mark.parametrize(
    "path", ["/silent/{}", "/silent/same", "/page/{}", "/page/same", "/varied/same", "/stream/{}", "/turns/same"]
)
async def test_an_idle_connection_is_not_kept_by_its_timer(cache: Cache, path: str) -> None:
    """What a request leaves in the context leads neither to the connection nor to what was received and sent on it."""

    async def turns(request: Request) -> PlainTextResponse:
        """What nobody wants cached at first, and then somebody does."""
        return PlainTextResponse("page", headers={"cache-control": "public, max-age=60"} if timers else {})

    endpoints = {"silent": silent, "page": page(), "varied": varied, "stream": streamed, "turns": turns}
    routes = [Route(f"/{name}/{{n}}", endpoint) for name, endpoint in endpoints.items()]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)
    timers: list[Context] = []
    for n in range(5):
        connection = Connection(timers)
        idle = ref(connection)
        await app(request(path.format(n)).scope, connection.receive, connection.send)
        del connection
        await all_blocked()  # so that a task that waited for the client's end is gone
        gc.collect()
        assert idle() is None
        await cache.invalidate("varied")
    assert len(timers) == 5


@pytest.mark.parametrize("path", ["/silent/{}", "/page/{}", "/page/same", "/varied/{}"])
async def test_who_outlives_a_request_finds_that_it_is_over(cache: Cache, path: str) -> None:
    """A task of the application that goes on receives that the client is gone, and sending fails, as it does where a
    server refuses it: one that would send for ever ends."""
    left: list[tuple[Receive, Send]] = []

    async def application(scope: Any, receive: Receive, send: Send) -> None:
        left.append((receive, send))
        await inner(scope, receive, send)

    endpoints = {"silent": silent, "page": page(), "varied": varied}
    inner = Starlette(routes=[Route(f"/{name}/{{n}}", endpoint) for name, endpoint in endpoints.items()])
    app = CacheMiddleware(application, cache=cache)
    for n in range(3):
        call = await ask(app, path.format(n))
        sent = len(call.messages)
        receive, send = left[-1]
        assert await receive() == {"type": "http.disconnect"}
        with pytest.raises(OSError, match="after the application had returned"):
            await send(whole(b"late"))
        assert len(call.messages) == sent


async def test_a_start_without_a_status_leaves_nothing_behind(cache: Cache) -> None:
    """A server may refuse it or not: the request is over as any other, and what was gathered counts."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        add_tags("page")
        await send({"type": "http.response.start", "headers": []})

    cached = CacheMiddleware(app, cache=cache)
    runs: list[str] = []

    @cache.cached(ttl=60, name="around")
    async def around() -> int:
        runs.append("run")
        await request("/page").run(cached)
        return len(runs)

    assert await around() == 1
    await cache.invalidate("page")
    assert await around() == 2
    assert current_scope.get() is None


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_disabled_cache_makes_no_backend_for_a_request(guarded: bool) -> None:
    """It may be bound to one afterwards, and asks for one where it has to."""
    cache = Cache(require_backend=guarded)
    app = CacheMiddleware(Starlette(routes=[Route("/page", page())]), cache=cache)
    with cache.disabled():
        for _ in range(2):
            assert (await ask(app, "/page")).text == "page"
    cache.bind(MemoryBackend())
    assert "stored" in (await ask(app, "/page")).cache_status


async def test_a_page_within_a_disabled_cache_of_another_backend_is_not_stored(cache: Cache) -> None:
    """The invalidations of the one within would not reach the one around."""
    inner = Cache(MemoryBackend())
    price = 1

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        add_tags("price")
        await PlainTextResponse(f"price {price}", headers={"cache-control": "s-maxage=60"})(scope, receive, send)

    around = CacheMiddleware(CacheMiddleware(app, cache=inner), cache=cache)
    with inner.disabled():
        assert (await ask(around, "/page")).text == "price 1"
        price = 2
        await inner.invalidate("price")
        assert (await ask(around, "/page")).text == "price 2"
