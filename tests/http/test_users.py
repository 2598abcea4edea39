"""What one user got never reaches another: at the endpoint, before routing, and among those who asked at once."""

from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache
from asynctag.http import CacheMiddleware, Policy, cache_response
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, all_blocked, ask, begin, request

pytestmark = pytest.mark.anyio

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """Two users, and a page that shows who asked. `answer`: the headers of the response."""

    alice: Pairs
    bob: Pairs
    answer: dict[str, str] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    #: Which of the headers the page looks at.
    by: str = "authorization"


NOBODY: Pairs = []
CASES = {
    "Authorization, then none": Case([("authorization", "alice")], NOBODY),
    "none, then Authorization": Case(NOBODY, [("authorization", "bob")]),
    "Authorization of two": Case([("authorization", "alice")], [("authorization", "bob")]),
    "Authorization in vary=": Case(
        [("authorization", "alice")], [("authorization", "bob")], policy={"vary": ["Authorization"]}
    ),
    "Authorization in vary=, then none": Case([("authorization", "alice")], NOBODY, policy={"vary": ["authorization"]}),
    "Authorization, and must-revalidate for the browser": Case(
        [("authorization", "alice")], NOBODY, {"cache-control": "max-age=0, must-revalidate"}
    ),
    "Authorization, and the response varies by it": Case(
        [("authorization", "alice")], [("authorization", "bob")], {"vary": "authorization"}
    ),
    "cookie, then none": Case([("cookie", "s=alice")], NOBODY, by="cookie"),
    "none, then cookie": Case(NOBODY, [("cookie", "s=bob")], by="cookie"),
    "cookie of two": Case([("cookie", "s=alice")], [("cookie", "s=bob")], by="cookie"),
    "cookie in cookies=": Case([("cookie", "s=alice")], [("cookie", "s=bob")], policy={"cookies": ["s"]}, by="cookie"),
    "cookie in cookies=, then none": Case([("cookie", "s=alice")], NOBODY, policy={"cookies": ["s"]}, by="cookie"),
    "cookie in cookies=, sent twice": Case(
        [("cookie", "s=bob; s=alice")], [("cookie", "s=bob")], policy={"cookies": ["s"]}, by="cookie"
    ),
    "cookie in cookies=, in two lines": Case(
        [("cookie", "s=bob"), ("cookie", "s=alice")], [("cookie", "s=bob")], policy={"cookies": ["s"]}, by="cookie"
    ),
    "cookie in cookies=, and in Vary": Case(
        [("cookie", "s=alice")], [("cookie", "s=bob")], {"vary": "Cookie"}, {"cookies": ["s"]}, by="cookie"
    ),
    "cookie header in vary=": Case(
        [("cookie", "s=alice")], [("cookie", "s=bob")], policy={"vary": ["cookie"]}, by="cookie"
    ),
    "the response varies by cookie": Case(NOBODY, [("cookie", "s=bob")], {"vary": "Cookie"}, by="cookie"),
    "header in vary=": Case([("x-user", "alice")], [("x-user", "bob")], policy={"vary": ["X-User"]}, by="x-user"),
    "header in vary=, then none": Case([("x-user", "alice")], NOBODY, policy={"vary": ["x-user"]}, by="x-user"),
    "header in vary=, empty against none": Case([("x-user", "")], NOBODY, policy={"vary": ["x-user"]}, by="x-user"),
    "the response's own Vary": Case([("x-user", "alice")], [("x-user", "bob")], {"vary": "X-User"}, by="x-user"),
    "the response's own Vary, then none": Case([("x-user", "alice")], NOBODY, {"vary": "x-user"}, by="x-user"),
    "one more in the response's Vary than in vary=": Case(
        [("x-user", "alice")], [("x-user", "bob")], {"vary": "x-user, accept"}, {"vary": ["accept"]}, by="x-user"
    ),
}

#: Responses that are for one alone, whoever asks.
FOR_ONE = {
    "Set-Cookie": {"set-cookie": "session=1"},
    "private": {"cache-control": "private"},
    "private beside public": {"cache-control": "public, max-age=60, private"},
    "private with a field": {"cache-control": 'private="x-user"'},
    "no-store": {"cache-control": "no-store"},
    "no-cache": {"cache-control": "no-cache"},
    "PRIVATE": {"cache-control": "PRIVATE"},
    "Vary: *": {"vary": "*"},
    "Vary: * among others": {"vary": "accept, *"},
}


def page_for(case: Case, route: Route) -> Any:
    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        return PlainTextResponse(seen(case, request.headers.getlist(case.by)), headers=case.answer)

    return page


def seen(case: Case, values: list[str]) -> str:
    return f"for {values!r}"


def expected(case: Case, headers: Pairs) -> str:
    return seen(case, [value for name, value in headers if name == case.by])


def cached_app(cache: Cache, endpoint: Any, policy: dict[str, Any], public: bool) -> Starlette:
    app = Starlette(routes=[StarletteRoute("/", cache_response(60, public=public, **policy)(endpoint))])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


