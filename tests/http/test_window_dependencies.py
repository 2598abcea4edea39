"""Windows that FastAPI gives their dependencies: solved for the request that is served, each time they are filled."""

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
    WebSocket,
)
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection
from fastapi.responses import HTMLResponse
from fastapi.security import APIKeyCookie, SecurityScopes
from starlette.applications import Starlette

from asynctag import Cache, ConfigurationError, Window, WindowError
from asynctag.http import CacheMiddleware, cache_response, current_request
from asynctag.integrations.fastapi import CacheDep
from tests.http.driver import Call, ask, begin

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def app_with(cache: Cache, *windows: Callable[[], object], path: str = "/") -> FastAPI:
    """An application with a page for everybody, in which these windows stand."""
    app = FastAPI()

    @app.get(path, response_class=HTMLResponse)
    @cache_response(60, public=True, cookies=(), query=())
    async def page() -> str:
        return "<p>" + ", ".join(f"{window()}" for window in windows)

    app.add_middleware(CacheMiddleware, cache=cache)
    return app


async def ask_as(app: Any, name: str, path: str = "/") -> Call:
    return await ask(app, path, headers={"cookie": f"name={name}"})


def name_of(request: Request) -> str:
    return request.cookies["name"]


Name = Annotated[str, Depends(name_of)]


# --- what they are given -------------------------------------------------------------------------------


async def test_two_users_see_their_own_on_one_page(cache: Cache) -> None:
    """The dependency is solved for who asks, on the miss and on every hit: never for who filled the cache."""

    @cache.window(name="hello")
    async def hello(name: Name) -> str:
        return f"Hello {name}"

    app = app_with(cache, hello)
    first = await ask_as(app, "ann")
    assert (first.text, first.hit) == ("<p>Hello ann", False)
    for name in ("bob", "ann", "cid"):
        answer = await ask_as(app, name)
        assert (answer.text, answer.hit) == (f"<p>Hello {name}", True)
        assert answer.header("cache-control") == "private, no-store"


async def test_parameters_of_the_page_stand_beside_dependencies(cache: Cache) -> None:
    """What the window is placed with is JSON, with its defaults; what FastAPI fills is not placed."""

    @cache.window(name="price")
    async def price(name: Name, cents: int, currency: str = "EUR") -> str:
        return f"{name} pays {cents} {currency}"

    app = app_with(cache, lambda: price(5), lambda: price(7, "USD"), lambda: price(currency="CHF", cents=9))
    await ask_as(app, "ann")
    answer = await ask_as(app, "bob")
    assert (answer.text, answer.hit) == ("<p>bob pays 5 EUR, bob pays 7 USD, bob pays 9 CHF", True)
    with pytest.raises(TypeError, match="name"):
        price(5, name="ann")


async def test_all_that_fastapi_takes_from_a_request(cache: Cache) -> None:
    """Declared as a type, with `Annotated` or as the default value."""

    @cache.window(name="all")
    async def everything(
        request: Request,
        connection: HTTPConnection,
        scopes: SecurityScopes,
        x_shop: Annotated[str, Header()],
        sort: Annotated[int, Query(alias="by")] = 1,
        name: str = Cookie(),
        also: str = Depends(name_of),
    ) -> str:
        assert request.url == connection.url
        return f"{request.url.path} {x_shop} {sort} {name} {also} {scopes.scopes}"

    app = app_with(cache, everything)
    await ask(app, headers={"cookie": "name=ann", "x-shop": "a"})
    answer = await ask(app, "/?by=2", headers={"cookie": "name=bob", "x-shop": "b"})
    assert (answer.text, answer.hit) == ("<p>/ b 2 bob bob []", True)


async def test_annotations_may_be_text(cache: Cache) -> None:
    """As with `from __future__ import annotations`."""

    async def hello(name: "Name", times: "int" = 2) -> "str":
        return f"Hello {name}" * times

    app = app_with(cache, cache.window(name="hello")(hello))
    assert (await ask_as(app, "ann")).text == "<p>Hello annHello ann"


