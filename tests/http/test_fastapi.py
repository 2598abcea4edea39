"""The response cache on FastAPI: dependencies, guards, routers, and a server end to end."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header, HTTPException, Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPBearer
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from asynctag import Cache, add_tags
from asynctag.errors import ConfigurationError
from asynctag.http import CacheMiddleware, RequestCache
from asynctag.integrations.fastapi import CacheDep, cache_policy, cache_response, get_cache
from asynctag.testing import FakeClock
from tests.http.driver import ask, running
from tests.http.serving import serve

pytestmark = pytest.mark.anyio


def with_cache(app: FastAPI, cache: Cache) -> FastAPI:
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


# --- tags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_templates_take_validated_arguments_with_their_defaults(cache: Cache, kind: str) -> None:
    app = FastAPI()

    if kind == "async":

        @app.get("/products/{product_id}")
        @cache_response(60, tags=["product:{product_id}", "lang:{lang}"])
        async def product(product_id: int, lang: str = "en") -> dict[str, int]:
            return {"id": product_id}

    else:

        @app.get("/products/{product_id}")
        @cache_response(60, tags=["product:{product_id}", "lang:{lang}"])
        def sync_product(product_id: int, lang: str = "en") -> dict[str, int]:
            return {"id": product_id}

    with_cache(app, cache)
    for path, tag in [("/products/0635", "product:635"), ("/products/635", "lang:en")]:
        await ask(app, path)
        assert (await ask(app, path)).hit
        await cache.invalidate(tag)
        assert not (await ask(app, path)).hit


async def test_what_dependencies_cache_and_tag_is_the_responses(cache: Cache) -> None:
    """Async and sync ones, those of the router, and with `yield`. Fails where the scope opens at the endpoint."""

    @cache.cached(ttl=600, tags=["settings"], name="settings")
    async def settings() -> str:
        return "s"

    def sync_dependency() -> None:
        add_tags("sync")

    async def yielding() -> AsyncIterator[None]:
        add_tags("before")
        yield
        add_tags("after")

    async def through(tagged: CacheDep) -> None:
        tagged.add_tags("dep")

    app = FastAPI(dependencies=[Depends(through)])

    @app.get("/", dependencies=[Depends(sync_dependency), Depends(yielding)])
    @cache_response(60)
    def page(found: Annotated[str, Depends(settings)]) -> str:
        add_tags("endpoint")
        return found

    with_cache(app, cache)
    for tag in ("settings", "sync", "before", "dep", "endpoint"):
        await ask(app)
        assert (await ask(app)).hit
        await cache.invalidate(tag)
        assert not (await ask(app)).hit, tag
    await cache.invalidate("after")
    assert (await ask(app)).hit


# --- at the endpoint, and before routing --------------------------------------------------------------


async def test_dependencies_run_on_hits_and_the_endpoint_does_not(cache: Cache) -> None:
    """Guards and rate limits count every request."""
    app, runs = FastAPI(), []

    def limit(request: Request) -> None:
        runs.append("limit")
        if request.headers.get("x-spent"):
            raise HTTPException(429)

    @app.get("/", dependencies=[Depends(limit)])
    @cache_response(60)
    async def page() -> dict[str, str]:
        runs.append("page")
        return {}

    with_cache(app, cache)
    for _ in range(3):
        assert (await ask(app)).status == 200
    assert (await ask(app, headers={"x-spent": "1"})).status == 429
    assert runs == ["limit", "page", "limit", "limit", "limit"]


async def test_a_request_that_is_not_valid_is_refused_though_the_response_is_stored(cache: Cache) -> None:
    app = FastAPI()

    @app.get("/")
    @cache_response(60, query=["n"])
    async def page(n: int, m: int = 0) -> int:
        return n

    with_cache(app, cache)
    await ask(app, "/?n=1")
    assert (await ask(app, "/?n=1&m=x")).status == 422
    assert (await ask(app, "/?n=x")).status == 422
    assert (await ask(app, "/?n=1")).hit


async def test_public_hits_run_nothing_of_the_route(cache: Cache) -> None:
    app, runs = FastAPI(), []

    @app.get("/", dependencies=[Depends(lambda: runs.append("dependency"))])
    @cache_response(60, public=True)
    async def page() -> dict[str, str]:
        runs.append("page")
        return {}

    with_cache(app, cache)
    for _ in range(3):
        await ask(app)
    assert runs == ["dependency", "page"]


async def test_head_stays_405_where_fastapi_refuses_it(cache: Cache) -> None:
    app = FastAPI()

    @app.get("/")
    @cache_response(60, public=True)
    async def page() -> dict[str, str]:
        return {}

    with_cache(app, cache)
    await ask(app)
    assert (await ask(app)).hit
    for _ in range(2):
        assert (await ask(app, method="HEAD")).status == 405
    assert (await ask(app)).hit


async def test_background_tasks_run_on_hits_too(cache: Cache) -> None:
    from fastapi import BackgroundTasks

    app, sent = FastAPI(), []

    def count(tasks: BackgroundTasks) -> None:
        tasks.add_task(sent.append, 1)

    @app.get("/", dependencies=[Depends(count)])
    @cache_response(60)
    async def page() -> dict[str, str]:
        return {}

    with_cache(app, cache)
    for _ in range(3):
        await ask(app)
    assert sent == [1, 1, 1]


async def test_a_hit_gives_the_same_bytes_and_type_as_the_miss(cache: Cache) -> None:
    class Item(BaseModel):
        name: str
        price: float

    app = FastAPI()

    @app.get("/", response_model=Item, status_code=200)
    @cache_response(60)
    async def page(response: Response) -> Any:
        response.headers["x-own"] = "1"
        return {"name": "ä", "price": 1, "secret": 5}

    with_cache(app, cache)
    miss, hit = await ask(app), await ask(app)
    assert hit.hit
    assert hit.body == miss.body == '{"name":"ä","price":1.0}'.encode()
    for name in ("content-type", "x-own", "etag", "content-length"):
        assert hit.header(name) == miss.header(name)


async def test_a_cookie_that_the_route_sets_keeps_its_response_out(cache: Cache) -> None:
    app = FastAPI()

    def login(response: Response) -> None:
        response.set_cookie("session", "1")

    @app.get("/", dependencies=[Depends(login)])
    @cache_response(60)
    async def page() -> dict[str, str]:
        return {}

    with_cache(app, cache)
    await ask(app)
    call = await ask(app)
    assert not call.hit
    assert call.header("set-cookie") is not None


# --- what public=True is refused for ------------------------------------------------------------------

key_header, key_cookie, bearer = APIKeyHeader(name="x-key"), APIKeyCookie(name="session"), HTTPBearer()


def by_header(x_tenant: str = Header()) -> str:
    return x_tenant


def by_cookie(session: str = Cookie()) -> str:
    return session


def nested(found: str = Depends(by_header)) -> str:
    return found


GUARDS = {
    "header": (by_header, "x-tenant"),
    "nested header": (nested, "x-tenant"),
    "cookie": (by_cookie, "session"),
    "API key in a header": (key_header, "APIKeyHeader"),
    "API key in a cookie": (key_cookie, "APIKeyCookie"),
    "bearer": (bearer, "HTTPBearer"),
}
SENT = {"x-tenant": "t", "x-key": "k"}


def public_page(router: Any, *, dependencies: Any = (), policy: dict[str, Any] | None = None) -> None:
    @router.get("/", dependencies=list(dependencies))
    @cache_response(60, public=True, **(policy or {}))
    async def page() -> dict[str, str]:
        return {}


def guarded_apps(guard: Any) -> Iterator[tuple[str, FastAPI]]:
    app = FastAPI()
    public_page(app, dependencies=[Depends(guard)])
    yield "the route", app

    app = FastAPI(dependencies=[Depends(guard)])
    public_page(app)
    yield "the app", app

    router = APIRouter(dependencies=[Depends(guard)])
    public_page(router)
    app = FastAPI()
    app.include_router(router)
    yield "the router", app

    router, app = APIRouter(), FastAPI()
    public_page(router)
    app.include_router(router, dependencies=[Depends(guard)])
    yield "include_router", app

    inner, outer, app = APIRouter(), APIRouter(), FastAPI()
    public_page(inner)
    outer.include_router(inner)
    app.include_router(outer, dependencies=[Depends(guard)])
    yield "include_router, two deep", app


PLACES = ["the route", "the app", "the router", "include_router", "include_router, two deep"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("guard", GUARDS)
async def test_public_before_a_guard_is_refused_at_the_start(cache: Cache, guard: str, place: str) -> None:
    """The error names the parameter or the scheme."""
    call, name = GUARDS[guard]
    app = with_cache(dict(guarded_apps(call))[place], cache)
    with pytest.raises((ConfigurationError, BaseExceptionGroup)) as caught:
        async with running(app):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConfigurationError)
    assert name in str(error)
    assert "public=True" in str(error)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("guard", ["header", "API key in a header"])
async def test_public_before_a_guard_is_refused_at_the_first_request(cache: Cache, guard: str, place: str) -> None:
    """Where no lifespan was run. Fails where `check_public` is never asked."""
    call, name = GUARDS[guard]
    app = with_cache(dict(guarded_apps(call))[place], cache)
    for _ in range(2):
        answer = await ask(app, headers=SENT)
        assert isinstance(answer.error, ConfigurationError), answer.messages
        assert name in str(answer.error)


async def test_public_before_a_guard_is_refused_from_a_router_policy_too(cache: Cache) -> None:
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(cache_policy(60, public=True))])

    @router.get("/")
    async def page(x_tenant: str = Header()) -> str:
        return x_tenant

    app.include_router(router)
    answer = await ask(with_cache(app, cache), headers=SENT)
    assert isinstance(answer.error, ConfigurationError)
    assert "x-tenant" in str(answer.error)


async def test_public_in_a_mounted_application_is_refused_at_the_first_request(cache: Cache) -> None:
    inner = FastAPI()
    public_page(inner, dependencies=[Depends(by_header)])
    app = Starlette(routes=[Mount("/m", inner)])
    app.add_middleware(CacheMiddleware, cache=cache)
    assert isinstance((await ask(app, "/m/", headers=SENT)).error, ConfigurationError)


async def test_a_parameter_that_the_key_holds_is_no_guard(cache: Cache) -> None:
    app = FastAPI()

    @app.get("/")
    @cache_response(60, public=True, vary=["X-Tenant"], cookies=["session"])
    async def page(x_tenant: str = Header(), session: str = Cookie()) -> str:
        return x_tenant + session

    with_cache(app, cache)
    async with running(app):
        for _ in range(2):
            for who in "ab":
                headers = {"x-tenant": who, "cookie": f"session={who}"}
                assert (await ask(app, headers=headers)).text == f'"{who}{who}"'


async def test_hits_at_the_endpoint_go_with_any_guard(cache: Cache) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Security(key_header)])
    @cache_response(60)
    async def page() -> dict[str, str]:
        return {}

    with_cache(app, cache)
    async with running(app):
        await ask(app, headers=SENT)
        assert (await ask(app, headers=SENT)).hit
        assert (await ask(app)).status in (401, 403)


async def test_what_was_found_about_routes_does_not_grow_with_the_requests(cache: Cache) -> None:
    app, router = FastAPI(), APIRouter()
    public_page(router)
    app.include_router(router)
    middleware = CacheMiddleware(app, cache=cache)
    for n in range(20):
        await ask(middleware, f"/?n={n}")
    assert len(middleware._public) == 1


# --- a router's policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_routers_policy_counts_for_its_routes_after_their_guards(cache: Cache, kind: str) -> None:
    runs: list[str] = []

    def guard(request: Request) -> None:
        runs.append("guard")
        if request.headers.get("x-key") != "k":
            raise HTTPException(403)

    router = APIRouter(dependencies=[Depends(cache_policy(60, tags=["catalogue"]))])

    if kind == "async":

        @router.get("/", dependencies=[Depends(guard)])
        async def page() -> dict[str, str]:
            runs.append("page")
            return {}

    else:

        @router.get("/", dependencies=[Depends(guard)])
        def sync_page() -> dict[str, str]:
            runs.append("page")
            return {}

    app = FastAPI()
    app.include_router(router)
    with_cache(app, cache)
    key = {"x-key": "k"}
    await ask(app, headers=key)
    assert (await ask(app, headers=key)).hit
    assert (await ask(app)).status == 403
    assert runs == ["guard", "page", "guard", "guard"]
    await cache.invalidate("catalogue")
    assert not (await ask(app, headers=key)).hit


async def test_a_routes_own_policy_overrides_its_routers_and_has_its_tags_too(cache: Cache, clock: FakeClock) -> None:
    router = APIRouter(dependencies=[Depends(cache_policy(600, tags=["catalogue"]))])

    @router.get("/")
    @cache_response(60, tags=["own"])
    async def page() -> dict[str, str]:
        return {}

    app = FastAPI()
    app.include_router(router)
    with_cache(app, cache)
    await ask(app)
    assert (await ask(app)).cache_status.endswith("ttl=60")
    for tag in ("catalogue", "own"):
        await cache.invalidate(tag)
        assert not (await ask(app)).hit


async def test_the_policy_of_an_inner_router_overrides_that_of_an_outer_one(cache: Cache) -> None:
    outer = APIRouter(dependencies=[Depends(cache_policy(600, tags=["outer"]))])
    inner = APIRouter(dependencies=[Depends(cache_policy(60, tags=["inner"]))])

    @inner.get("/")
    async def page() -> dict[str, str]:
        return {}

    outer.include_router(inner)
    app = FastAPI()
    app.include_router(outer)
    with_cache(app, cache)
    await ask(app)
    for _ in range(2):
        assert (await ask(app)).cache_status.endswith("ttl=60")
    for tag in ("outer", "inner"):
        await cache.invalidate(tag)
        assert not (await ask(app)).hit


async def test_a_router_included_twice_has_each_time_the_policy_of_its_place(cache: Cache) -> None:
    router, app = APIRouter(), FastAPI()

    @router.get("/")
    async def page() -> dict[str, str]:
        return {}

    app.include_router(router, prefix="/long", dependencies=[Depends(cache_policy(600))])
    app.include_router(router, prefix="/short", dependencies=[Depends(cache_policy(60))])
    app.include_router(router, prefix="/none")
    with_cache(app, cache)
    for _ in range(2):
        statuses = {prefix: (await ask(app, f"/{prefix}/")).cache_status for prefix in ("long", "short", "none")}
    assert statuses == {"long": "asynctag; hit; ttl=600", "short": "asynctag; hit; ttl=60", "none": ""}


async def test_a_policys_tags_may_be_a_dependency(cache: Cache) -> None:
    async def tenant_tags(tenant: str) -> list[str]:
        return [f"tenant:{tenant}"]

    router = APIRouter(dependencies=[Depends(cache_policy(60, tags=tenant_tags))])

    @router.get("/")
    async def page(tenant: str) -> str:
        return tenant

    app = FastAPI()
    app.include_router(router)
    with_cache(app, cache)
    for tenant in "ab":
        await ask(app, f"/?tenant={tenant}")
    await cache.invalidate("tenant:a")
    assert not (await ask(app, "/?tenant=a")).hit
    assert (await ask(app, "/?tenant=b")).hit


def test_a_routers_templates_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="product"):
        cache_policy(60, tags=["product:{product_id}"])


async def test_a_policy_ignores_unsafe_methods_and_websockets(cache: Cache) -> None:
    runs: list[int] = []
    router = APIRouter(dependencies=[Depends(cache_policy(60))])

    @router.post("/")
    async def post() -> int:
        runs.append(1)
        return len(runs)

    @router.websocket("/ws")
    async def socket(websocket: Any) -> None:
        raise AssertionError

    app = FastAPI()
    app.include_router(router)
    with_cache(app, cache)
    assert [(await ask(app, method="POST")).text for _ in range(2)] == ["1", "2"]


async def test_without_the_middleware_each_says_how_to_add_it() -> None:
    app = FastAPI()

    @app.get("/policy", dependencies=[Depends(cache_policy(60))])
    async def policy() -> None:
        raise AssertionError

    @app.get("/response")
    @cache_response(60)
    async def response() -> None:
        raise AssertionError

    @app.get("/dep")
    async def dep(tagged: CacheDep) -> None:
        raise AssertionError

    for path in ("/policy", "/response", "/dep"):
        error = (await ask(app, path)).error
        assert isinstance(error, ConfigurationError)
        assert "add_middleware(CacheMiddleware, cache=cache)" in str(error)


async def test_a_generator_under_a_policy_streams(cache: Cache) -> None:
    router, runs = APIRouter(dependencies=[Depends(cache_policy(60))]), []

    @router.get("/")
    async def page() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            runs.append(1)
            yield b"a"
            yield b"b"

        return StreamingResponse(body())

    app = FastAPI()
    app.include_router(router)
    with_cache(app, cache)
    assert [(await ask(app)).body for _ in range(2)] == [b"ab"] * 2
    assert runs == [1]


# --- the cache as a dependency ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_dependency_gives_tagged_access(cache: Cache, method: str) -> None:
    app = FastAPI()

    @app.api_route("/", methods=["GET", "POST"])
    async def page(tagged: CacheDep) -> str:
        async def compute() -> str:
            return "v"

        found = await tagged.get_or_set("k", compute, ttl=60, tags=["t"])
        looked = await tagged.lookup("k")
        tagged.add_tags("x")
        await tagged.invalidate("other")
        return f"{found} {looked.value}"  # type: ignore[union-attr]

    with_cache(app, cache)
    assert (await ask(app, method=method)).text == '"v v"'


async def test_the_dependency_can_be_overridden(cache: Cache) -> None:
    app, other = FastAPI(), RequestCache(Cache(), None)
    found: list[Any] = []

    @app.get("/")
    async def page(tagged: CacheDep) -> None:
        found.append(tagged)

    app.dependency_overrides[get_cache] = lambda: other
    await ask(app)
    assert found == [other]


async def test_a_put_invalidates_what_a_get_had_cached(cache: Cache) -> None:
    app, price = FastAPI(), [1]

    @app.get("/products/{product_id}")
    @cache_response(60, tags=["product:{product_id}"], public=True)
    async def read(product_id: int) -> int:
        return price[0]

    @app.put("/products/{product_id}")
    async def update(product_id: int, tagged: CacheDep) -> None:
        price[0] += 1
        await tagged.invalidate(f"product:{product_id}")

    with_cache(app, cache)
    for expected in "123":
        assert (await ask(app, "/products/1")).text == expected
        assert (await ask(app, "/products/1")).text == expected
        await ask(app, "/products/1", method="PUT")


async def test_a_websocket_has_the_dependency(cache: Cache) -> None:
    from fastapi import WebSocket

    app = FastAPI()

    @app.websocket("/")
    async def socket(websocket: WebSocket, tagged: CacheDep) -> None:
        async def compute() -> str:
            return "v"

        await websocket.accept()
        await websocket.send_text(await tagged.get_or_set("k", compute, ttl=60))
        await websocket.close()

    with_cache(app, cache)
    sent: list[Any] = []
    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b"", "subprotocols": [], "root_path": ""}

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope | {"asgi": {}, "state": {}}, receive, send)
    assert [one.get("text") for one in sent] == [None, "v", None]


# --- renewals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_routes_of_included_routers_are_renewed_in_the_background(
    cache: Cache, clock: FakeClock, public: bool, streamed: bool
) -> None:
    """Also those that stream, for which the server's side listens while it sends."""
    app, router, runs = FastAPI(), APIRouter(), []

    @router.get("/{n}")
    @cache_response(60, public=public, stale_while_revalidate=600)
    async def page(n: int) -> Any:
        runs.append(n)
        text = f"run {len(runs)}"
        return StreamingResponse(iter([text[:2], text[2:]])) if streamed else text

    app.include_router(router, prefix="/in")
    with_cache(app, cache)
    async with running(app):
        await ask(app, "/in/5")
        clock.advance(61)
        assert "run 1" in (await ask(app, "/in/5")).text
        with anyio.fail_after(10):
            while len(runs) < 2 or cache._filling().flights._open:
                await anyio.lowlevel.checkpoint()
        assert "run 2" in (await ask(app, "/in/5")).text
    assert runs == [5, 5]