@pytest.mark.parametrize("public", [False, True], ids=["at the endpoint", "before routing"])
@pytest.mark.parametrize("name", CASES)
async def test_one_after_the_other_each_gets_their_own(cache: Cache, name: str, public: bool) -> None:
    """Fails where `why_bypass` says nothing, and where `response_key` leaves the dimensions out."""
    case, route = CASES[name], Route()
    route.go.set()
    app = cached_app(cache, page_for(case, route), case.policy, public)
    for headers in (case.alice, case.bob, case.alice, case.bob):
        call = await ask(app, headers=headers)
        assert call.text == expected(case, headers)


@pytest.mark.parametrize("public", [False, True], ids=["at the endpoint", "before routing"])
@pytest.mark.parametrize("known", [False, True], ids=["never seen", "seen before"])
@pytest.mark.parametrize("name", CASES)
async def test_at_once_each_gets_their_own(cache: Cache, name: str, known: bool, public: bool) -> None:
    """Fails where a flight lands as shared though its response has another key."""
    case, route = CASES[name], Route()
    app = cached_app(cache, page_for(case, route), {**case.policy, "query": ["page"]}, public)
    if known:
        route.go.set()
        await ask(app, headers=case.alice)
        route.entered, route.go = anyio.Event(), anyio.Event()
    users = [case.alice, case.bob, case.bob, case.alice]
    calls: list[Call] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for headers in users:
                calls.append(begin(tasks, app, "/?page=2", headers=headers))
                await all_blocked()
            route.go.set()
    assert [call.text for call in calls] == [expected(case, headers) for headers in users]


@pytest.mark.parametrize("public", [False, True], ids=["at the endpoint", "before routing"])
@pytest.mark.parametrize("why", FOR_ONE)
async def test_what_is_for_one_alone_is_never_served_again(cache: Cache, why: str, public: bool) -> None:
    """Fails where `_why_response_is_private` says nothing."""
    runs: list[int] = []

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse(f"run {len(runs)}", headers=FOR_ONE[why])

    app = cached_app(cache, page, {}, public)
    assert [(await ask(app)).text for _ in range(3)] == ["run 1", "run 2", "run 3"]


@pytest.mark.parametrize("store", ["declared", "rfc9111"])
@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([], {"cache-control": "public, max-age=60", "set-cookie": "s=1"}),
        ([], {"cache-control": "public, max-age=60, private"}),
        ([], {"cache-control": "s-maxage=60, no-store"}),
        ([], {"cache-control": "public, max-age=60, no-cache"}),
        ([], {"cache-control": "public, max-age=60", "vary": "*"}),
        ([("cookie", "s=1")], {"cache-control": "public, max-age=60"}),
        ([("authorization", "x")], {"cache-control": "max-age=60"}),
        ([], {"cache-control": "public, max-age=60", "vary": "cookie"}),
        ([], {"cache-control": "public, max-age=60", "vary": "authorization"}),
        ([], {"cache-control": "public, max-age=60", "content-type": "text/event-stream"}),
    ],
)
async def test_without_a_policy_too(cache: Cache, store: Any, sent: Pairs, answer: dict[str, str]) -> None:
    runs: list[int] = []

    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse(f"run {len(runs)}", headers=answer)

    app = CacheMiddleware(Starlette(routes=[StarletteRoute("/", page)]), cache=cache, store=store)
    assert [(await ask(app, headers=sent)).text for _ in range(2)] == ["run 1", "run 2"]
    assert (await ask(app)).text == "run 3"


async def test_a_response_that_says_public_is_shared_but_not_with_those_who_send_credentials(cache: Cache) -> None:
    """By RFC 9111 §3.5 the response may say so; those who send cookies or Authorization still get their own."""

    async def page(request: Request) -> PlainTextResponse:
        who = request.headers.get("authorization") or request.headers.get("cookie") or "nobody"
        return PlainTextResponse(who, headers={"cache-control": "public, max-age=60"})

    app = CacheMiddleware(Starlette(routes=[StarletteRoute("/", page)]), cache=cache)
    assert (await ask(app)).text == "nobody"
    assert (await ask(app, headers={"authorization": "a"})).text == "a"
    assert (await ask(app, headers={"cookie": "s=b"})).text == "s=b"


# --- guarded routes -----------------------------------------------------------------------------------


def guard(request: Request) -> None:
    if request.headers.get("x-key") != "secret":
        raise HTTPException(403)


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_guard_runs_on_every_hit(cache: Cache, at_once: bool) -> None:
    app, route = FastAPI(), Route()

    @app.get("/", dependencies=[Depends(guard)])
    @cache_response(60)
    async def page() -> dict[str, int]:
        return {"run": await route.pause()}

    app.add_middleware(CacheMiddleware, cache=cache)
    key = {"x-key": "secret"}
    calls: list[Call] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls.append(begin(tasks, app, headers=key))
            await route.entered.wait()
            if not at_once:
                route.go.set()
                await calls[0].ended.wait()
            calls += [begin(tasks, app), begin(tasks, app, headers=key), begin(tasks, app, headers={"x-key": "no"})]
            await all_blocked()
            route.go.set()
    assert [call.status for call in calls] == [200, 403, 200, 403]
    assert route.runs == 1


