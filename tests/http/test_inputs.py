"""What an endpoint is made of, and what stands around it: cases in which one response would answer for another."""

from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Security
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.security import APIKeyHeader
from starlette.types import ASGIApp, Receive, Scope, Send

from asynctag import Cache, add_tags
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, Policy, cache_response
from asynctag.integrations.fastapi import cache_policy
from asynctag.testing import FakeClock

pytestmark = pytest.mark.anyio
USERS = {"ka": "alice", "kb": "bob"}


@pytest.fixture
def cache() -> Cache:
    return Cache(default_ttl=60)


def who(key: Annotated[str, Security(APIKeyHeader(name="X-API-Key"))]) -> str:
    if key not in USERS:
        raise HTTPException(403)
    return USERS[key]


async def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers=named)


def status_of(response: httpx.Response) -> str:
    return response.headers.get("cache-status", "")


@pytest.mark.parametrize("by_router", [False, True])
async def test_what_a_key_in_a_header_makes_the_page_is_nobody_elses(cache: Cache, by_router: bool) -> None:
    """A guard lets both in, but its result is rendered. Fails without `Exchange._unkeyed`."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)
    router = APIRouter(dependencies=[Depends(cache_policy(60))] if by_router else [])

    async def me(user: Annotated[str, Depends(who)]) -> str:
        return user

    router.get("/")(me if by_router else cache_response(60)(me))
    app.include_router(router)
    for _ in range(2):
        assert (await get(app, X_API_Key="ka")).json() == "alice"
        assert (await get(app, X_API_Key="kb")).json() == "bob"
    assert 'detail="header x-api-key"' in status_of(await get(app, X_API_Key="kb"))


async def test_a_header_of_the_endpoint_is_in_the_key_or_bypasses(cache: Cache) -> None:
    """`vary=` puts it into the key; a guard without a name, whose result nobody gets, does not count."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/bare")
    @cache_response(60)
    async def bare(accept_language: Annotated[str, Header()]) -> str:
        return accept_language

    @app.get("/keyed")
    @cache_response(60, vary=["Accept-Language"])
    async def keyed(accept_language: Annotated[str, Header()]) -> str:
        return accept_language

    @app.get("/guarded", dependencies=[Depends(who)])
    @cache_response(60)
    async def guarded() -> str:
        return "the same for all who may see it"

    for path in ("/bare", "/keyed"):
        for language in ("de", "fr", "de", "fr"):
            assert (await get(app, path, Accept_Language=language)).json() == language
    assert "hit" not in status_of(await get(app, "/bare", Accept_Language="de"))
    assert "hit" in status_of(await get(app, "/keyed", Accept_Language="de"))
    await get(app, "/guarded", X_API_Key="ka")
    assert "hit" in status_of(await get(app, "/guarded", X_API_Key="kb"))
    assert (await get(app, "/guarded", X_API_Key="no")).status_code == 403


async def test_a_guards_own_answer_is_not_stored_by_a_routers_policy(cache: Cache) -> None:
    """Fails where a router's policy counts although the endpoint was not reached."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)
    router = APIRouter(dependencies=[Depends(cache_policy(60, statuses=[200, 404]))])

    def guard(request: Request) -> None:
        if "x-user" not in request.headers:
            raise HTTPException(404)

    @router.get("/", dependencies=[Depends(guard)])
    async def page() -> str:
        return "page"

    app.include_router(router)
    assert (await get(app)).status_code == 404
    assert (await get(app, X_User="alice")).json() == "page"
    assert (await get(app)).status_code == 404


async def test_an_endpoint_that_another_calls_is_a_function(cache: Cache) -> None:
    """Its policy is not for the other's response. Fails where every call of it speaks to the exchange."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/list")
    @cache_response(60)
    async def listed() -> list[int]:
        return [1]

    @app.get("/me")
    async def me(request: Request) -> dict[str, Any]:
        return {"user": request.headers["x-user"], "list": await listed()}

    for user in ("alice", "bob"):
        assert (await get(app, "/me", X_User=user)).json() == {"user": user, "list": [1]}