# --- clients and servers ------------------------------------------------------------------------------


def shop(cache: Cache) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert cache._background.is_open
        yield

    app, runs = FastAPI(lifespan=lifespan), [0]

    @cache.cached(ttl=60, tags=["product:{product_id}"], name="product")
    async def product(product_id: int) -> dict[str, int]:
        runs[0] += 1
        return {"id": product_id, "run": runs[0]}

    @app.get("/products/{product_id}")
    @cache_response(60, public=True)
    async def read(product_id: int) -> dict[str, int]:
        return await product(product_id)

    @app.get("/sync/{product_id}")
    @cache_response(60)
    def read_in_a_thread(product_id: int) -> dict[str, int]:
        return anyio.from_thread.run(product, product_id)

    @app.get("/stream/{product_id}")
    @cache_response(60)
    async def stream(product_id: int) -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            yield "<"
            yield str((await product(product_id))["run"])
            yield ">"

        return StreamingResponse(body())

    @app.put("/products/{product_id}")
    async def update(product_id: int, tagged: CacheDep) -> None:
        await tagged.invalidate(f"product:{product_id}")

    return with_cache(app, cache)


def go_shopping(client: Any) -> None:
    """Each URL is a miss, then a hit, and a miss again after an update."""
    for path in ("/products/1", "/sync/1", "/stream/1"):
        first, second = client.get(path), client.get(path)
        assert first.status_code == second.status_code == 200
        assert "fwd=" in first.headers["cache-status"]
        assert "; hit" in second.headers["cache-status"]
        assert first.text == second.text
        if "etag" in second.headers:
            assert client.get(path, headers={"if-none-match": second.headers["etag"]}).status_code == 304
        assert client.put("/products/1").status_code == 200
        third = client.get(path)
        assert "fwd=stale" in third.headers["cache-status"]
        assert third.text != first.text
    assert client.head("/products/1").status_code == 405