def half_public(cache: Cache, runs: list[int], broken: list[bool], **policy: Any) -> FastAPI:
    """A guarded route of which one page says that it is public, and the others do not."""
    app = FastAPI()

    def checking(request: Request) -> None:
        if broken and broken[0]:
            raise RuntimeError("the guard is down")
        if "open" not in request.url.query:
            guard(request)

    @app.get("/", dependencies=[Depends(checking)])
    @cache_response(60, **policy)
    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        headers = {"cache-control": "public, max-age=60"} if "open" in request.url.query else {}
        return PlainTextResponse("open" if headers else "secret", headers=headers)

    app.add_middleware(CacheMiddleware, cache=cache)
    return app


async def test_a_page_beside_a_public_one_of_the_same_path_stays_behind_its_guard(cache: Cache) -> None:
    """Fails where the middleware serves what is stored without looking whether it is public."""
    runs: list[int] = []
    app = half_public(cache, runs, [])
    await ask(app, "/?s", headers={"x-key": "secret"})
    await ask(app, "/?open")
    assert (await ask(app, "/?open")).hit
    assert (await ask(app, "/?s")).status == 403
    assert (await ask(app, "/?s", headers={"x-key": "secret"})).hit


async def test_a_guard_that_fails_never_lets_a_stale_response_out(cache: Cache, clock: FakeClock) -> None:
    """`stale_if_error` stands for the endpoint: where the guard is what failed, nobody knows who is asking."""
    runs: list[int] = []
    broken = [False]
    app = half_public(cache, runs, broken, stale_if_error=600)
    assert (await ask(app, "/?s", headers={"x-key": "secret"})).text == "secret"
    await ask(app, "/?open")
    clock.advance(61)
    broken[0] = True
    call = await ask(app, "/?s")
    assert "secret" not in call.text
    assert call.status == 500


async def test_a_policy_for_the_whole_middleware_does_not_serve_what_a_route_keeps_behind_its_guard(
    cache: Cache,
) -> None:
    """The route's own policy says that hits are served at the endpoint, and it counts."""
    app = FastAPI()

    @app.get("/", dependencies=[Depends(guard)])
    @cache_response(60)
    async def page() -> PlainTextResponse:
        return PlainTextResponse("secret")

    app.add_middleware(CacheMiddleware, cache=cache, policy=lambda connection: Policy(ttl=60, public=True))
    assert (await ask(app, headers={"x-key": "secret"})).text == "secret"
    assert (await ask(app)).status == 403


async def test_a_policy_for_the_whole_middleware_is_held_against_the_guards_that_are_known(cache: Cache) -> None:
    """What `public=True` on the route would refuse is refused from the middleware's function too."""
    app = FastAPI()

    @app.get("/")
    async def page(x_key: str = Header()) -> PlainTextResponse:
        if x_key != "secret":
            raise HTTPException(403)
        return PlainTextResponse("secret")

    app.add_middleware(CacheMiddleware, cache=cache, policy=lambda connection: Policy(ttl=60, public=True))
    await ask(app, headers={"x-key": "secret"})
    assert (await ask(app, headers={"x-key": "no"})).text != "secret"


async def test_a_request_that_is_refused_is_not_what_others_get(cache: Cache) -> None:
    """The leader is turned away by its guard, before routing would have led others to wait for it."""
    app, route = FastAPI(), Route()

    async def slow_guard(request: Request) -> None:
        await route.pause()
        guard(request)

    @app.get("/", dependencies=[Depends(slow_guard)])
    async def page() -> PlainTextResponse:
        return PlainTextResponse("x", headers={"cache-control": "public, max-age=60"})

    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            route.go.set()
            await request("/?warm", headers={"x-key": "secret"}).run(app)
            route.go = anyio.Event()
            bad = begin(tasks, app)
            await all_blocked()
            good = begin(tasks, app, headers={"x-key": "secret"})
            await all_blocked()
            route.go.set()
    assert (bad.status, good.status) == (403, 200)


async def test_context_of_one_request_is_not_the_next_ones(cache: Cache) -> None:
    """Hosts, schemes and paths of the same spelling elsewhere are other responses."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        host = dict(scope["headers"])[b"host"].decode()
        text = f"{scope['scheme']}://{host}{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        await PlainTextResponse(text, headers={"cache-control": "public, max-age=60"})(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    seen: set[str] = set()
    for _ in range(2):
        for scheme in ("http", "https"):
            for host in ("a", "b", "a:81"):
                for path in ("/x", "/x?", "/x?y", "/x?y=1", "/x?y=1&z", "/%78", "/x/", "//x", "/x?a=b//x"):
                    call = await ask(wrapped, path, host=host, scheme=scheme)
                    plain, _, query = path.partition("?")
                    assert call.text == f"{scheme}://{host}{plain}?{query}"
                    seen.add(call.text)
    assert len(seen) == 2 * 3 * 8
