"""The response cache as a shared HTTP cache: what the driver makes of the rules, by section of RFC 9111 and its kin."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags
from asynctag.errors import ConfigurationError
from asynctag.http import CacheMiddleware, Policy, cache_of, cache_response
from asynctag.http.surrogates import Surrogates
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, all_blocked, ask, begin

pytestmark = pytest.mark.anyio


class Origin:
    """An application with one representation, which answers conditions as the RFC says, and remembers its requests."""

    def __init__(self, **headers: str) -> None:
        self.etag: str | None = '"1"'
        self.text = "the page"
        self.headers = {"cache-control": "public, max-age=60"} | {n.replace("_", "-"): v for n, v in headers.items()}
        self.confirming: dict[str, str] = {}
        self.status = 200
        self.asked: list[dict[bytes, bytes]] = []
        self.methods: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        asked = dict(scope["headers"])
        self.asked.append(asked)
        self.methods.append(scope["method"])
        headers = dict(self.headers) | ({"etag": self.etag} if self.etag else {})
        response: Response = PlainTextResponse(self.text, self.status, headers=headers)
        if self.etag and asked.get(b"if-none-match") == self.etag.encode():
            response = Response(None, 304, headers={"etag": self.etag} | self.confirming)
        elif scope["method"] == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    @property
    def runs(self) -> int:
        return len(self.asked)


# --- §4.3: validation ---------------------------------------------------------------------------------


async def test_4_3_a_stale_response_is_asked_about_and_fresh_again(cache: Cache, clock: FakeClock) -> None:
    """The application says not modified; the client gets the whole page, and the next one a hit."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    again = await ask(app)
    assert (again.status, again.text) == (200, "the page")
    assert again.cache_status == "asynctag; fwd=stale; fwd-status=304; stored"
    assert origin.asked[1][b"if-none-match"] == b'"1"'
    clock.advance(59)
    assert (await ask(app)).hit
    assert origin.runs == 2


async def test_4_3_what_has_changed_is_sent_and_stored_anew(cache: Cache, clock: FakeClock) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    origin.etag, origin.text = '"2"', "another page"
    assert (await ask(app)).text == "another page"
    later = await ask(app)
    assert (later.text, later.hit, later.header("etag")) == ("another page", True, '"2"')


async def test_3_2_a_304_brings_the_stored_headers_up_to_date(cache: Cache, clock: FakeClock) -> None:
    """Those that it has replace those that were stored; a longer life counts; what describes the body stays."""
    origin = Origin(x_shown="old", x_kept="kept")
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    origin.confirming = {
        "x-shown": "new",
        "cache-control": "public, max-age=500",
        "content-type": "text/odd",
        "content-length": "0",
    }
    for _ in range(2):
        call = await ask(app)
        assert [call.header(name) for name in ("x-shown", "x-kept", "content-length")] == ["new", "kept", "8"]
        assert call.header("content-type") == "text/plain; charset=utf-8"
        clock.advance(400)
    assert origin.runs == 2


async def test_4_3_the_clients_own_condition_is_answered_from_what_was_confirmed(
    cache: Cache, clock: FakeClock
) -> None:
    """The application is asked about what is stored, the client told about what it has."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    has_another = await ask(app, headers={"if-none-match": '"0"', "range": "bytes=0-1"})
    assert (has_another.status, has_another.text) == (200, "the page")
    assert origin.asked[-1][b"if-none-match"] == b'"1"'
    assert b"range" not in origin.asked[-1]
    clock.advance(61)
    has_it = await ask(app, headers={"if-none-match": '"1"'})
    assert (has_it.status, has_it.body) == (304, b"")


async def test_4_3_4_a_304_of_something_else_confirms_nothing(cache: Cache, clock: FakeClock) -> None:
    """The application is asked again, without conditions."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    origin.confirming = {"etag": '"9"'}
    origin.text = "asked again"
    call = await ask(app)
    assert (call.status, call.text) == (200, "asked again")
    assert [b"if-none-match" in one for one in origin.asked] == [False, True, False]


