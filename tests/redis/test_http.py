"""The response cache on Redis: what holds in memory holds here, in one round trip a hit, and between processes."""

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis import client as client_module
from asynctag.backends.redis import connection as connection_module
from asynctag.backends.redis.format import Format
from asynctag.errors import BackendError
from asynctag.http import CacheMiddleware, cache_of, cache_response
from asynctag.http import middleware as middleware_module
from asynctag.http.stored import RESPONSES
from asynctag.http.variants import PLAIN
from asynctag.testing import FakeClock
from tests.http import test_collapsing, test_middleware, test_policies, test_rfc9111, test_streaming, test_users
from tests.http.driver import Call, Route, ask, begin, running
from tests.http.test_middleware import counting, decorated, public
from tests.redis.servers import Server
from tests.redis.watching import watching

pytestmark = pytest.mark.anyio

wall = test_middleware.wall

GERMAN, FRENCH = {"accept-language": "de"}, {"accept-language": "fr"}

#: How many bytes of a response the middleware holds, at most.
LARGE = 2 * middleware_module.MAX_HELD


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time of all processes, which stands still. The server's, by which entries end, is taken for the same."""
    monkeypatch.setattr(connection_module.Connection, "_set_clock", lambda *_: None)
    return FakeClock()


@pytest.fixture
async def process(redis_server: Server, clock: FakeClock) -> AsyncIterator[Callable[..., Cache]]:
    """Makes caches, each with a connection of its own, as each process has one. No flight may be left open."""
    caches: list[Cache] = []

    def start(*, url: str = redis_server.url, namespace: str = "", **options: Any) -> Cache:
        backend = RedisBackend.from_url(url, **options)
        backend.clock = clock  # type: ignore[method-assign]
        caches.append(Cache(backend, namespace=namespace))
        return caches[-1]

    yield start
    for cache in caches:
        flights = cache._filling().flights
        assert flights._open == {}, f"flights that nobody landed: {list(flights._open)}"
        await cache.aclose()


@pytest.fixture
def cache(process: Callable[..., Cache]) -> Cache:
    return process()


@pytest.fixture
def other(process: Callable[..., Cache]) -> Cache:
    """The cache of another process."""
    return process()


async def all_blocked() -> None:
    """Let every other task go on until it waits for something that is not Redis."""
    loop, calm = asyncio.get_running_loop(), 0
    while calm < 5:
        await asyncio.sleep(0)
        waiters = [task._fut_waiter for task in asyncio.all_tasks() if task is not asyncio.current_task()]  # type: ignore[attr-defined]
        asked = any(one._pending for one in connection_module._connections if one._loop is loop)
        asked = asked or any(loop in one._connecting for one in client_module._clients)
        calm = 0 if asked or any(one is None or one.done() for one in waiters) else calm + 1


class Shop:
    """What several processes serve: one price, which each of them may change."""

    def __init__(self) -> None:
        self.price = 1
        self.renders = 0

    def app(self, cache: Cache) -> Starlette:
        routes = [
            StarletteRoute("/public", cache_response(60, public=True)(self.page)),
            StarletteRoute("/declared", self.declared),
            StarletteRoute("/varied", cache_response(60, public=True, vary=["accept-language"])(self.page)),
            StarletteRoute("/cookies", cache_response(60, public=True, cookies=())(self.page)),
            StarletteRoute("/endpoint", cache_response(60)(self.page)),
            StarletteRoute("/price", self.edit, methods=["PUT"]),
        ]
        app = Starlette(routes=routes)
        app.add_middleware(CacheMiddleware, cache=cache, expose_tags="x-tags")
        return app

    async def page(self, request: Request) -> PlainTextResponse:
        self.renders += 1
        add_tags("price")
        language = request.headers.get("accept-language", "none")
        return PlainTextResponse(f"{self.price} {language}", headers={"content-language": language})

    async def declared(self, request: Request) -> PlainTextResponse:
        response = await self.page(request)
        response.headers["cache-control"] = "public, max-age=60"
        return response

    async def edit(self, request: Request) -> PlainTextResponse:
        self.price += 1
        await cache_of(request).invalidate("price")
        return PlainTextResponse("")


@pytest.fixture
def shop() -> Shop:
    return Shop()


async def hot(app: Any, path: str = "/", **more: Any) -> Call:
    """A hit by a look-up of its own: this process knows that there are hits."""
    for _ in range(4):
        call = await ask(app, path, **more)
    assert call.hit
    return call


# --- what holds in memory ------------------------------------------------------------------------------

FROM_MEMORY = (test_collapsing, test_middleware, test_policies, test_rfc9111, test_streaming, test_users)

