"""What the middleware serves, stores and says, on applications of any kind."""

import contextvars
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, WebSocketRoute
from starlette.routing import Route as StarletteRoute
from starlette.websockets import WebSocket

from asynctag import Cache, Wait, add_tags, no_store
from asynctag.backends.memory import MemoryBackend
from asynctag.errors import ConfigurationError
from asynctag.http import CacheMiddleware, Policy, cache_of, cache_response
from asynctag.http import exchange as exchange_module
from asynctag.http import middleware as middleware_module
from asynctag.testing import FakeClock
from asynctag.windows import Window
from tests.http.driver import BrokenBackend, Route, all_blocked, ask, begin, running, watched

pytestmark = pytest.mark.anyio


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time of day, by which `Age` is told: `wall.now` moves it."""
    wall = SimpleNamespace(now=1_700_000_000.0)
    wall.time = lambda: wall.now
    monkeypatch.setattr(exchange_module, "time", wall)
    monkeypatch.setattr(middleware_module, "time", wall)
    return wall


class Page:
    """A bare ASGI application that answers with its number of runs, with headers that can be changed."""

    def __init__(self, status: int = 200, text: str = "run {}", **headers: str) -> None:
        self.runs, self.status, self.text = 0, status, text
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.runs += 1
        if self.error is not None:
            raise self.error
        response = PlainTextResponse(self.text.format(self.runs), status_code=self.status, headers=self.headers)
        await response(scope, receive, send)


def public(**more: str) -> Page:
    return Page(cache_control="public, max-age=60", **more)


def decorated(cache: Cache, endpoint: Any, *args: Any, **policy: Any) -> Starlette:
    app = Starlette(routes=[StarletteRoute("/", cache_response(*(args or (60,)), **policy)(endpoint))])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


def counting(**headers: str) -> Any:
    runs: list[int] = []

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse(f"run {len(runs)}", headers={n.replace("_", "-"): v for n, v in headers.items()})

    return page


# --- what is stored -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["public, max-age=60", "s-maxage=60", "max-age=0, s-maxage=60", "PUBLIC , Max-Age=60"])
async def test_a_response_that_says_so_itself_is_served_before_routing(cache: Cache, said: str) -> None:
    page = Page(cache_control=said)
    app = CacheMiddleware(page, cache=cache)
    assert [(await ask(app)).text for _ in range(3)] == ["run 1"] * 3
    assert page.runs == 1


@pytest.mark.parametrize("said", ["max-age=60", "public", "public, max-age=0", "s-maxage=0", "", "immutable"])
async def test_a_response_that_does_not_say_so_is_not_stored(cache: Cache, said: str) -> None:
    """A plain `max-age` often means the browser."""
    page = Page(cache_control=said)
    app = CacheMiddleware(page, cache=cache)
    assert [(await ask(app)).text for _ in range(2)] == ["run 1", "run 2"]


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize(
    ("while_leased", "comes"), [("serve_stale", "run 1"), (Wait(0.02), "run 2"), ("bypass", "run 2")], ids=str
)
async def test_while_a_transaction_holds_a_tag(while_leased: Any, comes: str, public: bool) -> None:
    """Responses are served as the cache says, before routing and at the endpoint; after the end all is new."""
    cache = Cache(MemoryBackend(), while_leased=while_leased)
    app, backend = decorated(cache, counting(), 60, tags=["x"], public=public), cache._filling().backend
    assert (await ask(app)).text == "run 1"
    await backend.lease(["|t|x"], "holder", 30)
    response = await ask(app)
    assert response.text == comes
    assert ("hit" in str(response.header("cache-status"))) is (comes == "run 1")
    if comes == "run 1":
        assert "ttl=-1" in str(response.header("cache-status"))
    await backend.release(["|t|x"], "holder")
    assert (await ask(app)).text == f"run {int(comes[-1]) + 1}"


async def test_a_plain_max_age_is_enough_where_the_middleware_is_told_so(cache: Cache) -> None:
    app = CacheMiddleware(Page(cache_control="max-age=60"), cache=cache, store="rfc9111")
    assert [(await ask(app)).text for _ in range(2)] == ["run 1"] * 2


@pytest.mark.parametrize("status", [201, 204, 206, 301, 302, 304, 400, 404, 500, 503])
async def test_only_200_is_stored_by_a_policy(cache: Cache, status: int) -> None:
    page = Page(status)
    app = CacheMiddleware(page, cache=cache, policy=lambda _: Policy(ttl=60, public=True))
    for _ in range(2):
        assert (await ask(app)).status == status
    assert page.runs == 2


@pytest.mark.parametrize("status", [404, 301, 204])
async def test_listed_statuses_are_stored(cache: Cache, status: int) -> None:
    runs: list[int] = []

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse("" if status == 204 else "x", status_code=status)

    app = decorated(cache, page, statuses=[200, status])
    first, second = await ask(app), await ask(app)
    assert (first.status, second.status, len(runs)) == (status, status, 1)
    assert second.hit
    assert second.header("content-length") == first.header("content-length")


async def test_partial_responses_are_not_stored(cache: Cache) -> None:
    page = public(content_range="bytes 0-1/5")
    app = CacheMiddleware(page, cache=cache)
    await ask(app)
    await ask(app)
    assert page.runs == 2


async def test_a_range_is_cut_from_what_is_stored(cache: Cache) -> None:
    """And goes to the application where nothing is."""
    app = CacheMiddleware(public(), cache=cache)
    assert (await ask(app, headers={"range": "bytes=0-1"})).text == "run 1"
    assert (await ask(app)).text == "run 2"
    part = await ask(app, headers={"range": "bytes=0-1"})
    assert (part.status, part.text, part.header("content-range"), part.hit) == (206, "ru", "bytes 0-1/5", True)
    assert (await ask(app)).text == "run 2"


async def test_no_store_called_while_rendering_keeps_the_response_out(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        no_store()
        return PlainTextResponse("x")

    app = decorated(cache, page)
    await ask(app)
    assert not (await ask(app)).hit


async def test_a_response_ends_with_its_ttl(cache: Cache, clock: FakeClock) -> None:
    app = CacheMiddleware(public(), cache=cache)
    await ask(app)
    clock.advance(59.9)
    assert (await ask(app)).text == "run 1"
    clock.advance(0.2)
    assert (await ask(app)).text == "run 2"


async def test_a_response_does_not_outlive_what_it_was_built_from(cache: Cache, clock: FakeClock) -> None:
    @cache.cached(ttl=10, name="short")
    async def short() -> str:
        return "s"

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await short())

    app = decorated(cache, page)
    await ask(app)
    clock.advance(9)
    assert (await ask(app)).hit
    clock.advance(2)
    assert not (await ask(app)).hit


async def test_default_ttl_counts_where_the_route_gives_none(clock: FakeClock) -> None:
    for cache in watched(clock, default_ttl=60):
        app = decorated(cache, counting(), None)
        await ask(app)
        assert (await ask(app)).hit


async def test_a_ttl_above_the_caches_maximum_is_refused(cache: Cache) -> None:
    call = await ask(decorated(cache, counting(), 10**9))
    assert isinstance(call.error, ConfigurationError)
    assert "1000000000" in str(call.error)


# --- tags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner_is_cached", [False, True])
async def test_a_response_has_the_tags_of_all_that_was_used_while_it_was_rendered(
    cache: Cache, inner_is_cached: bool
) -> None:
    """Hits and misses, children that failed, tasks, threads. Fails where `run` opens no scope."""

    @cache.cached(ttl=600, tags=["deep"], name="deep")
    async def deep() -> str:
        return "deep"

    @cache.cached(ttl=600, tags=["child:{n}"], name="child")
    async def child(n: int) -> str:
        return await deep() + str(n)

    @cache.cached(ttl=600, tags=["broken"], name="broken")
    async def broken() -> str:
        add_tags("broken:late")
        raise LookupError

    async def page(request: Request) -> PlainTextResponse:
        with pytest.raises(LookupError):
            await broken()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, 1)
            tasks.start_soon(child, 2)
        await anyio.to_thread.run_sync(add_tags, "thread")
        cache_of(request).add_tags("request")
        add_tags("late")
        return PlainTextResponse("x")

    app = decorated(cache, page, tags=["own"])
    if inner_is_cached:
        await child(1)
        await child(2)
    for tag in ("deep", "child:1", "child:2", "broken", "broken:late", "thread", "request", "late", "own"):
        await ask(app)
        assert (await ask(app)).hit
        await cache.invalidate(tag)
        assert not (await ask(app)).hit, tag


async def test_an_invalidation_drops_the_response_before_the_next_request(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        add_tags("data")
        return PlainTextResponse(str(len(runs)), headers={"cache-control": "public, max-age=60"})

    runs: list[int] = []
    app = CacheMiddleware(Starlette(routes=[StarletteRoute("/", page)]), cache=cache)
    for expected in range(1, 5):
        assert (await ask(app)).text == str(expected)
        assert (await ask(app)).text == str(expected)
        await cache.invalidate("data")


@pytest.mark.parametrize("clear", [True, False])
async def test_clear_and_other_tags(cache: Cache, clear: bool) -> None:
    app = CacheMiddleware(public(), cache=cache)
    await ask(app)
    await (cache.clear() if clear else cache.invalidate("other"))
    assert (await ask(app)).hit is not clear


async def test_a_request_that_came_before_the_invalidation_does_not_store_after_it(cache: Cache) -> None:
    """The response's stamp is from before the application saw the request, dependencies and all."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        add_tags("data")
        return PlainTextResponse("old")

    app = decorated(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            begin(tasks, app)
            await route.entered.wait()
            await cache.invalidate("data")
            route.go.set()
    assert not (await ask(app)).hit


async def test_tags_pass_through_middleware_that_runs_the_application_in_another_task(cache: Cache) -> None:
    async def pass_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async def page(request: Request) -> PlainTextResponse:
        add_tags("data")
        return PlainTextResponse("x")

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)  # inside the cache
    app.add_middleware(CacheMiddleware, cache=cache)
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)  # outside it
    await ask(app)
    assert (await ask(app)).hit
    await cache.invalidate("data")
    assert not (await ask(app)).hit