@pytest.mark.parametrize(
    ("confirming", "why"),
    [
        ({"cache-control": "no-store"}, "no-store"),
        ({"cache-control": "private, max-age=60"}, "private"),
        ({"set-cookie": "session=alice"}, "set-cookie"),
        ({"vary": "*"}, "vary-*"),
    ],
)
async def test_4_3_a_304_may_end_the_storing(
    cache: Cache, clock: FakeClock, confirming: dict[str, str], why: str
) -> None:
    """This client gets the page, and its cookie; the next one asks the application, without conditions."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache, validate_for=100)
    await ask(app)
    clock.advance(61)
    origin.confirming = confirming
    call = await ask(app)
    assert (call.status, call.text) == (200, "the page")
    assert f'fwd-status=304; detail="{why}"' in call.cache_status
    assert call.header("set-cookie") == confirming.get("set-cookie")
    clock.advance(100)
    assert not (await ask(app)).hit
    assert b"if-none-match" not in origin.asked[-1]


async def test_4_3_an_invalidated_response_is_not_asked_about(cache: Cache, clock: FakeClock) -> None:
    """What it was built from has changed: a validator made of something else must not bring it back."""
    origin = Origin(cache_groups='"product:1"')
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    await cache.invalidate("product:1")
    assert (await ask(app)).cache_status == 'asynctag; fwd=stale; stored; detail="tag product:1"'
    assert b"if-none-match" not in origin.asked[-1]


@pytest.mark.parametrize(("validate_for", "asked"), [(30, True), (0, False)])
async def test_4_3_it_is_kept_for_so_long(cache: Cache, clock: FakeClock, validate_for: float, asked: bool) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache, validate_for=validate_for)
    await ask(app)
    clock.advance(80)
    await ask(app)
    assert (b"if-none-match" in origin.asked[-1]) is asked
    clock.advance(100)
    await ask(app)
    assert b"if-none-match" not in origin.asked[-1]


async def test_4_3_a_validator_that_the_cache_made_is_not_asked_about(cache: Cache, clock: FakeClock) -> None:
    """The application does not know it; nothing is kept past its freshness for it."""
    origin = Origin()
    origin.etag = None
    app = CacheMiddleware(origin, cache=cache)
    assert (await ask(app)).header("etag")
    clock.advance(61)
    await ask(app)
    assert b"if-none-match" not in origin.asked[-1]


async def test_4_3_what_is_kept_to_be_asked_about_replaces_no_error(cache: Cache, clock: FakeClock) -> None:
    """It has no `stale-if-error` (RFC 5861 §4): the client gets the error."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    clock.advance(61)
    origin.status, origin.etag = 503, None
    assert (await ask(app)).status == 503


async def test_4_3_renewals_in_the_background_ask_too(clock: FakeClock, cache: Cache) -> None:
    origin = Origin(cache_control="public, max-age=60, stale-while-revalidate=60")
    app = CacheMiddleware(origin, cache=cache)
    async with cache:
        await ask(app)
        clock.advance(70)
        assert (await ask(app)).hit
        with anyio.fail_after(5):
            while origin.runs < 2:
                await anyio.lowlevel.checkpoint()
        await all_blocked()
        assert origin.asked[-1][b"if-none-match"] == b'"1"'
        assert "ttl=60" in (await ask(app)).cache_status


# --- §4.3.5: HEAD ----------------------------------------------------------------------------------------


async def test_4_3_5_a_head_that_says_something_else_makes_what_is_stored_stale(cache: Cache) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    origin.etag = '"2"'
    assert (await ask(app, method="HEAD")).status == 200
    assert origin.methods == ["GET", "HEAD"]
    assert not (await ask(app)).hit


async def test_4_3_5_a_head_that_says_the_same_makes_it_fresh_again(cache: Cache, clock: FakeClock) -> None:
    origin = Origin(x_shown="old")
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    assert (await ask(app, method="HEAD")).body == b""
    clock.advance(61)
    origin.headers["x-shown"] = "new"
    assert not (await ask(app, method="HEAD")).hit
    call = await ask(app)
    assert (call.hit, call.text, call.header("x-shown")) == (True, "the page", "new")
    assert origin.methods == ["GET", "HEAD", "HEAD"]


# --- §4.4: unsafe methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "MOVE"])
async def test_4_4_a_change_makes_all_of_the_url_stale(cache: Cache, method: str) -> None:
    """Whatever its query and its variants; before the answer goes out, so that who has changed it sees that."""
    origin = Origin(vary="accept-language")
    app = CacheMiddleware(origin, cache=cache)
    pages: list[dict[str, Any]] = [
        {"path": "/a?page=1"},
        {"path": "/a?page=2"},
        {"path": "/a", "headers": {"accept-language": "de"}},
    ]
    for page in pages:
        await ask(app, **page)
        assert (await ask(app, **page)).hit
    await ask(app, "/b")
    await ask(app, "/a", method=method)
    assert not any([(await ask(app, **page)).hit for page in pages])
    assert (await ask(app, "/b")).hit


