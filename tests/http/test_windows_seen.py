"""What windows see: the request that is served, on a miss as on a hit, never the one that filled the cache."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import PlainTextResponse as FastApiText
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asynctag import Cache, add_tags, no_store
from asynctag.errors import ConfigurationError, WindowError
from asynctag.http import CacheMiddleware, cache_response, current_request
from asynctag.integrations.fastapi import cache_policy
from asynctag.testing import FakeClock
from asynctag.windows import Window
from tests.http.driver import all_blocked, ask, begin
from tests.http.windowed import ALICE, BOB, is_for_one, page_app, visitor_of

pytestmark = pytest.mark.anyio

outside: ContextVar[str] = ContextVar("outside", default="")

#: How the page of a test comes to be served.
WAYS: dict[str, dict[str, Any] | None] = {
    "before routing": {"public": True, "cookies": ()},
    "at the endpoint": {"cookies": ()},
    "by whose it is": {"key": lambda request: "everybody's"},
    "not stored": None,
}


def saying(cache: Cache, say: Callable[[Request], object]) -> Window[[], str]:
    """A window with what `say` finds in the request."""

    @cache.window(name="says")
    async def says() -> str:
        return str(say(current_request()))

    return says


def shows(window: Window[[], str]) -> Any:
    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{window()}")

    return page


class BySentName(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        return AuthCredentials(["user"]), SimpleUser(conn.headers["x-user"])


class SetsThings:
    """A middleware around the cache, that finds out who asks."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = dict(scope["headers"])[b"x-user"].decode()
        scope.setdefault("state", {})["name"] = name
        token = outside.set(name)
        try:
            await self.app(scope, receive, send)
        finally:
            outside.reset(token)


async def passes_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers["x-base"] = request.headers["x-user"]
    return response


@pytest.mark.parametrize("way", WAYS)
async def test_windows_see_who_asks_by_whatever_stands_around_the_cache(cache: Cache, way: str) -> None:
    """Users, sessions, states, context variables; under compression, CORS and a middleware with tasks of its own."""

    def say(request: Request) -> object:
        return (
            request.user.display_name,
            request.session.get("name"),
            request.state.name,
            outside.get(),
            request.cookies.get("flavour"),
            request.query_params["q"],
            str(request.url),
            request.method,
            "long " * 200,
        )

    window = saying(cache, say)

    async def sign_in(request: Request) -> Response:
        request.session["name"] = request.user.display_name
        return PlainTextResponse("")

    endpoint = shows(window)
    policy = WAYS[way]
    page = endpoint if policy is None else cache_response(60, **policy)(endpoint)
    around = [
        Middleware(CORSMiddleware, allow_origins=["https://friend.example"]),
        Middleware(GZipMiddleware),
        Middleware(BaseHTTPMiddleware, dispatch=passes_on),
        Middleware(SessionMiddleware, secret_key="secret"),
        Middleware(AuthenticationMiddleware, backend=BySentName()),
        Middleware(SetsThings),
        Middleware(CacheMiddleware, cache=cache),
    ]
    app = Starlette(routes=[Route("/page", page), Route("/in", sign_in, methods=["POST"])], middleware=around)
    hits = []
    for name in ("alice", "bob", "alice"):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport,
            base_url="http://shop",
            headers={"x-user": name, "origin": "https://friend.example"},
            cookies={"flavour": f"{name}'s"},
        ) as client:
            await client.post("/in")
            call = await client.get("/page?q=1")
        expected = (name, name, name, name, f"{name}'s", "1", "http://shop/page?q=1", "GET", "long " * 200)
        assert call.text == str(expected)
        assert call.headers["cache-control"] == "private, no-store"
        assert call.headers["content-encoding"] == "gzip"
        assert call.headers["access-control-allow-origin"] == "https://friend.example"
        assert call.headers["x-base"] == name
        hits.append("; hit" in call.headers.get("cache-status", ""))
    assert hits == [False, policy is not None, policy is not None]