async def test_sync_dependencies_run_in_a_thread_and_see_the_request(cache: Cache) -> None:
    """They may block, and ask for the request as the window does."""
    threads: list[int] = []

    def blocking() -> str:
        threads.append(threading.get_ident())
        return current_request().cookies["name"]

    @cache.window(name="hello")
    async def hello(name: Annotated[str, Depends(blocking)]) -> str:
        return name

    app = app_with(cache, hello)
    assert [(await ask_as(app, name)).text for name in ("ann", "bob")] == ["<p>ann", "<p>bob"]
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_a_security_scheme_stands_in_a_window_of_a_public_page(cache: Cache) -> None:
    """With the scopes that are asked for. It keeps the window from strangers, and not the page."""
    scheme = APIKeyCookie(name="name")

    def user(scopes: SecurityScopes, key: Annotated[str, Security(scheme)]) -> str:
        if key != "ann":
            raise HTTPException(403, "not you")
        return f"{key} {scopes.scope_str}"

    @cache.window(name="orders", fallback="log in")
    async def orders(owner: Annotated[str, Security(user, scopes=["orders", "me"])]) -> str:
        return f"the orders of {owner}"

    app = app_with(cache, orders)
    assert (await ask_as(app, "ann")).text == "<p>the orders of ann orders me"
    for answer in (await ask_as(app, "bob"), await ask(app)):
        assert (answer.status, answer.text, answer.hit) == (200, "<p>log in", True)


async def test_the_cache_as_a_dependency(cache: Cache) -> None:
    """What a window caches through it is tagged by itself, and its tags stay out of the page."""
    asked: list[str] = []

    @cache.window(name="cart")
    async def cart(name: Name, tagged: CacheDep) -> str:
        async def compute() -> str:
            asked.append(name)
            return f"{name} {len(asked)}"

        return await tagged.get_or_set(f"cart {name}", compute, ttl=60, tags=[f"cart:{name}"])

    app = app_with(cache, cart)
    assert [(await ask_as(app, name)).text for name in ("ann", "bob", "ann")] == ["<p>ann 1", "<p>bob 2", "<p>ann 1"]
    await cache.invalidate("cart:ann")
    answers = [await ask_as(app, name) for name in ("ann", "bob")]
    assert [answer.text for answer in answers] == ["<p>ann 3", "<p>bob 2"]
    assert all(answer.hit for answer in answers)


# --- how often they are solved, and by what ------------------------------------------------------------


async def test_once_a_window(cache: Cache) -> None:
    """Within one window a dependency is solved once, unless it says otherwise; another window has its own."""
    solved: list[int] = []

    async def base() -> int:
        solved.append(len(solved))
        return solved[-1]

    async def again(number: Annotated[int, Depends(base)]) -> int:
        return number

    @cache.window(name="once")
    async def once(one: Annotated[int, Depends(base)], other: Annotated[int, Depends(again)]) -> str:
        return str(other - one)

    @cache.window(name="anew")
    async def anew(one: Annotated[int, Depends(base)], other: Annotated[int, Depends(base, use_cache=False)]) -> str:
        return str(abs(other - one) > 0)

    app = app_with(cache, once, anew, once)
    for times in (1, 2):
        assert (await ask(app)).text == "<p>0, True, 0"
        assert len(solved) == 3 * times


@pytest.mark.parametrize("around", [False, True], ids=["added", "around the application"])
async def test_overrides_count(cache: Cache, around: bool) -> None:
    """Those of the application, at any depth, where they are when the window is filled: on hits as on the miss."""

    def database() -> str:
        return "production"

    def session(place: Annotated[str, Depends(database)]) -> str:
        return f"a session on {place}"

    @cache.window(name="rows")
    async def rows(found: Annotated[str, Depends(session)]) -> str:
        return found

    app = app_with(cache, rows)
    served: Any = app
    if around:
        app.user_middleware.clear()
        served = CacheMiddleware(app, cache=cache)
    app.dependency_overrides[database] = lambda: "test"
    assert [(await ask(served)).text for _ in range(2)] == ["<p>a session on test"] * 2
    app.dependency_overrides[session] = lambda kind="none": f"a {kind}"
    assert (await ask(served, "/?kind=mock")).text == "<p>a mock"
    app.dependency_overrides.clear()
    answer = await ask(served)
    assert (answer.text, answer.hit) == ("<p>a session on production", True)