async def test_a_mounted_application_is_cached_by_the_outer_middleware(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        add_tags("data")
        return PlainTextResponse(request.url.path)

    inner = Starlette(routes=[StarletteRoute("/page", cache_response(60)(page))])
    app = Starlette(routes=[Mount("/one", inner), Mount("/two", inner)])
    app.add_middleware(CacheMiddleware, cache=cache)
    for _ in range(2):
        assert (await ask(app, "/one/page")).text == "/one/page"
        assert (await ask(app, "/two/page")).text == "/two/page"
    assert (await ask(app, "/one/page")).hit
    await cache.invalidate("data")
    assert not (await ask(app, "/two/page")).hit


async def test_a_middleware_of_a_mounted_application_does_not_hide_tags_from_the_outer_one(cache: Cache) -> None:
    """What the inner one serves, the outer one may not keep past an invalidation."""

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        add_tags("data")
        return PlainTextResponse(str(len(runs)), headers={"cache-control": "public, max-age=60"})

    runs: list[int] = []
    inner = Starlette(routes=[StarletteRoute("/page", page)])
    inner.add_middleware(CacheMiddleware, cache=cache)
    app = Starlette(routes=[Mount("/m", inner)])
    app.add_middleware(CacheMiddleware, cache=cache)
    await ask(app, "/m/page")
    assert (await ask(app, "/m/page")).text == "1"
    await cache.invalidate("data")
    assert (await ask(app, "/m/page")).text == "2"


# --- what changes the key -----------------------------------------------------------------------------


async def test_different_languages_at_once_on_a_url_never_seen(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        return PlainTextResponse(
            request.headers["accept-language"],
            headers={"vary": "accept-language", "cache-control": "public, max-age=60"},
        )

    app = CacheMiddleware(Starlette(routes=[StarletteRoute("/", page)]), cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, headers={"accept-language": lang}) for lang in ("de", "fr")]
            await all_blocked()
            route.go.set()
    assert [call.text for call in calls] == ["de", "fr"]
    for lang in ("de", "fr"):
        later = await ask(app, headers={"accept-language": lang})
        assert (later.text, later.hit) == (lang, True)
    assert not (await ask(app, headers={"accept-language": "en"})).hit


async def test_the_order_of_the_query_does_not_matter_and_of_one_name_it_does(cache: Cache) -> None:
    app = CacheMiddleware(public(), cache=cache)
    assert (await ask(app, "/?a=1&b=2")).text == (await ask(app, "/?b=2&a=1")).text == "run 1"
    assert (await ask(app, "/?a=1&a=2")).text != (await ask(app, "/?a=2&a=1")).text


@pytest.mark.parametrize("public", [False, True])
async def test_query_names_what_counts(cache: Cache, public: bool) -> None:
    app = decorated(cache, counting(), query=["id"], public=public)
    assert (await ask(app, "/?id=1&utm_source=a")).text == "run 1"
    assert (await ask(app, "/?utm_source=b&id=1")).text == "run 1"
    assert (await ask(app, "/?id=1")).text == "run 1"
    assert (await ask(app, "/?id=2")).text == "run 2"


async def test_cookies_that_are_said_not_to_matter_do_not(cache: Cache) -> None:
    app = decorated(cache, counting(), cookies=(), public=True)
    assert (await ask(app, headers={"cookie": "utm=1"})).text == "run 1"
    assert (await ask(app, headers={"cookie": "utm=2"})).text == "run 1"
    assert (await ask(app)).text == "run 1"


async def test_the_request_may_ask_for_a_new_one_which_is_stored_with_a_whole_life(
    cache: Cache, clock: FakeClock
) -> None:
    """What was there before counts for nothing in what takes its place: not its age, not its tags."""
    app = CacheMiddleware(public(), cache=cache)
    await ask(app)
    clock.advance(50)
    fresh = await ask(app, headers={"cache-control": "no-cache"})
    assert fresh.text == "run 2"
    clock.advance(50)
    later = await ask(app)
    assert (later.text, later.hit) == ("run 2", True)


async def test_a_request_with_no_store_leaves_nothing(cache: Cache) -> None:
    app = CacheMiddleware(public(), cache=cache)
    await ask(app, headers={"cache-control": "no-store"})
    assert (await ask(app)).text == "run 2"


# --- HEAD and the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, {"public": True}, {"public": False}])
async def test_head_is_served_where_the_application_accepts_it(cache: Cache, policy: dict[str, Any] | None) -> None:
    runs: list[int] = []

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse("body", headers={"cache-control": "public, max-age=60"})

    endpoint = page if policy is None else cache_response(60, **policy)(page)
    app = CacheMiddleware(Starlette(routes=[StarletteRoute("/", endpoint)]), cache=cache)
    await ask(app)
    for _ in range(3):
        call = await ask(app, method="HEAD")
        assert (call.status, call.header("content-length")) == (200, "4")
    assert call.hit
    assert call.header("content-length") == "4"
    assert len(runs) <= 2
    assert (await ask(app)).body == b"body"


async def test_a_head_that_comes_first_is_not_what_a_get_gets(cache: Cache) -> None:
    app = decorated(cache, counting(), public=True)
    await ask(app, method="HEAD")
    assert (await ask(app)).text == "run 2"
    assert (await ask(app)).hit


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
async def test_other_methods_pass_untouched(cache: Cache, method: str) -> None:
    """But those that may change something make what is stored of the URL stale (RFC 9111 §4.4)."""
    page = public()
    app = CacheMiddleware(page, cache=cache)
    await ask(app)
    bodies: list[bytes] = []

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            bodies.append(message["body"])
            if not message["more_body"]:
                break
        await page(scope, receive, send)

    call = await ask(CacheMiddleware(echo, cache=cache), method=method, chunks=[b"a", b"b"])
    assert call.text == "run 2"
    assert bodies == [b"a", b"b"]
    assert call.cache_status == ""
    assert (await ask(app)).text == ("run 1" if method == "OPTIONS" else "run 3")


async def test_a_cache_of_the_request_works_in_any_method_and_in_websockets(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        tagged = cache_of(request)
        value = await tagged.get_or_set("k", compute, ttl=60, tags=["t"])
        tagged.add_tags("anything")
        tagged.no_store()
        await tagged.invalidate("page")
        return PlainTextResponse(value)

    async def compute() -> str:
        return "v"

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        tagged = cache_of(websocket)
        await websocket.send_text(await tagged.get_or_set("k", compute, ttl=60, tags=["t"]))
        await websocket.close()

    app = Starlette(routes=[StarletteRoute("/", page, methods=["GET", "POST"]), WebSocketRoute("/ws", socket)])
    app.add_middleware(CacheMiddleware, cache=cache)
    assert (await ask(app, method="POST")).text == "v"
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "root_path": ""}
    await app(scope | {"subprotocols": []}, receive, send)
    assert [one["type"] for one in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "v"


async def test_without_the_middleware_it_says_how_to_add_it(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        cache_of(request)
        raise AssertionError

    for endpoint in (page, cache_response(60)(counting())):
        call = await ask(Starlette(routes=[StarletteRoute("/", endpoint)]))
        assert isinstance(call.error, ConfigurationError)
        assert "add_middleware(CacheMiddleware, cache=cache)" in str(call.error)


# --- validators and ages ------------------------------------------------------------------------------


async def test_age_grows_with_the_time_since_the_response_was_made(cache: Cache, wall: SimpleNamespace) -> None:
    app = CacheMiddleware(public(age="7"), cache=cache)
    await ask(app)
    assert (await ask(app)).header("age") == "7"
    wall.now += 3.9
    assert (await ask(app)).header("age") == "10"
    wall.now -= 1000
    assert (await ask(app)).header("age") == "0"


async def test_an_age_that_came_along_shortens_the_life(cache: Cache, clock: FakeClock) -> None:
    app = CacheMiddleware(public(age="50"), cache=cache)
    await ask(app)
    clock.advance(11)
    assert not (await ask(app)).hit


async def test_the_etag_is_strong_and_of_the_body_alone(cache: Cache) -> None:
    """So that every process gives the same: it is a digest, fixed here."""
    first = await ask(CacheMiddleware(public(text="same"), cache=cache), "/a")
    other = await ask(CacheMiddleware(public(text="same"), cache=cache), "/b")
    assert first.header("etag") == other.header("etag") == f'"{blake2b(b"same", digest_size=16).hexdigest()}"'
    assert (await ask(CacheMiddleware(public(text="other"), cache=cache), "/c")).header("etag") != first.header("etag")


async def test_the_applications_own_etag_is_kept(cache: Cache) -> None:
    app = CacheMiddleware(public(etag='W/"mine"'), cache=cache)
    assert (await ask(app)).header("etag") == 'W/"mine"'
    assert (await ask(app)).header("etag") == 'W/"mine"'
    assert (await ask(app, headers={"if-none-match": '"mine"'})).status == 304


@pytest.mark.parametrize("on_a_hit", [True, False])
async def test_a_client_that_has_it_gets_304(cache: Cache, on_a_hit: bool) -> None:
    tag = (await ask(CacheMiddleware(public(text="x"), cache=cache), "/elsewhere")).header("etag") or ""
    app = CacheMiddleware(public(text="x", x_other="1"), cache=cache)
    if on_a_hit:
        await ask(app)
    call = await ask(app, headers={"if-none-match": f'"other", {tag}'})
    assert (call.status, call.body, call.hit) == (304, b"", on_a_hit)
    assert call.header("etag") == tag
    assert call.header("content-length") is None
    assert call.header("x-other") is None
    whole = await ask(app, headers={"if-none-match": '"other"'})
    assert (whole.status, whole.body, whole.hit) == (200, b"x", True)


async def test_last_modified_answers_where_there_is_no_etag_to_ask_for(cache: Cache) -> None:
    date = "Mon, 02 Jan 2023 03:04:05 GMT"
    app = CacheMiddleware(public(last_modified=date), cache=cache)
    await ask(app)
    assert (await ask(app, headers={"if-modified-since": date})).status == 304
    assert (await ask(app, headers={"if-modified-since": "Sun, 01 Jan 2023 03:04:05 GMT"})).status == 200
    assert (await ask(app, headers={"if-modified-since": date, "if-none-match": '"x"'})).status == 200


async def test_an_etag_of_before_an_invalidation_does_not_answer_304(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        add_tags("data")
        return PlainTextResponse(str(len(runs)))

    runs: list[int] = []
    app = decorated(cache, page, public=True)
    tag = (await ask(app)).header("etag") or ""
    assert (await ask(app, headers={"if-none-match": tag})).status == 304
    await cache.invalidate("data")
    call = await ask(app, headers={"if-none-match": tag})
    assert (call.status, call.text) == (200, "2")


@pytest.mark.parametrize("asked", ["*", '"mine"'])
async def test_a_stored_error_is_never_answered_with_304(cache: Cache, asked: str) -> None:
    """RFC 9110 §13.2.1: a precondition counts where the answer without it would be a success."""

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("no such thing", status_code=404, headers={"etag": '"mine"'})

    app = decorated(cache, page, statuses=[404])
    for _ in range(2):
        assert (await ask(app, headers={"if-none-match": asked})).status == 404


async def test_clients_are_told_to_ask_where_the_route_says_nothing(cache: Cache) -> None:
    """No invalidation reaches their caches."""
    app = decorated(cache, counting())
    assert [(await ask(app)).header("cache-control") for _ in range(2)] == ["no-cache"] * 2
    other = decorated(cache, counting(cache_control="max-age=5"))
    assert [(await ask(other, "/?2")).header("cache-control") for _ in range(2)] == ["max-age=5"] * 2


# --- Cache-Status -------------------------------------------------------------------------------------


async def test_cache_status_of_a_miss_a_hit_and_an_invalidation(cache: Cache, clock: FakeClock) -> None:
    app = decorated(cache, counting(), tags=["product:635"], public=True)
    assert (await ask(app)).cache_status == "asynctag; fwd=uri-miss; stored"
    clock.advance(20)
    assert (await ask(app)).cache_status == "asynctag; hit; ttl=40"
    await cache.invalidate("product:635")
    assert (await ask(app)).cache_status == 'asynctag; fwd=stale; stored; detail="tag product:635"'
    clock.advance(61)
    assert (await ask(app)).cache_status == 'asynctag; fwd=stale; stored; detail="expired"'


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"authorization": "x"}, "authorization"),
        ({"cookie": "s=1"}, "cookie"),
        ({"cache-control": "no-store"}, "no-store"),
        ({"if-match": '"x"'}, "precondition"),
        ({"content-length": "3"}, "body"),
    ],
)
@pytest.mark.parametrize("policy", [{}, {"public": True}, None], ids=["endpoint", "public", "declared"])
async def test_cache_status_names_why_a_request_went_past(
    cache: Cache, headers: dict[str, str], why: str, policy: dict[str, Any] | None
) -> None:
    if policy is None:
        app: Any = CacheMiddleware(public(), cache=cache)
        await ask(app)  # the URL is known to be cached
    else:
        app = decorated(cache, counting(), **policy)
    assert (await ask(app, headers=headers)).cache_status == f'asynctag; fwd=bypass; detail="{why}"'


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"set_cookie": "s=1"}, "set-cookie"),
        ({"cache_control": "private"}, "private"),
        ({"cache_control": "no-store"}, "no-store"),
        ({"vary": "*"}, "vary-*"),
    ],
)
async def test_cache_status_names_why_a_response_is_not_stored(cache: Cache, headers: Any, why: str) -> None:
    assert (await ask(decorated(cache, counting(**headers)))).cache_status == f'asynctag; fwd=uri-miss; detail="{why}"'