async def test_a_task_that_outlives_its_request_leaves_no_flight(cache: Cache) -> None:
    """Later requests would wait for it for ever."""
    app, go = FastAPI(), anyio.Event()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    @cache_response(60)
    async def page() -> str:
        return "page"

    async def later() -> None:
        await go.wait()
        await page()

    async with anyio.create_task_group() as tasks:

        @app.get("/start")
        async def start() -> None:
            tasks.start_soon(later)

        await get(app, "/start")
        go.set()
    assert cache._filling().flights._open == {}
    with anyio.fail_after(5):
        assert (await get(app)).json() == "page"


async def test_a_middleware_inside_that_copies_the_scope_opens_nothing(cache: Cache) -> None:
    """What the routing found is out of sight then: nothing is cached, and least of all before a guard."""

    class Copying:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(dict(scope), receive, send)

    app = FastAPI()
    app.add_middleware(Copying)
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    @cache_response(60, public=True)
    async def page(user: Annotated[str, Depends(who)]) -> str:
        return "secret"

    assert (await get(app, X_API_Key="ka")).json() == "secret"
    assert (await get(app)).status_code in (401, 403)


async def test_the_middlewares_policy_is_asked_for_hits_too(cache: Cache) -> None:
    """It may say no to one request for what another may have."""

    def policy(request: Any) -> Policy | None:
        return None if "x-user" in request.headers else Policy(ttl=60, public=True)

    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache, policy=policy)

    @app.get("/")
    async def page(request: Request) -> str:
        return request.headers.get("x-user", "anonymous")

    await get(app)
    assert "hit" in status_of(await get(app))
    assert (await get(app, X_User="bob")).json() == "bob"
    assert (await get(app)).json() == "anonymous"


async def test_a_path_that_was_rewritten_on_the_way_is_another(cache: Cache) -> None:
    """By tenant, say: the application routes by `path`, and `raw_path` is still what was sent."""
    inner = FastAPI()

    @inner.get("/{tenant}/page")
    @cache_response(60, public=True)
    async def page(tenant: str) -> str:
        return tenant

    cached = CacheMiddleware(inner, cache=cache)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        tenant = dict(scope["headers"])[b"x-tenant"].decode()
        await cached({**scope, "path": f"/{tenant}{scope['path']}"}, receive, send)

    for tenant in ("a", "b", "a", "b"):
        assert (await get(app, "/page", X_Tenant=tenant)).json() == tenant


async def test_a_response_that_varies_by_cookie_is_taken_at_its_word(cache: Cache) -> None:
    """A session inside says so: `cookies=` is what the route believed."""
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    @cache_response(60, cookies=["theme"])
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.cookies.get("session", ""), headers={"Vary": "Cookie"})

    for user in ("alice", "bob"):
        assert (await get(app, Cookie=f"session={user}")).text == user


async def test_the_start_of_what_is_not_stored_goes_out_at_once(cache: Cache) -> None:
    """An event stream opens before its first event. Fails where every start is held until a body comes."""
    app, started = FastAPI(), anyio.Event()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    async def events() -> StreamingResponse:
        async def body() -> Any:
            await started.wait()
            yield b"data: 1\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.set()

    async def receive() -> Any:
        await anyio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    scope |= {"scheme": "http", "root_path": "", "http_version": "1.1", "server": ("t", 80), "client": ("t", 1)}
    with anyio.fail_after(5):
        await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send)