async def test_4_4_a_route_says_that_it_was_its_url(cache: Cache) -> None:
    app = shop(cache)
    await ask(app)
    await ask(app, method="POST")
    assert (await ask(app)).cache_status == 'asynctag; fwd=stale; stored; detail="its URL"'


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_4_4_an_error_changes_nothing(cache: Cache, status: int) -> None:
    """Who may not change a page cannot empty the cache of it either."""
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    origin.status = status
    await ask(app, method="POST")
    origin.status = 200
    assert (await ask(app)).hit


@pytest.mark.parametrize(
    ("location", "reached"),
    [("/b", True), ("http://shop/b", True), ("//shop/b", True), ("b", True), ("http://evil/b", False), ("/c", False)],
)
@pytest.mark.parametrize("name", ["location", "content-location"])
async def test_4_4_so_it_is_with_the_urls_that_the_answer_names(
    cache: Cache, name: str, location: str, reached: bool
) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app, "/b")
    origin.headers[name], origin.status = location, 303
    await ask(app, "/a", method="POST")
    origin.status = 200
    assert (await ask(app, "/b")).hit is not reached


async def test_4_4_it_is_invalidated_before_the_answer_goes_out(cache: Cache) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    await ask(app)
    seen: list[bool] = []
    call = Call({**(await ask(app)).scope, "method": "POST"})
    (key,) = [key for key in cache._filling().backend._entries if "record" not in key]  # type: ignore[attr-defined]
    call.on_message = lambda message: seen.append(cache._peek(key) is None)
    await call.run(app)
    assert seen[0]


async def test_4_4_a_computation_that_began_before_the_change_is_not_stored(cache: Cache) -> None:
    """The page was read before the change, and is sent after it."""
    route = Route()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        number = await route.pause() if scope["method"] == "GET" else 0
        await PlainTextResponse(str(number), headers={"cache-control": "public, max-age=60"})(scope, receive, send)

    app = CacheMiddleware(page, cache=cache)
    async with anyio.create_task_group() as tasks:
        early = begin(tasks, app)
        await route.entered.wait()
        await ask(app, method="POST")
        route.go.set()
        await early.ended.wait()
    assert not (await ask(app)).hit


# --- §5.2.1: what requests ask for --------------------------------------------------------------------------

ONLY_IF_CACHED = {"cache-control": "only-if-cached"}


async def test_5_2_1_7_only_if_cached_runs_nothing(cache: Cache, clock: FakeClock) -> None:
    origin = Origin()
    app = CacheMiddleware(origin, cache=cache)
    for _ in range(2):
        call = await ask(app, headers=ONLY_IF_CACHED)
        assert (call.status, call.body) == (504, b"")
        assert call.cache_status == 'asynctag; detail="only-if-cached"'
    await ask(app)
    assert (await ask(app, headers=ONLY_IF_CACHED)).text == "the page"
    clock.advance(61)
    assert (await ask(app, headers=ONLY_IF_CACHED)).status == 504
    assert origin.runs == 1


async def test_5_2_1_7_so_it_is_at_the_endpoint(cache: Cache, clock: FakeClock) -> None:
    """Where hits wait for the dependencies, the endpoint alone is left out."""
    runs: list[str] = []

    @cache_response(60)
    async def page(request: Request) -> PlainTextResponse:
        runs.append("ran")
        return PlainTextResponse("the page")

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache)
    await ask(app)
    assert (await ask(app, headers=ONLY_IF_CACHED)).text == "the page"
    clock.advance(61)
    assert (await ask(app, headers=ONLY_IF_CACHED)).status == 504
    assert runs == ["ran"]


@pytest.mark.parametrize(("stretched", "hit"), [("", True), ("must-revalidate, ", False)])
async def test_4_2_4_must_revalidate_is_stretched_by_nobody(
    cache: Cache, clock: FakeClock, stretched: str, hit: bool
) -> None:
    origin = Origin(cache_control=f"{stretched}public, max-age=60, stale-while-revalidate=60")
    app = CacheMiddleware(origin, cache=cache)
    async with cache:
        await ask(app)
        clock.advance(70)
        assert (await ask(app, headers={"cache-control": "max-stale=600"})).hit is hit
        await all_blocked()