async def test_an_application_without_overrides(cache: Cache) -> None:
    """FastAPI's dependencies in a window of an application of Starlette."""

    @cache.window(name="hello")
    async def hello(name: Name) -> str:
        return name

    @cache_response(60, public=True, cookies=())
    async def page(request: Request) -> Response:
        return HTMLResponse(f"<p>{hello()}")

    app = Starlette()
    app.add_route("/", page)
    app.add_middleware(CacheMiddleware, cache=cache)
    assert [(await ask_as(app, name)).text for name in ("ann", "bob")] == ["<p>ann", "<p>bob"]


# --- what ends with the window -------------------------------------------------------------------------


def noting(events: list[str], name: str, *, sync: bool = False) -> Callable[[], Any]:
    """A dependency with `yield` that notes what becomes of it."""

    @asynccontextmanager
    async def noted() -> AsyncIterator[str]:
        events.append(f"{name} opens")
        try:
            yield name
        except BaseException as error:
            events.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            events.append(f"{name} closes")

    async def dependency() -> AsyncIterator[str]:
        async with noted() as found:
            yield found

    def sync_dependency() -> Iterator[str]:
        events.append(f"{name} opens")
        try:
            yield name
        finally:
            events.append(f"{name} closes")

    return sync_dependency if sync else dependency


async def test_dependencies_with_yield_are_closed_in_order(cache: Cache) -> None:
    """After the window, the last first; those of the function before those of the request. Sync ones too."""
    events: list[str] = []
    outer, inner = noting(events, "outer"), noting(events, "inner")
    sync, of_function = noting(events, "sync", sync=True), noting(events, "of function")

    async def both(one: Annotated[str, Depends(outer)], other: Annotated[str, Depends(inner)]) -> str:
        return one + other

    @cache.window(name="rows")
    async def rows(
        first: Annotated[str, Depends(of_function, scope="function")],
        second: Annotated[str, Depends(both)],
        third: Annotated[str, Depends(sync, scope="request")],
    ) -> str:
        events.append("window")
        return "rows"

    app = app_with(cache, rows)
    opened = ["of function opens", "outer opens", "inner opens", "sync opens"]
    closed = ["of function closes", "sync closes", "inner closes", "outer closes"]
    for expected in (False, True):
        events.clear()
        call = await ask(app)
        assert (call.text, call.hit) == ("<p>rows", expected)
        assert events == [*opened, "window", *closed]


async def test_those_of_the_route_are_left_alone(cache: Cache) -> None:
    """A hit at the endpoint has the route's dependencies open, and they stay so until the response is out."""
    events: list[str] = []
    of_route, of_window = noting(events, "route"), noting(events, "window")

    @cache.window(name="hello")
    async def hello(found: Annotated[str, Depends(of_window)]) -> str:
        return found

    app = FastAPI()

    @app.get("/", response_class=HTMLResponse, dependencies=[Depends(of_route)])
    @cache_response(60)
    async def page() -> str:
        return f"<p>{hello()}"

    app.add_middleware(CacheMiddleware, cache=cache)
    for expected in (False, True):
        events.clear()
        call = await ask(app)
        assert (call.text, call.hit) == ("<p>window", expected)
        assert events == ["route opens", "window opens", "window closes", "route closes"]


async def test_windows_side_by_side_have_dependencies_of_their_own(cache: Cache) -> None:
    """One that is over closes what it had, while the other still has its own."""
    events: list[str] = []
    opened = {name: anyio.Event() for name in ("slow", "fast")}
    go_on = anyio.Event()

    def of(name: str) -> Callable[[], Any]:
        return noting(events, name)

    @cache.window(name="slow")
    async def slow(found: Annotated[str, Depends(of("slow"))]) -> str:
        opened["slow"].set()
        await go_on.wait()
        return found

    @cache.window(name="fast")
    async def fast(found: Annotated[str, Depends(of("fast"))]) -> str:
        opened["fast"].set()
        await opened["slow"].wait()
        return found

    app = app_with(cache, slow, fast)
    async with anyio.create_task_group() as tasks:
        call = begin(tasks, app)
        await opened["slow"].wait()
        await opened["fast"].wait()
        await anyio.wait_all_tasks_blocked()
        assert "fast closes" in events
        assert "slow closes" not in events
        go_on.set()
    assert call.text == "<p>slow, fast"
    assert events[-1] == "slow closes"