#: Of the memory alone, whose entries it counts; and of rules that no backend has a part in.
LEFT_OUT = {
    "test_4_4_it_is_invalidated_before_the_answer_goes_out",
    "test_a_response_is_stored_before_its_last_byte_goes_out",
    "test_a_response_that_does_not_say_so_is_not_stored",
    "test_cache_status_names_why_a_request_went_past",
    "test_no_tag_can_break_a_header",
    "test_a_url_of_which_nobody_wants_anything_cached_costs_no_look_up",
    "test_only_200_is_stored_by_a_policy",
    "test_other_methods_pass_untouched",
    "test_what_is_above_max_body_is_passed_on_and_not_stored",
    "test_without_a_policy_too",
}


def _from_memory() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in FROM_MEMORY:
        for name, value in vars(module).items():
            if not name.startswith("test_") or name in LEFT_OUT or not inspect.iscoroutinefunction(value):
                continue
            if "cache" in inspect.signature(value).parameters:
                assert name not in found, f"two tests are called {name}"
                found[name] = value
    return found


globals().update(_from_memory())


@pytest.fixture(autouse=True)
def _as_on_redis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that were written for the memory. Every URL counts as one that was a hit before: a look-up more."""
    if request.function.__module__ == __name__:
        return
    for module in FROM_MEMORY:
        monkeypatch.setattr(module, "all_blocked", all_blocked, raising=False)
    begins = middleware_module.Known.__init__

    def begin_hot(known: Any, *keys: str) -> None:
        begins(known, *keys)
        known.dims = PLAIN

    monkeypatch.setattr(middleware_module.Known, "__init__", begin_hot)


# --- round trips ---------------------------------------------------------------------------------------


@contextmanager
def counting_pieces(server: Server) -> Iterator[SimpleNamespace]:
    """What the server gets within the block: commands, but for the time that a client asks for once a second."""
    seen = SimpleNamespace()
    with watching(server) as watched:
        yield seen
    seen.commands = [name for name in watched.commands if name != "TIME"]
    seen.pieces = watched.reads


@pytest.mark.parametrize("path", ["/public", "/declared", "/cookies"])
async def test_a_public_hit_is_one_round_trip(cache: Cache, shop: Shop, redis_server: Server, path: str) -> None:
    """Once one was served by this process: the body, and the journal's word on it."""
    app = shop.app(cache)
    await hot(app, path)
    with counting_pieces(redis_server) as seen:
        assert (await ask(app, path)).hit
    assert (seen.pieces, seen.commands) == (1, ["GETEX", "ZMSCORE"])


async def test_a_public_hit_that_varies_is_one_round_trip(cache: Cache, shop: Shop, redis_server: Server) -> None:
    """For each variant, by turns: with what tells them apart, which may have become more."""
    app = shop.app(cache)
    for headers in (GERMAN, FRENCH):
        await hot(app, "/varied", headers=headers)
    for headers in (GERMAN, FRENCH, GERMAN):
        with counting_pieces(redis_server) as seen:
            call = await ask(app, "/varied", headers=headers)
        assert (call.hit, call.text) == (True, f"1 {headers['accept-language']}")
        assert (seen.pieces, seen.commands) == (1, ["GETEX", "ZMSCORE"] * 2)


async def test_a_public_hit_is_one_round_trip_again_after_an_edit(
    cache: Cache, shop: Shop, redis_server: Server
) -> None:
    app = shop.app(cache)
    await hot(app, "/public")
    await ask(app, "/price", method="PUT")
    assert not (await ask(app, "/public")).hit
    assert (await ask(app, "/public")).hit
    with counting_pieces(redis_server) as seen:
        assert (await ask(app, "/public")).hit
    assert seen.pieces == 1


@pytest.mark.parametrize(
    ("path", "most"),
    [("/public", (5, 2, 4)), ("/declared", (4, 2, 4)), ("/varied", (5, 2, 4)), ("/endpoint", (5, 2, 3))],
)
async def test_no_request_takes_more_round_trips_than_it_needs(
    cache: Cache, shop: Shop, redis_server: Server, path: str, most: tuple[int, int, int]
) -> None:
    """The first of a URL, the first hit, and the first after an edit; an edit itself is one for its tags, and one for
    its URL (RFC 9111 §4.4)."""
    app, pieces = shop.app(cache), []
    await cache.lookup("the connection")
    for _ in range(2):
        with counting_pieces(redis_server) as seen:
            await ask(app, path)
        pieces.append(seen.pieces)
    await hot(app, path)
    with counting_pieces(redis_server) as seen:
        await ask(app, "/price", method="PUT")
    assert (seen.pieces, seen.commands) == (2, ["EVALSHA"] * 2)
    with counting_pieces(redis_server) as seen:
        assert (await ask(app, path)).text.startswith("2")
    pieces.append(seen.pieces)
    assert all(took <= may for took, may in zip(pieces, most, strict=True)), pieces