async def test_a_url_that_nobody_caches_gets_no_header(cache: Cache) -> None:
    assert (await ask(CacheMiddleware(Page(), cache=cache))).all("cache-status") == []


async def test_the_cache_says_its_name(cache: Cache) -> None:
    app = CacheMiddleware(public(), cache=cache, name='my "shop"')
    assert (await ask(app)).cache_status.startswith('"my \\"shop\\""; fwd=')


async def test_cache_status_of_caches_before_it_is_not_stored(cache: Cache) -> None:
    app = CacheMiddleware(public(cache_status="origin; hit"), cache=cache)
    assert (await ask(app)).all("cache-status")[0] == "origin; hit"
    assert len((await ask(app)).all("cache-status")) == 1


# --- tags as a header ---------------------------------------------------------------------------------


async def test_tags_go_out_in_a_header_for_debugging(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        add_tags("b", "a")
        return PlainTextResponse("x")

    app = CacheMiddleware(
        Starlette(routes=[StarletteRoute("/", cache_response(60)(page))]), cache=cache, expose_tags="X-Tags"
    )
    assert [(await ask(app)).header("x-tags") for _ in range(2)] == ["a, b"] * 2


@pytest.mark.parametrize(
    "tag", ["a\r\nSet-Cookie: s=1", "a\nb", "a\0b", "ü\u2028", "\x85", "a\x7fb", '"; x="', "\ud7ff"]
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_no_tag_can_break_a_header(cache: Cache, tag: str, streamed: bool) -> None:
    """Neither in the header for tags nor in the one that names the tag behind a miss."""

    async def page(request: Request) -> Any:
        add_tags(tag)
        return StreamingResponse(iter(["a", "b"])) if streamed else PlainTextResponse("x")

    app = CacheMiddleware(
        Starlette(routes=[StarletteRoute("/", cache_response(60)(page))]), cache=cache, expose_tags="x-tags"
    )
    calls = [await ask(app), await ask(app)]
    await cache.invalidate(tag)
    calls.append(await ask(app))
    assert "fwd=stale" in calls[-1].cache_status
    for call in calls:
        for name, value in call.start["headers"]:
            assert all(0x20 <= byte < 0x7F for byte in name + value), (name, value)
        assert call.all("set-cookie") == []


# --- stale on purpose ---------------------------------------------------------------------------------

request_user: contextvars.ContextVar[str] = contextvars.ContextVar("request_user", default="nobody")


class AsUser:
    """Middleware that puts who is asking into a context variable, as authentication does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request_user.set("alice")
            scope.setdefault("state", {})["user"] = "alice"
        await self.app(scope, receive, send)


@pytest.mark.parametrize("public", [False, True])
async def test_a_stale_response_is_served_while_it_is_renewed_in_the_background(
    cache: Cache, clock: FakeClock, public: bool
) -> None:
    """Without the client: the renewal waits, and the client has its answer."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = decorated(cache, page, stale_while_revalidate=600, public=public)
    async with running(app):
        route.go.set()
        await ask(app)
        route.go = anyio.Event()
        clock.advance(61)
        stale = [await ask(app) for _ in range(3)]
        assert [call.text for call in stale] == ["run 1"] * 3
        assert stale[0].cache_status == "asynctag; hit; ttl=-1"
        await all_blocked()
        assert route.runs == 2
        route.go.set()
        await all_blocked()
        later = await ask(app)
        assert (later.text, later.cache_status) == ("run 2", "asynctag; hit; ttl=60")


async def test_a_stale_response_is_renewed_in_the_foreground_where_the_cache_is_not_open(
    cache: Cache, clock: FakeClock
) -> None:
    app = decorated(cache, counting(), stale_while_revalidate=600)
    await ask(app)
    clock.advance(61)
    assert (await ask(app)).text == "run 2"
    assert (await ask(app)).text == "run 2"


async def test_a_response_past_its_stale_period_is_not_served(cache: Cache, clock: FakeClock) -> None:
    app = decorated(cache, counting(), stale_while_revalidate=10)
    async with running(app):
        await ask(app)
        clock.advance(71)
        assert (await ask(app)).text == "run 2"


async def test_a_soft_invalidation_renews_and_a_hard_one_drops(cache: Cache) -> None:
    app = decorated(cache, counting(), tags=["data"], stale_while_revalidate=600)
    async with running(app):
        await ask(app)
        await cache.invalidate("data", soft=True)
        assert (await ask(app)).text == "run 1"
        await all_blocked()
        assert (await ask(app)).text == "run 2"
        await cache.invalidate("data")
        assert (await ask(app)).text == "run 3"


async def test_a_renewal_does_not_see_the_request_of_whoever_caused_it(cache: Cache, clock: FakeClock) -> None:
    """Neither their context variables nor what their validators and directives asked for."""
    seen: list[tuple[str, Any]] = []

    async def page(request: Request) -> PlainTextResponse:
        seen.append((request_user.get(), request.headers.get("if-none-match")))
        return PlainTextResponse("x")

    inner = decorated(cache, page, stale_while_revalidate=600)
    app = AsUser(inner)
    async with running(app):
        tag = (await ask(app)).header("etag") or ""
        clock.advance(61)
        assert (await ask(app, headers={"if-none-match": tag})).status == 304
        await all_blocked()
        assert (await ask(app)).cache_status.endswith("ttl=60")
    assert seen == [("alice", None), ("nobody", None)]


async def test_a_renewal_finds_the_state_that_the_lifespan_left(cache: Cache, clock: FakeClock) -> None:
    """Where connection pools are kept: the server puts it into each request."""
    pools: list[str] = []

    async def page(request: Request) -> PlainTextResponse:
        pools.append(request.state.pool)
        return PlainTextResponse("x")

    app = decorated(cache, page, stale_while_revalidate=600)
    async with running(app):
        await ask(app, state={"pool": "pool"})
        clock.advance(61)
        await ask(app, state={"pool": "pool"})
        await all_blocked()
        assert (await ask(app, state={"pool": "pool"})).cache_status.endswith("ttl=60")
    assert pools == ["pool", "pool"]


async def test_a_renewal_finds_its_way_into_a_mounted_application(cache: Cache, clock: FakeClock) -> None:
    """Routing has written into the scope by then; the renewal starts from the request as it came."""
    apps: list[Any] = []

    async def page(request: Request) -> PlainTextResponse:
        apps.append((request.app, request.url.path, request.path_params["n"]))
        return PlainTextResponse(f"run {len(apps)}")

    inner = Starlette(routes=[StarletteRoute("/page/{n}", cache_response(60, stale_while_revalidate=600)(page))])
    app = Starlette(routes=[Mount("/m", inner)])
    app.add_middleware(CacheMiddleware, cache=cache)
    async with running(app):
        await ask(app, "/m/page/1")
        clock.advance(61)
        assert (await ask(app, "/m/page/1")).text == "run 1"
        await all_blocked()
        assert (await ask(app, "/m/page/1")).text == "run 2"
    assert apps == [(inner, "/m/page/1", "1")] * 2


async def test_a_renewal_of_a_streamed_response_waits_for_its_client(cache: Cache, clock: FakeClock) -> None:
    """A `receive` that gave messages for ever would keep Starlette's listener spinning, and the process with it."""
    second: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        if second:
            with anyio.move_on_after(0.01) as limit:
                await receive()
            second.append("waits" if limit.cancelled_caught else "gets messages for ever")
        headers = {"cache-control": "public, max-age=60, stale-while-revalidate=600"}
        await PlainTextResponse(f"run {len(second)}", headers=headers)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    async with cache:
        await ask(wrapped)
        second.append("first")
        clock.advance(61)
        assert (await ask(wrapped)).text == "run 0"
        with anyio.fail_after(10):
            while len(second) < 2 or cache._filling().flights._open:
                await anyio.lowlevel.checkpoint()
        assert (await ask(wrapped)).text == "run 2"
    assert second == ["first", "waits"]


async def test_a_head_renews_as_a_get_does(cache: Cache, clock: FakeClock) -> None:
    app = decorated(cache, counting(), stale_while_revalidate=600)
    async with running(app):
        await ask(app)
        clock.advance(61)
        assert (await ask(app, method="HEAD")).hit
        await all_blocked()
        assert (await ask(app)).text == "run 2"


async def test_a_renewal_that_fails_leaves_the_stale_response_and_no_flight(
    cache: Cache, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    page = Page(cache_control="public, max-age=60, stale-while-revalidate=600")
    app = CacheMiddleware(page, cache=cache)
    async with cache:
        await ask(app)
        clock.advance(61)
        page.error = RuntimeError("down")
        with caplog.at_level(logging.WARNING, logger="asynctag"):
            assert (await ask(app)).text == "run 1"
            await all_blocked()
        assert "renewal" in caplog.text
        page.error = None
        clock.advance(2)
        assert (await ask(app)).text == "run 1"
        await all_blocked()
        assert (await ask(app)).text == "run 3"


@pytest.mark.parametrize("fails", ["raises", "answers 500", "answers 503"])
@pytest.mark.parametrize("public", [False, True])
async def test_a_stale_response_is_served_instead_of_an_error(
    cache: Cache, clock: FakeClock, fails: str, public: bool
) -> None:
    failing = [False]

    async def page(request: Request) -> PlainTextResponse:
        if not failing[0]:
            return PlainTextResponse("well")
        if fails == "raises":
            raise RuntimeError("down")
        return PlainTextResponse("down", status_code=int(fails[-3:]))

    app = decorated(cache, page, stale_if_error=600, tags=["data"], public=public)
    await ask(app)
    failing[0] = True
    clock.advance(61)
    for _ in range(2):
        call = await ask(app)
        assert (call.status, call.text, call.error) == (200, "well", None)
        assert "hit; ttl=-" in call.cache_status
    await cache.invalidate("data")  # a hard invalidation: no data from before it, whatever happens
    assert (await ask(app)).status >= 500


async def test_past_its_period_an_error_is_an_error(cache: Cache, clock: FakeClock) -> None:
    page = Page(cache_control="public, max-age=60, stale-if-error=10")
    app = CacheMiddleware(page, cache=cache)
    await ask(app)
    page.error = RuntimeError("down")
    clock.advance(71)
    assert isinstance((await ask(app)).error, RuntimeError)


async def test_a_fallback_does_not_come_after_half_a_body(cache: Cache, clock: FakeClock) -> None:
    failing = [False]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", b"public, max-age=60, stale-if-error=600")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if failing[0]:
            raise RuntimeError("down")
        await send({"type": "http.response.body", "body": b" whole", "more_body": False})

    wrapped = CacheMiddleware(app, cache=cache)
    await ask(wrapped)
    clock.advance(61)
    failing[0] = True
    call = await ask(wrapped)
    assert isinstance(call.error, RuntimeError)
    assert call.body == b"half"


# --- off, broken, or not there ------------------------------------------------------------------------


async def test_a_disabled_cache_serves_and_stores_nothing(cache: Cache) -> None:
    app = decorated(cache, counting(), public=True)
    await ask(app)
    with cache.disabled():
        assert (await ask(app)).text == "run 2"
        assert (await ask(app, "/?new")).text == "run 3"
    assert (await ask(app)).text == "run 1"
    assert (await ask(app, "/?new")).text == "run 4"


@pytest.mark.parametrize("policy", [{}, {"public": True}, {"stale_if_error": 60, "stale_while_revalidate": 60}])
async def test_a_backend_that_does_not_answer_lets_responses_through(clock: FakeClock, policy: dict[str, Any]) -> None:
    cache = Cache(BrokenBackend(clock=clock))
    app = decorated(cache, counting(), **policy)
    assert [(await ask(app)).text for _ in range(3)] == ["run 1", "run 2", "run 3"]
    assert (await ask(app, method="HEAD")).status == 200
    assert cache._filling().flights._open == {}


async def test_a_backend_that_does_not_answer_leaves_errors_what_they_are(clock: FakeClock) -> None:
    cache = Cache(BrokenBackend(clock=clock))

    async def page(request: Request) -> PlainTextResponse:
        raise RuntimeError("down")

    call = await ask(decorated(cache, page, stale_if_error=60))
    assert isinstance(call.error, RuntimeError)
    assert cache._filling().flights._open == {}


# --- the middleware's own policy ----------------------------------------------------------------------


async def test_a_policy_may_come_from_a_function_of_the_request(cache: Cache) -> None:
    def policy(connection: Any) -> Policy | None:
        return Policy(ttl=60, public=True, query=("id",)) if connection.url.path == "/cached" else None

    page = Page()
    app = CacheMiddleware(page, cache=cache, policy=policy)
    assert (await ask(app, "/cached?id=1&utm=1")).text == "run 1"
    assert (await ask(app, "/cached?utm=2&id=1")).text == "run 1"
    assert (await ask(app, "/other")).text == "run 2"
    assert (await ask(app, "/other")).text == "run 3"


async def test_a_policy_from_a_function_has_to_be_public(cache: Cache) -> None:
    app = CacheMiddleware(Page(), cache=cache, policy=lambda connection: Policy(ttl=60))
    call = await ask(app)
    assert isinstance(call.error, ConfigurationError)
    assert "public=True" in str(call.error)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cache", None),
        ("cache", "cache"),
        ("store", "all"),
        ("store", None),
        ("max_body", -1),
        ("max_body", 1.5),
        ("max_body", True),
        ("max_body", "1MB"),
        ("expose_tags", ""),
        ("expose_tags", "x tags"),
        ("expose_tags", "x\r\ny"),
        ("expose_tags", "xü"),
        ("expose_tags", True),
        ("target", "x target"),
        ("target", "Cache-Control"),
        ("target", "expires"),
        ("name", None),
        ("name", 5),
        ("policy", Policy(ttl=5, public=True)),
        ("policy", "public"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_construction(option: str, value: Any) -> None:
    """The error names the option and the value."""
    with pytest.raises(ConfigurationError) as caught:
        CacheMiddleware(Page(), **{"cache": Cache(), option: value})
    assert option in str(caught.value)
    assert repr(value) in str(caught.value)


# --- URLs of which nobody wants responses cached ------------------------------------------------------------


async def test_a_url_of_which_nobody_wants_anything_cached_costs_no_look_up(cache: Cache) -> None:
    """From its second request on. In Redis, each would be a round trip."""
    page = Page()
    app = CacheMiddleware(page, cache=cache)
    await ask(app)
    with spying(cache) as reads:
        assert (await ask(app)).text == "run 2"
        assert reads == []
        page.headers["cache-control"] = "public, max-age=60"
        await ask(app)
        await ask(app)
        assert reads != []


@pytest.mark.parametrize("before", [{}, {"cache_control": "no-store"}, {"cache_control": "private, max-age=60"}])
async def test_it_is_cached_as_soon_as_its_responses_say_so(
    cache: Cache, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Window, "any_defined", False)  # which other tests define: with any, the first would be stored
    page = Page(**before)
    app = CacheMiddleware(page, cache=cache)
    for _ in range(3):
        await ask(app)
    page.headers["cache-control"] = "public, max-age=60"
    assert [(await ask(app)).hit for _ in range(3)] == [False, False, True]


async def test_it_is_cached_as_soon_as_its_route_says_so(cache: Cache) -> None:
    """A guard that has answered before says nothing of the endpoint."""
    let_in: list[bool] = [False]

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await (self.app if let_in[0] else PlainTextResponse("no", 403))(scope, receive, send)

    app = Starlette(routes=[StarletteRoute("/", cache_response(60, public=True)(counting()))])
    app.add_middleware(Guard)
    app.add_middleware(CacheMiddleware, cache=cache)
    for _ in range(2):
        assert (await ask(app)).status == 403
    let_in[0] = True
    assert [(await ask(app)).hit for _ in range(3)] == [False, True, True]


async def test_a_request_that_says_something_gets_a_whole_exchange(cache: Cache) -> None:
    """Silence is for those that leave everything to the cache."""
    app = CacheMiddleware(Page(), cache=cache)
    for _ in range(2):
        await ask(app)
    assert (await ask(app, headers={"cache-control": "only-if-cached"})).status == 504


async def test_it_stays_uncached_while_the_cache_is_disabled(cache: Cache) -> None:
    page = Page()
    app = CacheMiddleware(page, cache=cache)
    await ask(app)
    page.headers["cache-control"] = "public, max-age=60"
    with cache.disabled():
        await ask(app)
    assert not (await ask(app)).hit


async def test_what_it_was_built_from_counts_for_a_cached_computation_around_it(cache: Cache) -> None:
    """A cached function that calls the application depends on what the application's caches depend on."""

    async def page(request: Request) -> PlainTextResponse:
        add_tags("product:635")
        return PlainTextResponse("page")

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache)
    runs = []

    @cache.cached(ttl=60, name="around")
    async def around() -> str:
        runs.append((await ask(app)).text)
        return runs[-1]

    for _ in range(2):
        await around()
    await cache.invalidate("product:635")
    await around()
    assert len(runs) == 2


async def test_what_one_application_has_stored_another_serves(cache: Cache) -> None:
    """Two middlewares over one cache, in one process."""
    first, second = (CacheMiddleware(Page(cache_control="public, max-age=60"), cache=cache) for _ in range(2))
    assert [(await ask(app)).hit for app in (second, first)] == [False, True]
    assert [(await ask(app, "/new")).hit for app in (first, second)] == [False, True]


async def test_where_tags_go_out_they_always_do(cache: Cache) -> None:
    async def page(request: Request) -> PlainTextResponse:
        add_tags("a")
        return PlainTextResponse("page")

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache, expose_tags="x-tags")
    assert [(await ask(app)).header("x-tags") for _ in range(3)] == ["a", "a", "a"]


@contextmanager
def spying(cache: Cache) -> Iterator[list[str]]:
    """The keys that the backend is asked for."""
    backend = cache._filling().backend
    read, reads = backend.read, list[str]()

    async def counting_read(key: str) -> Any:
        reads.append(key)
        return await read(key)

    backend.read = counting_read  # type: ignore[method-assign]
    yield reads
    del backend.read  # type: ignore[method-assign]