async def test_nobody_waits_for_a_client_that_is_slow_to_take_a_stream(cache: Cache) -> None:
    """Fails where the flight of a stream lands with its last byte only."""
    app, blocked, go = FastAPI(), anyio.Event(), anyio.Event()
    app.add_middleware(CacheMiddleware, cache=cache)
    runs: list[int] = []

    @app.get("/")
    @cache_response(60)
    async def page() -> StreamingResponse:
        runs.append(len(runs) + 1)
        return StreamingResponse(iter([b"%d" % runs[-1] * 70_000, b"!"]))

    async def slow(message: Any) -> None:
        if message.get("body", b"").startswith(b"1"):
            blocked.set()
            await go.wait()

    async def receive() -> Any:
        await anyio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b""}
    scope |= {"headers": [(b"host", b"test")], "scheme": "http", "root_path": "", "http_version": "1.1"}
    scope |= {"server": ("test", 80), "client": ("t", 1), "asgi": {"version": "3.0", "spec_version": "2.4"}}
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, scope, receive, slow)
            await blocked.wait()
            assert (await get(app)).text.startswith("2")
            go.set()


async def test_two_first_requests_keep_both_what_they_learn(cache: Cache) -> None:
    """Of two that run at once, one turns out to vary: the other's record does not take that back."""
    app, both = FastAPI(), [anyio.Event(), anyio.Event()]
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    async def page(request: Request, plain: bool = False) -> PlainTextResponse:
        both[plain].set()
        await both[not plain].wait()
        language = "" if plain else request.headers["accept-language"]
        headers = {"Cache-Control": "public, max-age=60"} | ({} if plain else {"Vary": "Accept-Language"})
        return PlainTextResponse(language, headers=headers)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, app, "/?plain=1")
        await get(app, Accept_Language="en")
    both[True].set()
    assert (await get(app, Accept_Language="en")).text == "en"
    assert (await get(app, Accept_Language="de")).text == "de"


async def test_a_stale_fallback_hands_its_tags_up(cache: Cache) -> None:
    """To a cached computation that calls the application. Fails without `absorb` in `Exchange.stale_instead`."""
    clock = FakeClock()
    cache = Cache(MemoryBackend(clock=clock), default_ttl=1000)
    app, failing = FastAPI(), [False]
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/")
    @cache_response(10, stale_if_error=600, public=True)
    async def page() -> str:
        add_tags("row")
        if failing[0]:
            return PlainTextResponse("down", 503)  # type: ignore[return-value]
        return "well"

    async def whole() -> str:
        return (await get(app)).text

    await get(app)
    clock.advance(11)
    failing[0] = True
    assert await cache.get_or_set("whole", whole) == '"well"'
    await cache.invalidate("row")
    assert await cache.get_or_set("whole", whole) == "down"


async def test_the_headers_of_hits_do_not_hold_their_bodies(cache: Cache) -> None:
    """What is kept for hits within a second would outlive the backend's bounds, and `clear()`."""
    app = FastAPI()
    middleware = CacheMiddleware(app, cache=cache)

    @app.get("/")
    @cache_response(60, public=True)
    async def page() -> PlainTextResponse:
        return PlainTextResponse("body")

    await get(middleware)
    await get(middleware)
    assert "hit" in status_of(await get(middleware))
    (known,) = middleware._known.values()
    fields, _, headers = known.sent
    assert headers
    assert not any(b"body" in value for _, value in (*headers, *(fields or ())))


async def test_two_hosts_in_one_request_are_neither(cache: Cache) -> None:
    """The cache would take one, and the application the other."""
    app = FastAPI()
    cached = CacheMiddleware(app, cache=cache)

    @app.get("/")
    @cache_response(60, public=True)
    async def page(request: Request) -> str:
        return dict(request.scope["headers"])[b"host"].decode()

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b""}
    scope |= {"scheme": "http", "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"}}
    scope |= {"server": ("t", 80), "client": ("t", 1)}
    bodies = []

    async def send(message: Any) -> None:
        bodies.append(message.get("body"))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await cached({**scope, "headers": [(b"host", b"one"), (b"host", b"two")]}, receive, send)
    await cached({**scope, "headers": [(b"host", b"one")]}, receive, send)
    assert [body for body in bodies if body] == [b'"two"', b'"one"']