# --- RFC 9211, 9213, 9875 ---------------------------------------------------------------------------------------


async def test_rfc9211_2_6_who_waited_says_so(cache: Cache) -> None:
    route = Route()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(str(await route.pause()))(scope, receive, send)

    app = CacheMiddleware(page, cache=cache, policy=lambda _: Policy(ttl=60, public=True))
    async with anyio.create_task_group() as tasks:
        calls = [begin(tasks, app)]
        await route.entered.wait()
        calls += [begin(tasks, app) for _ in range(2)]
        await all_blocked()
        route.go.set()
    assert sorted(call.cache_status for call in calls) == [
        "asynctag; fwd=uri-miss; collapsed; ttl=60",
        "asynctag; fwd=uri-miss; collapsed; ttl=60",
        "asynctag; fwd=uri-miss; stored",
    ]


async def test_rfc9211_2_2_a_variant_that_is_missing_says_so(cache: Cache) -> None:
    app = CacheMiddleware(Origin(vary="accept-language"), cache=cache)
    await ask(app, headers={"accept-language": "de"})
    assert (await ask(app, headers={"accept-language": "it"})).cache_status == "asynctag; fwd=vary-miss; stored"


async def test_rfc9213_a_field_of_our_own_is_obeyed_and_does_not_go_out(cache: Cache, clock: FakeClock) -> None:
    """`CDN-Cache-Control` does: there may be another cache that it speaks to."""
    origin = Origin(cache_control="no-store", cdn_cache_control="max-age=5", my_cache_control="max-age=90")
    app = CacheMiddleware(origin, cache=cache, target="My-Cache-Control")
    for _ in range(2):
        call = await ask(app)
        assert (call.header("my-cache-control"), call.header("cdn-cache-control")) == (None, "max-age=5")
        assert call.header("cache-control") == "no-store"
        clock.advance(80)
    assert origin.runs == 1


async def test_rfc9875_groups_are_tags(cache: Cache) -> None:
    """A response is in the groups that it names; who invalidates one as a tag reaches it."""
    app = CacheMiddleware(Origin(cache_groups='"product:1", "it%27s ä"'.replace("ä", "%C3%A4")), cache=cache)
    for tag in ("product:1", "it's ä"):
        await ask(app)
        assert (await ask(app)).header("cache-groups") == '"product:1", "it%27s %C3%A4"'
        await cache.invalidate(tag)
        assert not (await ask(app)).hit


async def test_rfc9875_3_an_answer_to_a_change_invalidates_groups(cache: Cache) -> None:
    """An unsafe method's alone: a GET's would let anybody whose text is echoed empty the cache."""
    page = Origin(cache_groups='"product:1"')
    app = CacheMiddleware(page, cache=cache)
    await ask(app, "/a")
    page.headers["cache-group-invalidation"] = '"product:1"'
    await ask(app, "/b")
    assert (await ask(app, "/a")).hit
    await ask(app, "/c", method="POST")
    assert not (await ask(app, "/a")).hit


def shop(cache: Cache, **more: Any) -> Starlette:
    @cache_response(60, tags=["product:1", "list"], public=True)
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the page")

    async def edit(request: Request) -> PlainTextResponse:
        await cache_of(request).invalidate("product:1")
        return PlainTextResponse("edited")

    page_route = StarletteRoute("/", page, methods=["GET", "POST"])
    app = Starlette(routes=[page_route, StarletteRoute("/edit", edit, methods=["POST"])])
    app.add_middleware(CacheMiddleware, cache=cache, **more)
    return app


async def test_rfc9875_tags_go_out_as_groups(cache: Cache) -> None:
    """On the first answer and on hits; and those that a change has invalidated as groups to drop."""
    app = shop(cache, groups=True)
    assert [(await ask(app)).header("cache-groups") for _ in range(2)] == ['"list", "product:1"'] * 2
    assert '"product:1"' in ((await ask(app, "/edit", method="POST")).header("cache-group-invalidation") or "")
    assert (await ask(shop(cache), "/edit", method="POST")).header("cache-group-invalidation") is None


# --- keys for a CDN -----------------------------------------------------------------------------------------------


async def test_tags_go_out_as_keys_for_a_cdn(cache: Cache) -> None:
    """Those of users and all else that can be invalidated; the hook gets words that are the same keys."""
    surrogates = Surrogates.fastly()
    told: list[tuple[str, ...]] = []
    cache.after_invalidation(told.append)
    app = shop(cache, surrogates=surrogates)
    for _ in range(2):
        keys = ((await ask(app)).header("surrogate-key") or "").split(" ")
        assert {"product:1", "list"} <= set(keys)
    await cache.invalidate("product:1")
    await cache.clear()
    await ask(app, method="POST")
    assert len(told) == 3
    for tags in told:
        assert set(surrogates.keys(tags)) & set(keys)