@pytest.mark.parametrize("way", ["before routing", "by its own word"])
async def test_what_a_hit_before_routing_cannot_see_is_not_there_on_the_miss_either(cache: Cache, way: str) -> None:
    """A page that worked until it was cached would be found out by its users."""

    def say(request: Request) -> object:
        return sorted(request.path_params), hasattr(request.state, "guard"), "endpoint" in request.scope

    window = saying(cache, say)

    async def guard(request: Request) -> None:
        request.state.guard = "was here"

    app = FastAPI(dependencies=[Depends(guard)])
    app.add_middleware(CacheMiddleware, cache=cache)

    async def page(number: int, response: Response) -> str:
        if way == "by its own word":
            response.headers["cache-control"] = "public, max-age=60"
        return f"{window()}"

    policy = cache_response(60, public=True) if way == "before routing" else lambda page: page
    app.get("/{number}", response_class=FastApiText)(policy(page))
    for hit in (False, True):
        call = await ask(app, "/7")
        assert (call.text, call.hit) == ("([], False, False)", hit)


@pytest.mark.parametrize("policy", [{}, None])
async def test_at_the_endpoint_windows_see_what_was_found_on_the_way(
    cache: Cache, policy: dict[str, Any] | None
) -> None:
    """Path parameters, and what a guard has found out, on the miss and on the hit."""
    window = saying(cache, lambda request: f"{request.state.guard} {request.path_params['number']}")

    async def guard(request: Request) -> None:
        request.state.guard = request.headers["x-user"]

    app = FastAPI(dependencies=[Depends(guard)])
    app.add_middleware(CacheMiddleware, cache=cache)

    async def page(number: int) -> str:
        return f"{window()}"

    app.get("/{number}", response_class=FastApiText)(page if policy is None else cache_response(60)(page))
    for user in (ALICE, BOB):
        assert (await ask(app, "/7", headers=user)).text == f"{user['x-user']} 7"


@pytest.mark.parametrize("policy", [{}, {"cookies": ()}, {"key": lambda request: "everybody's"}, None])
async def test_at_the_endpoint_windows_see_the_user_that_a_middleware_inside_has_found(
    cache: Cache, policy: dict[str, Any] | None
) -> None:
    """Authentication may stand inside of the cache, there: each sees their own, on the miss and on the hit."""
    window = saying(cache, lambda request: f"{request.user.display_name} {request.auth.scopes}")
    decorate = cache_response(60, **policy) if policy is not None else lambda page: page
    around = [Middleware(CacheMiddleware, cache=cache), Middleware(AuthenticationMiddleware, backend=BySentName())]
    app = Starlette(routes=[Route("/", decorate(shows(window)))], middleware=around)
    for hit, user in enumerate((ALICE, BOB, ALICE)):
        call = await ask(app, headers=user)
        assert (call.text, call.hit) == (f"{user['x-user']} ['user']", bool(hit and policy is not None))
        assert is_for_one(call)


async def test_a_scope_that_a_middleware_inside_copies_is_seen_by_a_routers_policy(cache: Cache) -> None:
    """What the routing has found is in the copy, which the dependency knows."""
    window = saying(cache, lambda request: request.path_params["number"])

    class Copies:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(dict(scope), receive, send)

    router = APIRouter(dependencies=[Depends(cache_policy(ttl=60))])

    @router.get("/{number}", response_class=FastApiText)
    async def page(number: int) -> str:
        return f"{window()}"

    inner = FastAPI(middleware=[Middleware(Copies)])
    inner.include_router(router)
    app = CacheMiddleware(inner, cache=cache)
    for hit in (False, True):
        call = await ask(app, "/7")
        assert (call.text, call.hit) == ("7", hit)


@pytest.mark.parametrize("way", WAYS)
async def test_what_the_application_has_in_its_context_is_not_that_of_windows(cache: Cache, way: str) -> None:
    """On a hit there is no application: its context variables would be there on a miss alone."""

    @cache.window(name="context")
    async def context() -> str:
        return outside.get()

    class Inside(SetsThings):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            outside.set("inside")
            await self.app(scope, receive, send)

    async def page(request: Request) -> Response:
        outside.set("in the endpoint")
        return PlainTextResponse(f"<{context()}>")

    policy = WAYS[way]
    routes = [Route("/", page if policy is None else cache_response(60, **policy)(page))]
    inner = Starlette(routes=routes, middleware=[Middleware(Inside)])
    app = SetsThings(CacheMiddleware(inner, cache=cache))
    for user in (ALICE, BOB):
        assert (await ask(app, headers=user)).text == f"<{user['x-user']}>"