# --- whose response it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [{"authorization": "Bearer me"}, {"cookie": "session=me"}, {"cache-control": "no-cache"}]
)
@pytest.mark.parametrize("path", ["/public", "/declared", "/varied"])
async def test_a_request_that_is_somebodys_passes_by_what_is_held(
    cache: Cache, shop: Shop, path: str, headers: dict[str, str]
) -> None:
    app = shop.app(cache)
    await hot(app, path)
    assert not (await ask(app, path, headers=headers)).hit
    assert (await ask(app, path)).hit


@pytest.mark.parametrize("variants", [(GERMAN, FRENCH), ({}, GERMAN), (GERMAN, {"accept-language": "de, fr"})])
async def test_each_variant_is_its_own_however_the_requests_come(
    cache: Cache, other: Cache, shop: Shop, variants: tuple[dict[str, str], dict[str, str]]
) -> None:
    """Of one URL one response is held: it is not the other's."""
    apps = shop.app(cache), shop.app(other)
    for number in range(12):
        headers = variants[number % 2]
        call = await ask(apps[number // 4 % 2], "/varied", headers=headers)
        assert call.text == f"1 {headers.get('accept-language', 'none')}"
        assert call.header("content-language") == headers.get("accept-language", "none")
        assert call.header("content-length") == str(len(call.body))
    assert shop.renders == 2


async def test_of_another_host_scheme_root_or_query_it_is_another_response(cache: Cache) -> None:
    app = CacheMiddleware(public(), cache=cache)
    await hot(app)
    for number, more in enumerate(({"host": "b"}, {"scheme": "https"}, {"root_path": "/de"}, {"path": "/?a"}), start=2):
        for _ in range(4):
            assert (await ask(app, **{"path": "/", **more})).text == f"run {number}"
    assert (await ask(app)).text == "run 1"


#: What told a URL's responses apart before, and what does after, by the policies of two releases of the application.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "begins to vary": ({}, {"vary": ["x-tenant"]}),
    "varies by more": ({"vary": ["accept-language"]}, {"vary": ["accept-language", "x-tenant"]}),
    "varies by something else": ({"vary": ["accept"]}, {"vary": ["x-tenant"]}),
    "cookies begin to matter": ({"cookies": ()}, {"cookies": ["tenant"], "vary": ["x-tenant"]}),
    "more than the cookies matters": ({"cookies": ["a"]}, {"cookies": ["a"], "vary": ["x-tenant"]}),
    "not the whole query": ({}, {"query": ["id"], "vary": ["x-tenant"]}),
    "more than a part of the query": ({"query": ["id"]}, {"query": ["id"], "vary": ["x-tenant"]}),
}


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("change", CHANGES)
async def test_what_begins_to_tell_responses_apart_counts_for_the_next_request(
    cache: Cache, other: Cache, change: str, same_process: bool
) -> None:
    """In the process that sees it first and in those that have served hits until then. That request is one whose
    answer no hit is: it brings the new rule, and leaves nothing to whom it does not concern."""

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers.get("x-tenant", "none"))

    before, after = CHANGES[change]
    old = decorated(cache, page, public=True, **before)
    new = decorated(cache if same_process else other, page, public=True, **after)
    await hot(old)
    assert (await ask(new, headers={"x-tenant": "7", "cache-control": "no-cache"})).text == "7"
    assert (await ask(new, headers={"x-tenant": "8"})).text == "8"
    for tenant in ("7", "8", "9"):
        assert (await ask(old, headers={"x-tenant": tenant})).text == tenant