async def test_a_client_without_a_server(cache: Cache) -> None:
    """As applications are tested: no lifespan is run."""
    transport = httpx.ASGITransport(app=shop(cache))
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for path in ("/products/1", "/sync/1", "/stream/1"):
            texts = [(await client.get(path)).text for _ in range(2)]
            assert (await client.put("/products/1")).status_code == 200
            assert len({*texts, (await client.get(path)).text}) == 2


def test_a_real_server(cache: Cache) -> None:
    with serve(shop(cache)) as on, closing(httpx.Client(base_url=on.url)) as client:
        go_shopping(client)


def test_a_real_server_renews_what_streams(cache: Cache, clock: FakeClock) -> None:
    app, runs = FastAPI(), [0]

    @app.get("/")
    @cache_response(60, stale_while_revalidate=600)
    async def page() -> StreamingResponse:
        runs[0] += 1
        return StreamingResponse(iter(["run ", str(runs[0])]))

    with_cache(app, cache)
    with serve(app) as on, closing(httpx.Client(base_url=on.url, timeout=5)) as client:
        assert client.get("/").text == "run 1"
        clock.advance(61)
        assert client.get("/").text == "run 1"
        for _ in range(2_000):  # until the renewal in the server's thread has landed
            if client.get("/").text == "run 2":
                break
        assert client.get("/").text == "run 2"