# --- what fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
async def test_a_dependency_that_fails_is_a_window_that_fails(cache: Cache, sync: bool) -> None:
    """Its fallback is served. Without one the serve fails: where the text before it is out already, that is all."""

    async def refused() -> None:
        raise HTTPException(401)

    def refused_in_a_thread() -> None:
        raise HTTPException(401)

    def window(name: str, **options: Any) -> Window[..., str]:
        @cache.window(name=name, **options)
        async def hello(user: Annotated[None, Depends(refused_in_a_thread if sync else refused)]) -> str:
            raise AssertionError("the window runs without its dependency")

        return hello

    app = app_with(cache, window("calm", fallback="nobody"))
    assert [(await ask(app)).text for _ in range(2)] == ["<p>nobody"] * 2
    strict = app_with(cache, window("strict"), path="/strict")
    for call in (await ask(strict, "/strict"), await ask(strict, "/strict")):
        assert call.error is not None
        assert (call.status, call.body) == ((200, b"<p>") if sync else (500, b"Internal Server Error"))


async def test_what_is_not_valid_is_a_window_that_fails(cache: Cache) -> None:
    """As FastAPI says it, with where and why. The next request is served from the same page."""

    @cache.window(name="count")
    async def count(number: Annotated[int, Query(alias="n")]) -> str:
        return str(number)

    app = app_with(cache, count)
    assert (await ask(app, "/?n=1")).text == "<p>1"
    for path, kind in (("/?n=x", "int_parsing"), ("/", "missing")):
        call = await ask(app, path)
        assert call.status == 500
        failure = call.error.__cause__ if call.error is not None else None
        assert isinstance(failure, RequestValidationError)
        assert [(error["type"], error["loc"]) for error in failure.errors()] == [(kind, ("query", "n"))]
    answer = await ask(app, "/?n=2")
    assert (answer.text, answer.hit) == ("<p>2", True)


async def test_a_dependency_sees_the_windows_exception(cache: Cache) -> None:
    """And lets it through: a session rolls back."""
    events: list[str] = []

    @cache.window(name="rows", fallback="none")
    async def rows(session: Annotated[str, Depends(noting(events, "session"))]) -> str:
        raise LookupError("no rows")

    assert (await ask(app_with(cache, rows))).text == "<p>none"
    assert events == ["session opens", "session sees LookupError", "session closes"]


async def test_a_dependency_that_keeps_the_windows_exception(cache: Cache) -> None:
    """A window has to return something: what it has not returned is an error, not `None`."""

    async def silent() -> AsyncIterator[None]:
        with suppress(LookupError):
            yield

    @cache.window(name="rows")
    async def rows(session: Annotated[None, Depends(silent)]) -> str | None:
        raise LookupError("no rows")

    call = await ask(app_with(cache, rows))
    assert call.status == 500
    assert isinstance(call.error, WindowError)
    assert "raise it again" in str(call.error)


async def test_a_window_that_takes_too_long_closes_its_dependencies(cache: Cache) -> None:
    """Whether it is itself that waits, or one of them."""
    events: list[str] = []

    async def never() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    session = noting(events, "session")

    @cache.window(name="first", timeout=0.01, fallback="late")
    async def first(one: Annotated[str, Depends(session)]) -> str:
        return await never()

    @cache.window(name="second", timeout=0.01, fallback="later")
    async def second(one: Annotated[str, Depends(session)], two: Annotated[str, Depends(never)]) -> str:
        return two

    assert (await ask(app_with(cache, first))).text == "<p>late"
    assert (await ask(app_with(cache, second, path="/second"), "/second")).text == "<p>later"
    assert len(events) == 6
    assert events.count("session closes") == 2


# --- where they are called ------------------------------------------------------------------------------


async def test_awaited_where_nothing_is_cached(cache: Cache) -> None:
    """An endpoint that is not cached gets what the window returns, for its own request."""

    @cache.window(name="hello")
    async def hello(name: Name, times: int = 1) -> str:
        return f"Hello {name}" * times

    app = FastAPI()

    @app.get("/")
    async def page() -> str:
        return await hello(times=2)

    app.add_middleware(CacheMiddleware, cache=cache)
    assert [(await ask_as(app, name)).text for name in ("ann", "bob")] == [
        '"Hello annHello ann"',
        '"Hello bobHello bob"',
    ]