@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("before", ["", "accept-language"])
async def test_a_vary_that_grows_counts_for_the_next_request(
    cache: Cache, other: Cache, before: str, same_process: bool
) -> None:
    """As above, where the responses say so themselves, and only some of them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        tenant = dict(scope["headers"]).get(b"x-tenant", b"none").decode()
        vary = f"{before}, x-tenant".strip(", ") if tenant != "none" else before
        headers = {"cache-control": "public, max-age=60", **({"vary": vary} if vary else {})}
        await PlainTextResponse(tenant, headers=headers)(scope, receive, send)

    here = CacheMiddleware(app, cache=cache)
    there = here if same_process else CacheMiddleware(app, cache=other)
    await hot(here)
    assert (await ask(there, headers={"x-tenant": "7", "cache-control": "no-cache"})).text == "7"
    for tenant in ("8", "7", "none"):
        assert (await ask(here, headers={"x-tenant": tenant} if tenant != "none" else {})).text == tenant


@pytest.mark.parametrize("said", ["private", "no-store", "private, max-age=60"])
async def test_a_page_that_becomes_private_is_everybodys_own(cache: Cache, other: Cache, said: str) -> None:
    """Its URL is still known for public hits, in both processes."""
    page = public()
    apps = [CacheMiddleware(page, cache=one) for one in (cache, other)]
    for app in apps:
        await hot(app)
    page.headers["cache-control"] = said
    await other.clear()
    texts = [(await ask(app)).text for app in (*apps, *apps, *apps)]
    assert len(set(texts)) == 6


async def test_what_has_a_guard_from_now_on_is_not_served_before_it(cache: Cache, other: Cache) -> None:
    """A release takes `public=True` away. What it stores is let out by nobody but the route, in processes too that
    have served public hits of the URL."""
    page, entered = counting(), []

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        entered.append(scope["path"])
        await PlainTextResponse("who are you?", 403)(scope, receive, send)

    old = CacheMiddleware(decorated(cache, page, tags=["page"], public=True), cache=cache)
    new = decorated(other, page, tags=["page"])
    await hot(old)
    await other.invalidate("page")
    assert (await hot(new)).text == "run 2"
    old.app = outside
    assert [(await ask(old)).status for _ in range(3)] == [403] * 3
    assert len(entered) == 3


# --- stale, and not --------------------------------------------------------------------------------------


async def test_a_hit_ends_with_its_ttl(cache: Cache, other: Cache, clock: FakeClock) -> None:
    page = public()
    apps = [CacheMiddleware(page, cache=one) for one in (cache, other)]
    for app in apps:
        assert (await hot(app)).text == "run 1"
    clock.advance(59.9)
    assert [(await ask(app)).text for app in apps] == ["run 1"] * 2
    clock.advance(0.2)
    assert [(await ask(app)).text for app in apps] == ["run 2"] * 2


async def test_age_and_ttl_are_told_as_of_now(
    cache: Cache, other: Cache, clock: FakeClock, wall: SimpleNamespace
) -> None:
    """In each process, however long it has held the response."""
    page = public(age="5")
    apps = [CacheMiddleware(page, cache=one) for one in (cache, other)]
    for app in apps:
        await hot(app)
    for seconds in (0, 7, 13):
        clock.advance(seconds)
        wall.now += seconds
    for app in apps:
        call = await ask(app)
        assert (call.header("age"), call.cache_status) == ("25", "asynctag; hit; ttl=35")


@pytest.mark.parametrize("how", ["softly", "by time"])
async def test_a_stale_response_is_served_once_more_and_renewed_for_all(
    cache: Cache, other: Cache, clock: FakeClock, wall: SimpleNamespace, how: str
) -> None:
    """Where hits were served by a look-up of their own: what is stale goes the longer way."""
    page = counting()
    app, there = (decorated(one, page, public=True, tags=["row"], stale_while_revalidate=600) for one in (cache, other))
    async with running(app):
        await hot(app)
        await hot(there)
        if how == "softly":
            await other.invalidate("row", soft=True)
        else:
            clock.advance(61)
            wall.now += 61
        stale = await ask(app)
        assert (stale.text, stale.cache_status) == ("run 1", "asynctag; hit; ttl=-1")
        await all_blocked()
        for one in (app, there):
            assert [(await ask(one)).text for _ in range(3)] == ["run 2"] * 3
        await other.invalidate("row")
        assert (await ask(app)).text == "run 3"


@pytest.mark.parametrize("fails", ["raises", "answers 503"])
async def test_an_error_is_answered_with_what_is_stale_and_never_with_what_was_invalidated(
    cache: Cache, other: Cache, clock: FakeClock, wall: SimpleNamespace, fails: str
) -> None:
    failing = [False]

    async def page(request: Request) -> PlainTextResponse:
        add_tags("row")
        if failing[0] and fails == "raises":
            raise RuntimeError("down")
        return PlainTextResponse("down", 503) if failing[0] else PlainTextResponse("well")

    app = decorated(cache, page, public=True, stale_if_error=600)
    await hot(app)
    failing[0] = True
    clock.advance(61)
    wall.now += 61
    for _ in range(3):
        call = await ask(app)
        assert (call.status, call.text, call.error) == (200, "well", None)
    await other.invalidate("row")
    for _ in range(2):
        assert (await ask(app)).status >= 500


# --- what a hit says -------------------------------------------------------------------------------------


async def test_a_head_is_answered_from_the_get_and_leaves_it_its_own(cache: Cache, shop: Shop) -> None:
    """With its body as far as the server, which leaves it out."""
    app = shop.app(cache)
    await hot(app, "/public")
    for _ in range(3):
        head = await ask(app, "/public", method="HEAD")
        assert (head.status, head.body, head.header("content-length")) == (200, b"1 none", "6")
        get = await ask(app, "/public")
        assert (get.hit, get.text) == (True, "1 none")
    assert head.hit


@pytest.mark.parametrize("path", ["/public", "/varied", "/endpoint"])
async def test_a_client_that_has_it_gets_304_until_it_is_changed_in_another_process(
    cache: Cache, other: Cache, shop: Shop, path: str
) -> None:
    app, there = shop.app(cache), shop.app(other)
    tag = (await hot(app, path)).header("etag") or ""
    call = await ask(app, path, headers={"if-none-match": tag})
    assert (call.status, call.body, call.hit) == (304, b"", True)
    await ask(there, "/price", method="PUT")
    call = await ask(app, path, headers={"if-none-match": tag})
    assert (call.status, call.text) == (200, "2 none")
    new = (await hot(app, path)).header("etag") or ""
    assert new != tag
    assert (await ask(there, path, headers={"if-none-match": new})).status == 304
    assert (await ask(there, path, headers={"if-none-match": tag})).status == 200


async def test_a_hit_shows_the_tags_of_the_response_that_it_is(cache: Cache, other: Cache) -> None:
    """Not those that were shown for the one before, under the same URL and within the same second."""
    tags = ["one"]

    async def page(request: Request) -> PlainTextResponse:
        add_tags("page", *tags)
        return PlainTextResponse("the same text")

    def app_of(one: Cache) -> Any:
        app = Starlette(routes=[StarletteRoute("/", cache_response(60, public=True)(page))])
        return CacheMiddleware(app, cache=one, expose_tags="x-tags")

    app, there = app_of(cache), app_of(other)
    assert (await hot(app)).header("x-tags") == "one, page"
    tags[:] = ["two"]
    await other.invalidate("page")
    assert (await hot(there)).header("x-tags") == "page, two"
    assert (await ask(app)).header("x-tags") == "page, two"
    await other.invalidate("two")
    assert not (await ask(app)).hit


async def test_what_stands_around_may_change_the_headers_of_a_hit_for_itself(cache: Cache, shop: Shop) -> None:
    """The list is each request's own, though they are held."""
    inner = CacheMiddleware(shop.app(cache), cache=cache)

    async def signing(scope: Any, receive: Any, send: Any) -> None:
        async def sign(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-signed", b"1"))
            await send(message)

        await inner(scope, receive, sign)

    for _ in range(5):
        assert (await ask(signing, "/public")).all("x-signed") == ["1"]


async def test_two_applications_with_one_cache_answer_each_in_its_own_words(cache: Cache) -> None:
    """They serve one URL space: the response is shared, what each says of itself is not."""
    page = counting(cache_control="public, max-age=60")
    routes = [StarletteRoute("/", page)]
    one = CacheMiddleware(Starlette(routes=routes), cache=cache, name="one")
    two = CacheMiddleware(Starlette(routes=routes), cache=cache, name="two", expose_tags="x-tags")
    for app, name, shown in ((one, "one", []), (two, "two", [""]), (one, "one", []), (two, "two", [""])):
        call = await hot(app)
        assert call.text == "run 1"
        assert call.cache_status.startswith(f"{name}; hit")
        assert call.all("x-tags") == shown


async def test_a_response_too_large_to_be_held_is_served_and_changes_as_any_other(cache: Cache, other: Cache) -> None:
    """Nothing of its body stays in the process: a thousand such would be a gigabyte."""
    filling = "x" * LARGE

    async def page(request: Request) -> PlainTextResponse:
        add_tags("row")
        return PlainTextResponse(f"{number[0]} {filling}")

    number = [1]
    app = CacheMiddleware(decorated(cache, page, public=True), cache=cache)
    for expected in (1, 2):
        number[0] = expected
        assert (await hot(app)).text == f"{expected} {filling}"
        (known,) = app._known.values()
        assert known.held is None
        await other.invalidate("row")


# --- bytes that are not what was stored -----------------------------------------------------------------


def stored_under(server: Server) -> tuple[bytes, bytes, bytes]:
    """The name of the one response that is stored, what its bytes begin with, and its body."""
    (name,) = [one for one in server.run("KEYS", "*entry:*") if b"http record" not in one]
    data = server.run("GET", name)
    head = Format(secret=None, compress_from=1 << 20, max_body=1 << 20).head(data).raw
    return name, head, data[len(head) :]


def changed(body: bytes, **fields: Any) -> bytes:
    return RESPONSES.encode(msgspec.structs.replace(RESPONSES.decode(body), **fields))


TAMPERED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "nothing at all": lambda head, body: b"",
    "something else": lambda head, body: b"something else",
    "half a head": lambda head, body: head[: len(head) // 2],
    "a head and no body": lambda head, body: head,
    "half a body": lambda head, body: head + body[: len(body) // 2],
    "a body and more": lambda head, body: head + body + b"\0",
    "another version": lambda head, body: head[:2] + b"\2" + head[3:] + body,
    "another type": lambda head, body: head + msgspec.msgpack.encode({"status": 200}),
    "a field less": lambda head, body: head + msgspec.msgpack.encode(msgspec.msgpack.decode(body)[:-4]),
    "text for a status": lambda head, body: head + msgspec.msgpack.encode(["200", *msgspec.msgpack.decode(body)[1:]]),
    "no tags": lambda head, body: head[:52] + b"\1\0\0\0\x90" + body,
}


@pytest.mark.parametrize("held", [True, False], ids=["held before", "not held"])
@pytest.mark.parametrize("how", TAMPERED)
async def test_a_response_that_was_tampered_with_is_a_clean_miss(
    cache: Cache, redis_server: Server, how: str, held: bool
) -> None:
    """Nothing of what was there before is served for it, and the next request finds a whole one."""
    page = public()
    app = CacheMiddleware(page, cache=cache)
    for _ in range(4 if held else 2):  # the second is the first hit, from when on it is worth a look-up
        await ask(app)
    name, head, body = stored_under(redis_server)
    redis_server.run("SET", name, TAMPERED[how](head, body))
    call = await ask(app)
    assert (call.error, call.status, call.text, call.hit) == (None, 200, "run 2", False)
    assert (await hot(app)).text == "run 2"


async def test_a_response_of_another_url_is_not_served_for_this_one(cache: Cache, redis_server: Server) -> None:
    """Its bytes name the key that they were stored under."""
    app = CacheMiddleware(public(), cache=cache)
    await hot(app, "/one")
    name, head, body = stored_under(redis_server)
    await hot(app, "/two")
    names = [one for one in redis_server.run("KEYS", "*entry:*") if b"http record" not in one and one != name]
    redis_server.run("SET", names[0], head + body)
    assert (await ask(app, "/two")).text == "run 3"


async def test_a_sealed_response_is_served_in_one_look_and_a_changed_one_is_a_miss(
    process: Callable[..., Cache], redis_server: Server
) -> None:
    cache = process(hmac_key=b"0123456789abcdef", compress_from=16)
    app = CacheMiddleware(public(), cache=cache)
    await hot(app)
    (name,) = [one for one in redis_server.run("KEYS", "*entry:*") if b"http record" not in one]
    data = redis_server.run("GET", name)
    redis_server.run("SET", name, data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    assert (await ask(app)).text == "run 2"
    assert (await hot(app)).text == "run 2"


# --- a server that is gone ------------------------------------------------------------------------------


async def test_the_application_answers_while_redis_is_gone_and_nothing_old_comes_back_with_it(
    process: Callable[..., Cache], clock: FakeClock, new_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed between two hits, and started again: with what it had on disk, and an edit that it did not get."""
    server = new_server()
    cache = process(url=server.url)
    cache._filling().backend._client._breaker._clock = clock  # type: ignore[attr-defined]
    shop = Shop()
    app = shop.app(cache)
    for path in ("/public", "/varied", "/endpoint"):
        await hot(app, path)
    server.run("SAVE")
    server.kill()
    shop.price = 2
    with caplog.at_level(logging.CRITICAL, logger="asynctag"):
        for path in ("/public", "/varied", "/endpoint", "/public", "/varied", "/endpoint"):
            call = await ask(app, path)
            assert (call.status, call.text, call.hit) == (200, "2 none", False)
    server.launch()
    clock.advance(2)  # the pause after which it is tried again
    for path in ("/public", "/varied", "/endpoint"):
        assert (await hot(app, path)).text == "2 none"


@pytest.mark.parametrize("public", [True, False])
async def test_a_server_that_goes_while_a_page_is_rendered_takes_no_answer_with_it(
    process: Callable[..., Cache],
    new_server: Callable[..., Server],
    caplog: pytest.LogCaptureFixture,
    public: bool,
) -> None:
    """Neither of who rendered it nor of those who wait for it."""
    server, route = new_server(), Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = decorated(process(url=server.url), page, public=public)
    with caplog.at_level(logging.CRITICAL, logger="asynctag"), anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app)]
            await route.entered.wait()
            calls += [begin(tasks, app) for _ in range(3)]
            await all_blocked()
            server.kill()
            route.go.set()
    assert [(call.error, call.status) for call in calls] == [(None, 200)] * 4


async def test_who_gives_up_during_the_look_up_leaves_nothing_behind(cache: Cache, shop: Shop) -> None:
    """The answer comes all the same, and is nobody else's."""
    app = shop.app(cache)
    for headers in (GERMAN, FRENCH):
        await hot(app, "/varied", headers=headers)
    (link,) = cache._filling().backend._client._links.values()  # type: ignore[attr-defined]
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as impatient:
            given_up = begin(impatient, app, "/varied", headers=GERMAN)
            while not link.connection._pending:
                await anyio.lowlevel.checkpoint()
            later = begin(tasks, app, "/varied", headers=FRENCH)
            impatient.cancel_scope.cancel()
    assert given_up.messages == []
    assert (later.text, later.hit) == ("1 fr", True)
    assert (await ask(app, "/varied", headers=GERMAN)).text == "1 de"


@pytest.mark.parametrize("path", ["/public", "/varied", "/endpoint"])
async def test_a_lost_journal_makes_every_hit_a_miss(cache: Cache, shop: Shop, redis_server: Server, path: str) -> None:
    """The response is still there, and held: nobody knows what was invalidated meanwhile."""
    app = shop.app(cache)
    await hot(app, path)
    redis_server.run("DEL", "{asynctag}journal")
    shop.price = 2
    assert (await ask(app, path)).text == "2 none"
    assert (await hot(app, path)).text == "2 none"


@pytest.mark.parametrize("path", ["/public", "/varied", "/endpoint"])
async def test_what_an_invalidation_in_the_queue_concerns_is_no_hit(
    cache: Cache, shop: Shop, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It could not be written: Redis still takes the response for valid, and this process knows better."""
    app = shop.app(cache)
    await hot(app, path)

    async def fails(*_: Any, **__: Any) -> None:
        raise BackendError("no answer")

    shop.price = 2
    with monkeypatch.context() as context:
        context.setattr(cache._filling().backend, "invalidate", fails)
        assert await cache.invalidate("price", queue=True) is False
    for _ in range(3):
        call = await ask(app, path)
        assert (call.text, call.hit) == ("2 none", False)
    assert await cache.flush_invalidations()
    assert (await hot(app, path)).text == "2 none"


# --- around it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/public", "/varied", "/endpoint"])
async def test_a_cached_computation_that_asks_the_application_depends_on_what_it_got(
    cache: Cache, other: Cache, shop: Shop, path: str
) -> None:
    """On a hit by a look-up of its own, too; whoever edits."""
    app, there = shop.app(cache), shop.app(other)

    async def whole() -> str:
        return f"page of {(await ask(app, path)).text}"

    await hot(app, path)
    for price in (1, 2, 3):
        assert await cache.get_or_set("whole", whole, ttl=600) == f"page of {price} none"
        assert await other.get("whole") == f"page of {price} none"
        await hot(app, path)
        await ask(there, "/price", method="PUT")
        assert await cache.get("whole") is None


async def test_a_cached_computation_does_not_outlive_the_response_that_it_asked_for(
    cache: Cache, shop: Shop, clock: FakeClock
) -> None:
    app = shop.app(cache)
    await hot(app, "/public")
    clock.advance(50)

    async def whole() -> str:
        return (await ask(app, "/public")).text

    await cache.get_or_set("whole", whole, ttl=600)
    clock.advance(9)
    assert await cache.get("whole") == "1 none"
    clock.advance(2)
    assert await cache.get("whole") is None


@pytest.mark.parametrize("path", ["/public", "/varied"])
async def test_a_disabled_or_overridden_cache_serves_nothing_that_is_held(
    cache: Cache, shop: Shop, clock: FakeClock, path: str
) -> None:
    app = shop.app(cache)
    await hot(app, path)
    shop.price = 2  # and nobody says so
    with cache.disabled():
        assert [(await ask(app, path)).text for _ in range(2)] == ["2 none"] * 2
    with cache.override(MemoryBackend(clock=clock)):
        assert [(await ask(app, path)).text for _ in range(4)] == ["2 none"] * 4
        assert (await ask(app, path)).hit
    assert (await hot(app, path)).text == "1 none"


async def test_two_threads_that_share_an_application_are_served_each_its_own(cache: Cache, shop: Shop) -> None:
    """At each line of the middleware on the way of one's hit, the other is served a whole one."""
    app = CacheMiddleware(shop.app(cache), cache=cache)
    with start_blocking_portal("asyncio") as one, start_blocking_portal("asyncio") as two:

        async def stopped_at(line: int) -> tuple[Call, bool]:
            lines = 0

            def watch(frame: Any, event: str, _: Any) -> Any:
                nonlocal lines
                if frame.f_code.co_filename != middleware_module.__file__:
                    return None
                lines += event == "line"
                if event == "line" and lines == line:
                    other = two.call(partial(ask, app, "/varied", headers=FRENCH))
                    check(other, "fr")
                return watch

            before = sys.gettrace()
            sys.settrace(watch)
            try:
                call = await ask(app, "/varied", headers=GERMAN)
            finally:
                sys.settrace(before)
            return call, lines >= line

        for portal, headers in ((two, FRENCH), (one, GERMAN)):
            portal.call(partial(hot, app, "/varied", headers=headers))
        line, reached = 0, True
        while reached:
            line += 1
            call, reached = one.call(stopped_at, line)
            check(call, "de")
    assert line > 20


def check(call: Call, language: str) -> None:
    """That a response is of one piece."""
    assert (call.text, call.hit) == (f"1 {language}", True)
    assert call.header("content-language") == language


# --- several processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/public", "/declared", "/varied", "/cookies", "/endpoint"])
async def test_an_edit_in_one_process_is_seen_by_the_next_request_in_every_other(
    process: Callable[..., Cache], shop: Shop, path: str
) -> None:
    """Whoever edits, and whoever has rendered or held what."""
    apps = [shop.app(process()) for _ in range(3)]
    for price in range(1, 7):
        for app in apps:
            assert (await hot(app, path)).text == f"{price} none"
        assert shop.renders == price
        await ask(apps[price % 3], "/price", method="PUT")
        first = await ask(apps[(price + 1) % 3], path)
        assert (first.text, first.hit) == (f"{price + 1} none", False)
        assert first.cache_status == 'asynctag; fwd=stale; stored; detail="tag price"'


@pytest.mark.parametrize("path", ["/public", "/endpoint"])
async def test_what_was_rendered_before_an_edit_elsewhere_is_not_stored_after_it(
    cache: Cache, other: Cache, path: str
) -> None:
    """The page reads its data, the other process changes it and says so, the page is stored: too late."""
    route, price = Route(), [1]

    async def page(request: Request) -> PlainTextResponse:
        read = price[0]
        await route.pause()
        add_tags("price")
        return PlainTextResponse(str(read))

    app, there = (decorated(one, page, public=path == "/public") for one in (cache, other))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            slow = begin(tasks, app)
            await route.entered.wait()
            price[0] = 2
            await other.invalidate("price")
            route.go.set()
    assert slow.text == "1"
    for one in (app, there):
        assert (await hot(one)).text == "2"


async def test_a_hit_that_was_looked_up_before_an_edit_is_the_last_of_the_old(
    cache: Cache, other: Cache, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is on the way while the edit is done: it may have that. Nobody who comes later has, held or not."""
    app = shop.app(cache)
    await hot(app, "/public")
    backend, looked, go = cache._filling().backend, anyio.Event(), anyio.Event()
    read = backend.read

    async def read_and_wait(key: str) -> Any:
        reading = await read(key)
        looked.set()
        await go.wait()
        return reading

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            with monkeypatch.context() as context:
                context.setattr(backend, "read", read_and_wait)
                slow = begin(tasks, app, "/public")
                await looked.wait()
            shop.price = 2
            await other.invalidate("price")
            assert (await hot(app, "/public")).text == "2 none"
            go.set()
    assert slow.text == "1 none"
    assert [(await ask(app, "/public")).text for _ in range(3)] == ["2 none"] * 3


@pytest.mark.parametrize("path", ["/public", "/varied", "/endpoint"])
async def test_a_clear_in_one_process_drops_the_responses_of_its_namespace_in_every_other(
    process: Callable[..., Cache], path: str
) -> None:
    shops, apps, caches = (Shop(), Shop()), [], []
    for shop, namespace in zip(shops, ("a", "b"), strict=True):
        caches += [process(namespace=namespace), process(namespace=namespace)]
        apps += [shop.app(caches[-2]), shop.app(caches[-1])]
    for app in apps:
        await hot(app, path)
    await caches[1].clear()
    assert not (await ask(apps[0], path)).hit
    assert (await ask(apps[2], path)).hit
    await process().clear()  # without a namespace: everything
    assert [(await ask(app, path)).hit for app in (apps[0], apps[2])] == [False, False]


async def test_what_varies_is_found_by_a_process_that_has_never_seen_the_url(
    process: Callable[..., Cache], shop: Shop
) -> None:
    """Before routing: what tells the responses apart is where any process finds it."""
    await hot(shop.app(process()), "/varied", headers=GERMAN)
    for headers, hit in ((GERMAN, True), (FRENCH, False), (FRENCH, True)):
        call = await ask(shop.app(process()), "/varied", headers=headers)
        assert (call.text, call.hit) == (f"1 {headers['accept-language']}", hit)


async def test_a_process_that_was_started_anew_finds_what_others_stored(
    cache: Cache, process: Callable[..., Cache], shop: Shop
) -> None:
    app = shop.app(cache)
    for path in ("/public", "/endpoint"):
        await hot(app, path)
    await cache.aclose()
    for path in ("/public", "/endpoint"):
        assert (await ask(shop.app(process()), path)).hit
        assert (await ask(app, path)).hit  # and one that has closed opens again
    assert shop.renders == 2