@pytest.mark.parametrize("said", ["public, max-age=60", "no-store"])
async def test_windows_see_what_the_client_asked_while_the_application_is_asked_something_else(
    cache: Cache, clock: FakeClock, said: str
) -> None:
    """What is stored is asked about with conditions that are not the client's; and it has become a page of its own."""
    window = saying(cache, lambda request: request.headers.get("if-none-match"))
    seen: list[str | None] = []

    async def page(request: Request) -> Response:
        seen.append(request.headers.get("if-none-match"))
        if len(seen) == 1:
            return PlainTextResponse("", headers={"etag": '"1"', "cache-control": "public, max-age=60"})
        return PlainTextResponse(f"{window()}", headers={"cache-control": said})

    app = page_app(cache, page)
    await ask(app)
    clock.advance(61)
    assert (await ask(app, headers={"if-none-match": '"of the client"'})).text == '"of the client"'
    assert seen == [None, '"1"']


async def test_who_waits_at_the_endpoint_for_what_is_served_before_routing_sees_no_more_than_those(
    cache: Cache,
) -> None:
    """The first requests of a URL all get to the endpoint: what they see is what later ones see."""
    window = saying(cache, lambda request: sorted(request.path_params))
    entered, go = anyio.Event(), anyio.Event()

    async def page(request: Request) -> Response:
        entered.set()
        await go.wait()
        return PlainTextResponse(f"{window()}", headers={"cache-control": "public, max-age=60"})

    app = Starlette(routes=[Route("/{number:int}", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, "/7")]
            await entered.wait()
            calls.append(begin(tasks, app, "/7"))
            await all_blocked()
            go.set()
    assert "collapsed" in calls[1].cache_status
    assert [call.text for call in [*calls, await ask(app, "/7")]] == ["[]"] * 3


# --- current_request --------------------------------------------------------------------------------------


async def test_current_request_elsewhere(cache: Cache) -> None:
    """In an endpoint it is the endpoint's; in a cached function it would be the one that filled the cache."""

    @cache.cached(ttl=60, name="of_the_first")
    async def of_the_first() -> str:
        return current_request().headers["x-user"]

    async def page(request: Request) -> Response:
        with pytest.raises(WindowError, match="whose result is cached for other requests too"):
            await of_the_first()
        found = current_request()
        assert found.scope is request.scope
        assert found.headers == request.headers
        with pytest.raises(RuntimeError, match="Receive channel"):
            await found.body()
        return PlainTextResponse(found.headers["x-user"])

    for policy in (None, {}, {"public": True}):
        assert (await ask(page_app(cache, page, policy), headers=ALICE)).text == "alice"
    assert (await ask(page_app(cache, page), headers=ALICE, method="POST")).text == "alice"
    with pytest.raises(ConfigurationError, match="no request is being served here"):
        current_request()


async def test_a_websocket_is_no_request(cache: Cache) -> None:
    visitor = visitor_of(cache)
    said: list[str] = []

    async def socket(websocket: WebSocket) -> None:
        for text in (lambda: f"{visitor()}", current_request):
            with pytest.raises((WindowError, ConfigurationError)) as caught:
                text()
            said.append(str(caught.value))
        await websocket.close()

    app = CacheMiddleware(Starlette(routes=[WebSocketRoute("/", socket)]), cache=cache)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/", "headers": [], "query_string": b"", "root_path": ""}, receive, send)
    assert said[0] == "visitor is put into text where nothing is cached and no CacheMiddleware fills it: await it"
    assert said[1].startswith("no request is being served here")


# --- awaited ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{}, {"public": True}])
async def test_a_window_that_is_awaited_for_a_page_that_is_to_be_cached_is_an_error(
    cache: Cache, policy: dict[str, Any]
) -> None:
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        return PlainTextResponse(await visitor())

    call = await ask(page_app(cache, page, policy), headers=ALICE)
    assert isinstance(call.error, WindowError)
    assert "visitor is awaited for the response to GET /, which is to be cached" in str(call.error)
    assert call.text == "Internal Server Error"


async def test_the_same_by_a_routers_policy(cache: Cache) -> None:
    visitor = visitor_of(cache)
    app = FastAPI(dependencies=[Depends(cache_policy(ttl=60))])
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    async def page() -> str:
        return await visitor()

    assert isinstance((await ask(app)).error, WindowError)


@pytest.mark.parametrize("said", [{}, {"cache-control": "public, max-age=60"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_window_that_is_awaited_keeps_the_page_out_of_the_cache(
    cache: Cache, method: str, said: dict[str, str]
) -> None:
    """Whatever the page says of itself. One that is placed beside it is filled."""
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{await visitor()} {visitor()}", headers=said)

    async def only_awaits(request: Request) -> Response:
        return PlainTextResponse(await visitor(), headers=said)

    routes = [Route("/both", page, methods=["GET", "POST"]), Route("/", only_awaits, methods=["GET", "POST"])]
    app = CacheMiddleware(Starlette(routes=routes), cache=cache)
    for user in (ALICE, BOB, ALICE):
        name = user["x-user"]
        call = await ask(app, "/both", method=method, headers=user)
        assert (call.text, is_for_one(call)) == (f"{name} {name}", True)
        assert (await ask(app, method=method, headers=user)).text == name


async def test_in_a_background_task_a_window_is_awaited_as_a_function(cache: Cache) -> None:
    """The response is out: nothing fills a placeholder any more."""
    visitor = visitor_of(cache)
    found: list[str] = []

    async def afterwards() -> None:
        found.append(await visitor())
        with pytest.raises(WindowError, match="await it"):
            str(visitor())

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{visitor()}", background=BackgroundTask(afterwards))

    app = page_app(cache, page, {"public": True})
    call = await ask(app, headers=ALICE)
    assert (call.text, call.error, found) == ("alice", None, ["alice"])


# --- an application that is called by another ------------------------------------------------------------


async def get(app: Any, path: str = "/", method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return await client.request(method, path, headers=headers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [False, True], ids=["on a miss", "on a hit"])
async def test_what_is_computed_of_a_page_with_windows_is_not_stored(cache: Cache, way: str, before: bool) -> None:
    """A fragment of one user would be everybody's. Its windows see the request that is made there."""
    visitor = visitor_of(cache)
    app = page_app(cache, shows(visitor), WAYS[way])
    runs: list[str] = []

    @cache.cached(ttl=60, name="fetched")
    async def fetched() -> str:
        runs.append("")
        return (await get(app, **{"x-user": f"user {len(runs)}"})).text

    if before:
        await get(app)
    assert [await fetched() for _ in range(3)] == ["user 1", "user 2", "user 3"]


async def test_what_is_computed_of_a_page_whose_windows_nobody_has_seen_is_stored(cache: Cache) -> None:
    """Of a HEAD, and of a page in which none stands."""
    visitor = visitor_of(cache)
    runs: list[str] = []

    async def page(request: Request) -> Response:
        add_tags("page")
        return PlainTextResponse(f"{visitor()}" if request.method == "HEAD" else "none")

    app = Starlette(routes=[Route("/", cache_response(60, public=True)(page), methods=["GET", "HEAD"])])
    app.add_middleware(CacheMiddleware, cache=cache)

    @cache.cached(ttl=60, name="asked")
    async def asked(method: str) -> int:
        runs.append(method)
        return (await get(app, method=method)).status_code

    for method in ("HEAD", "HEAD", "GET", "GET"):
        assert await asked(method) == 200
    assert runs == ["HEAD", "GET"]
    await cache.invalidate("page")
    await asked("GET")
    assert runs == ["HEAD", "GET", "GET"]


async def test_what_is_computed_of_the_answer_to_a_post_depends_on_its_tags(cache: Cache) -> None:
    """As of that to a GET: a cached computation may ask by whatever method."""
    runs: list[str] = []

    async def query(request: Request) -> Response:
        add_tags("data")
        if request.headers.get("x-no-store"):
            no_store()
        return PlainTextResponse("found")

    app = page_app(cache, query)

    @cache.cached(ttl=60, name="queried")
    async def queried(headers: dict[str, str]) -> str:
        runs.append("")
        return (await get(app, method="POST", **headers)).text

    for _ in range(2):
        assert await queried({}) == "found"
    assert len(runs) == 1
    await cache.invalidate("data")
    await queried({})
    assert len(runs) == 2
    for _ in range(2):
        await queried({"x-no-store": "1"})
    assert len(runs) == 4


@pytest.mark.parametrize("around", ["a cached computation", "a transaction", "both"])
async def test_windows_run_outside_of_what_calls_the_application(cache: Cache, around: str) -> None:
    """What they use is filled for them, may ask for the request, and is no part of what is computed around; a
    transaction around goes on."""
    runs: list[str] = []
    visitor = visitor_of(cache)

    @cache.cached(ttl=60, name="greeting", tags=["greeting"])
    async def greeting() -> str:
        runs.append("greeting")
        return f"Hello {visitor()}!"

    @cache.window(name="greets")
    async def greets() -> str:
        assert await visitor() == current_request().headers["x-user"]
        return await greeting()

    app = page_app(cache, shows(greets), {"public": True})

    @cache.cached(ttl=60, name="computed")
    async def computed(number: int) -> str:
        return (await get(app, **ALICE)).text

    async def fetched() -> str:
        return (await get(app, **BOB)).text

    if around == "a cached computation":
        assert await computed(1) == "Hello alice!"
        assert await computed(2) == "Hello alice!"
    else:
        async with cache.transaction():
            asking = [fetched, fetched] if around == "a transaction" else [partial(computed, 1), partial(computed, 2)]
            expected = "Hello bob!" if around == "a transaction" else "Hello alice!"
            assert await asking[0]() == expected
            assert len(cache._filling().backend) == 0  # type: ignore[arg-type]  # nothing is stored before its end
            await cache.invalidate("greeting")
            assert await asking[1]() == expected
    before = len(runs)
    assert (await get(app, **BOB)).text == "Hello bob!"
    if around == "a cached computation":
        assert before == len(runs) == 1
    else:
        assert (before, len(runs)) == (2, 3)  # nothing that was computed in the block was stored


async def test_an_application_within_another_fills_for_its_own_requests(cache: Cache) -> None:
    """An endpoint that asks its own application: the inner page greets whom the endpoint asks for, and the outer page
    who has asked it."""
    visitor = visitor_of(cache)
    app = Starlette()

    async def inner(request: Request) -> Response:
        return PlainTextResponse(f"inner {visitor()}")

    async def outer(request: Request) -> Response:
        found = await get(app, "/inner", **{"x-user": f"{request.headers['x-user']}'s page"})
        return PlainTextResponse(f"{found.text}, outer {visitor()}")

    public = cache_response(60, public=True)
    app.router.routes += [Route("/inner", public(inner)), Route("/outer", outer), Mount("/x", app=inner)]
    app.add_middleware(CacheMiddleware, cache=cache)
    for user in (ALICE, BOB):
        name = user["x-user"]
        assert (await ask(app, "/outer", headers=user)).text == f"inner {name}'s page, outer {name}"


async def test_windows_of_one_page_do_not_see_each_others_context(cache: Cache) -> None:
    """What one sets is its own, and gone with it."""

    @cache.window(name="sets")
    async def sets(name: str) -> str:
        before = outside.get()
        outside.set(name)
        return f"{before}{outside.get()}"

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{sets('a')} {sets('b')} {sets('a')}")

    app = page_app(cache, page, {"public": True})
    for _ in range(2):
        assert (await ask(app)).text == "a b a"


async def test_what_a_window_writes_into_the_request_is_nobody_elses(cache: Cache) -> None:
    """Its scope is a copy."""

    def say(request: Request) -> object:
        found = request.scope.get("mark")
        request.scope["mark"] = "left"
        return found

    window = saying(cache, say)
    app = page_app(cache, shows(window), {"public": True})
    for _ in range(2):
        call = await ask(app)
        assert call.text == "None"
        assert "mark" not in call.scope


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_session_that_a_window_changes_goes_out_if_the_headers_did_not_before(
    cache: Cache, way: str, version: str
) -> None:
    """With what it does before it has to wait. What it does later is lost, but for HTTP/1.0, which waits for it."""
    door = anyio.Event()

    @cache.window(name="counts")
    async def counts(waits: bool) -> str:
        if waits:
            await door.wait()
        current_request().session["count"] = 1
        return "counted"

    @cache.window(name="slow")
    async def slow() -> str:
        await door.wait()
        return "slow"

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{counts('waits' in request.url.path)} {slow()}")

    policy = WAYS[way]
    page = page if policy is None else cache_response(60, **policy)(page)
    around = [Middleware(SessionMiddleware, secret_key="secret"), Middleware(CacheMiddleware, cache=cache)]
    app = Starlette(routes=[Route("/", page), Route("/waits", page)], middleware=around)
    for path in ("/", "/waits"):
        for hit in (False, policy is not None):
            door = anyio.Event()
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    call = begin(tasks, app, path, http_version=version)
                    await all_blocked()
                    door.set()
            assert (call.text, call.hit) == ("counted slow", hit)
            assert len(call.all("set-cookie")) == (path == "/" or version == "1.0")