async def test_keys_are_for_the_cdn_alone(cache: Cache) -> None:
    """Who has not come through it sees none, on a miss or a hit."""

    def from_the_cdn(request: HTTPConnection) -> bool:
        return request.headers.get("x-cdn") == "its secret"

    app = shop(cache, surrogates=Surrogates.varnish(), surrogates_for=from_the_cdn)
    for headers in ({}, {"x-cdn": "its secret"}, {}, {"x-cdn": "guessed"}):
        assert ((await ask(app, headers=headers)).header("xkey") is not None) is (headers.get("x-cdn") == "its secret")


async def test_what_has_too_many_tags_is_not_for_the_cdn(cache: Cache) -> None:
    @cache_response(60, tags=[f"row:{number}" for number in range(2000)], public=True)
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("the page")

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache, surrogates=Surrogates.fastly())
    for hit in (False, True):
        call = await ask(app)
        assert (call.hit, call.header("surrogate-key")) == (hit, None)
        assert (call.header("cdn-cache-control"), call.header("surrogate-control")) == ("no-store", "no-store")


@pytest.mark.parametrize("held", [False, True])
async def test_tags_that_come_after_the_headers_reach_the_cdn(cache: Cache, held: bool) -> None:
    """On the first answer where it is held until it is whole; else that one is not for the CDN to keep."""

    async def body() -> AsyncIterator[str]:
        yield "a"
        add_tags("late")
        yield "b"

    @cache_response(60, public=True)
    async def page(request: Request) -> StreamingResponse:
        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache, surrogates=Surrogates.fastly(), buffer_tags=held)
    first, second = await ask(app), await ask(app)
    assert (first.text, second.text, second.hit) == ("ab", "ab", True)
    assert first.header("surrogate-control") == (None if held else "no-store")
    assert ("late" in (first.header("surrogate-key") or "").split(" ")) is held
    assert "late" in (second.header("surrogate-key") or "").split(" ")


async def test_a_body_that_is_too_long_to_be_held_goes_out(cache: Cache) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 1000

    @cache_response(60, public=True)
    async def page(request: Request) -> StreamingResponse:
        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache, max_body=2500, buffer_tags=True)
    for _ in range(2):
        call = await ask(app)
        assert (call.body, call.hit) == (b"x" * 5000, False)


async def test_a_hook_is_awaited_and_its_error_told(cache: Cache) -> None:
    """Once `invalidate` returns, the CDN is purged; where it is not, the caller knows."""
    said: list[str] = []

    @cache.after_invalidation
    async def purge(tags: tuple[str, ...]) -> None:
        await anyio.lowlevel.checkpoint()
        said.extend(tags)
        if "bad" in tags:
            raise OSError("the CDN does not answer")

    await cache.invalidate("a", "b")
    await cache.delete("c")
    assert said == ["a", "b", "key c"]
    with pytest.raises(OSError, match="CDN"):
        await cache.invalidate("bad")


async def test_a_cdn_that_is_not_purged_fails_no_change(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    """By its URL; who invalidates a tag in the endpoint is told. What the application has done is done."""

    @cache.after_invalidation
    async def purge(tags: tuple[str, ...]) -> None:
        raise OSError("the CDN does not answer")

    app = CacheMiddleware(Origin(), cache=cache)
    await ask(app)
    assert (await ask(app, method="POST")).status == 200
    assert "the CDN does not answer" in caplog.text
    assert not (await ask(app)).hit


BAD: list[Callable[[], dict[str, Any]]] = [
    lambda: {"validate_for": -1},
    lambda: {"target": "not a name"},
    lambda: {"groups": 1},
    lambda: {"buffer_tags": "yes"},
    lambda: {"surrogates": "Surrogate-Key"},
    lambda: {"surrogates_for": lambda _: True},
]


@pytest.mark.parametrize("bad", BAD)
def test_options_that_cannot_be_meant_are_refused(cache: Cache, bad: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(ConfigurationError):
        CacheMiddleware(Origin(), cache=cache, **bad())


def test_a_policy_with_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="heuristic"):
        Policy(heuristic=1.5)