async def test_filled_where_a_cached_function_is_called(cache: Cache) -> None:
    """Its value is stored once; in an endpoint its windows are filled for the request of that."""

    @cache.window(name="hello")
    async def hello(name: Name) -> str:
        return f"Hello {name}"

    @cache.cached(ttl=60, name="text")
    async def text() -> str:
        runs.append("text")
        return f"{hello()}!"

    runs: list[str] = []
    app = FastAPI()

    @app.get("/")
    async def page() -> str:
        return await text()

    app.add_middleware(CacheMiddleware, cache=cache)
    assert [(await ask_as(app, name)).text for name in ("ann", "bob")] == ['"Hello ann!"', '"Hello bob!"']
    assert runs == ["text"]


async def test_where_no_request_is_served(cache: Cache) -> None:
    """A script has no request to solve dependencies for: the error names the window and what it asks for."""

    @cache.window(name="hello")
    async def hello(name: Name, times: int = 1) -> str:
        return name

    @cache.cached(ttl=60, name="text")
    async def text() -> str:
        return f"{hello()}!"

    for attempt in (lambda: hello(), lambda: text()):
        with pytest.raises(ConfigurationError, match=r"hello\(name\) has dependencies.*no request is being served"):
            await attempt()

    app = FastAPI()

    @app.get("/")
    async def page() -> str:
        return await hello()

    call = await ask_as(app, "ann")
    assert isinstance(call.error, ConfigurationError)
    assert "CacheMiddleware" in str(call.error)


# --- what is refused -------------------------------------------------------------------------------------


def of_path(number: Annotated[int, PathParameter()]) -> int:
    return number


def of_body(item: Annotated[dict[str, int], Body()]) -> int:
    return len(item)


def of_socket(socket: WebSocket) -> None: ...


def of_response(response: Response) -> None: ...


def of_tasks(tasks: BackgroundTasks) -> None: ...


@pytest.mark.parametrize(
    ("dependency", "why"),
    [
        (of_path, "a parameter of the path"),
        (of_body, "the body of the request"),
        (of_socket, "a WebSocket"),
        (of_response, "the Response"),
        (of_tasks, "BackgroundTasks"),
    ],
)
def test_what_a_window_cannot_have(cache: Cache, dependency: Any, why: str) -> None:
    """At any depth, and with the way to it."""

    def between(found: Annotated[object, Depends(dependency)]) -> None: ...

    with pytest.raises(ConfigurationError, match=rf"rows\(found\) > .*between > {dependency.__name__} asks .* {why}"):

        @cache.window(name="rows")
        async def rows(found: Annotated[None, Depends(between)]) -> str:
            return ""


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (Annotated[int, PathParameter()], "path"),
        (Annotated[dict[str, int], Body()], "body"),
        (WebSocket, "WebSocket"),
        (Response, "Response"),
        (HTMLResponse, "Response"),
        (BackgroundTasks, "BackgroundTasks"),
    ],
)
def test_what_a_window_cannot_take_itself(cache: Cache, annotation: Any, why: str) -> None:
    """By a parameter of its own."""

    async def rows(found: Any) -> str:
        return ""

    rows.__annotations__["found"] = annotation
    with pytest.raises(ConfigurationError, match=rf"rows\(found\) asks FastAPI for .*{why}"):
        cache.window(name="rows")(rows)


def test_dependencies_are_given_by_name(cache: Cache) -> None:
    """One that can only be given by position could never be."""

    async def rows(name: Name, /) -> str:
        return name

    with pytest.raises(ConfigurationError, match="given by name"):
        cache.window(name="rows")(rows)


@pytest.mark.parametrize(
    "parameter", ["user: Annotated[Any, Depends(f)]", "user: Any = Depends(f)", "q: str = Query()"]
)
@pytest.mark.parametrize("future", ["", "from __future__ import annotations"])
def test_without_the_integration_it_says_what_to_import(parameter: str, future: str) -> None:
    """Nothing else would tell that a parameter is not the page's."""
    code = (
        f"{future}\nfrom typing import Annotated, Any\nfrom fastapi import Depends, Query\nfrom asynctag import Cache\n"
        f"def f() -> None: ...\nasync def window({parameter}) -> str: return ''\nCache().window(name='w')(window)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode
    assert "ConfigurationError: w declares a dependency of FastAPI" in done.stderr
    assert "import asynctag.integrations.fastapi before it" in done.stderr
