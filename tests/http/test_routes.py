"""`cache_response` on endpoints of plain Starlette, and what it refuses."""

import functools
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags
from asynctag.errors import ConfigurationError, TagTemplateError
from asynctag.http import CacheMiddleware, cache_response
from asynctag.integrations.fastapi import cache_policy
from asynctag.testing import FakeClock
from tests.http.driver import ask

pytestmark = pytest.mark.anyio


def served(cache: Cache, endpoint: Any, path: str = "/", **route: Any) -> Starlette:
    app = Starlette(routes=[StarletteRoute(path, endpoint, **route)])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


# --- endpoints ----------------------------------------------------------------------------------------


async def test_an_async_endpoint(cache: Cache) -> None:
    @cache_response(60, tags=["product:{id}"])
    async def product(request: Request) -> JSONResponse:
        return JSONResponse(request.path_params["id"])

    app = served(cache, product, "/products/{id:int}")
    await ask(app, "/products/0635")
    assert (await ask(app, "/products/0635")).hit
    await cache.invalidate("product:635")  # of the converted parameter, not of the path's text
    assert not (await ask(app, "/products/0635")).hit


async def test_a_sync_endpoint_runs_in_a_thread_with_its_tags(cache: Cache) -> None:
    import threading

    threads: list[bool] = []

    @cache_response(60, tags=["product:{id}"])
    def product(request: Request) -> PlainTextResponse:
        threads.append(threading.current_thread() is threading.main_thread())
        add_tags("late")
        return PlainTextResponse("x")

    app = served(cache, product, "/products/{id:int}")
    for tag in ("late", "product:1"):
        await ask(app, "/products/1")
        assert (await ask(app, "/products/1")).hit
        await cache.invalidate(tag)
        assert not (await ask(app, "/products/1")).hit
    assert not any(threads)


async def test_a_method_of_an_endpoint_class(cache: Cache) -> None:
    class Product(HTTPEndpoint):
        @cache_response(60, tags=["product:{id}"])
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse(f"{type(self).__name__} {request.path_params['id']}")

        async def post(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("posted")

    app = served(cache, Product, "/products/{id:int}")
    await ask(app, "/products/1")
    call = await ask(app, "/products/1")
    assert (call.hit, call.text) == (True, "Product 1")
    assert (await ask(app, "/products/1", method="POST")).text == "posted"
    await cache.invalidate("product:1")
    assert not (await ask(app, "/products/1")).hit


async def test_a_partial(cache: Cache) -> None:
    async def page(text: str, request: Request) -> PlainTextResponse:
        return PlainTextResponse(text)

    app = served(cache, cache_response(60)(functools.partial(page, "hello")))
    await ask(app)
    assert (await ask(app)).text == "hello"


async def test_an_object_with_an_async_call_is_served_or_refused(cache: Cache) -> None:
    """Never taken for a sync function, whose result would be a coroutine that nobody awaits."""

    class Page:
        async def __call__(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("x")

    try:
        endpoint = cache_response(60)(Page())
    except ConfigurationError:
        return
    call = await ask(served(cache, endpoint))
    assert call.error is None
    assert call.text == "x"


async def test_tags_by_a_function_of_the_path_parameters(cache: Cache) -> None:
    @cache_response(60, tags=lambda number: [f"product:{number}"])
    async def product(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x")

    app = served(cache, product, "/products/{number:int}")
    await ask(app, "/products/5")
    await cache.invalidate("product:5")
    assert not (await ask(app, "/products/5")).hit


async def test_a_timedelta_is_a_ttl(cache: Cache, clock: FakeClock) -> None:
    @cache_response(timedelta(minutes=1))
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x")

    app = served(cache, page)
    await ask(app)
    assert (await ask(app)).cache_status.endswith("ttl=60")


async def test_other_methods_of_the_same_route_are_not_cached(cache: Cache) -> None:
    runs: list[str] = []

    @cache_response(60, public=True)
    async def page(request: Request) -> PlainTextResponse:
        runs.append(request.method)
        return PlainTextResponse(str(len(runs)))

    app = served(cache, page, methods=["GET", "POST"])
    await ask(app)
    assert [(await ask(app, method="POST")).text for _ in range(2)] == ["2", "3"]
    assert (await ask(app)).text == "4"


async def test_an_endpoint_keeps_its_name_and_its_signature() -> None:
    async def page(request: Request, n: int = 1) -> PlainTextResponse:
        """Says."""
        raise AssertionError

    import inspect

    decorated = cache_response(60)(page)
    assert (decorated.__name__, decorated.__doc__) == ("page", "Says.")
    assert inspect.signature(decorated) == inspect.signature(page)
    assert inspect.iscoroutinefunction(decorated)


async def test_a_hit_may_still_be_changed_by_what_stands_around_the_endpoint(cache: Cache) -> None:
    """It is a response like any other, and a change to one is not a change to what is stored."""

    def adding(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def around(request: Request) -> Any:
            response = await endpoint(request)
            response.headers["x-run"] = str(len(runs))
            runs.append(1)
            return response

        return around

    runs: list[int] = []

    @adding
    @cache_response(60)
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x")

    app = served(cache, page)
    assert [(await ask(app)).all("x-run")[-1] for _ in range(3)] == ["0", "1", "2"]


# --- what is refused ----------------------------------------------------------------------------------

BAD = [
    ("ttl", 0),
    ("ttl", -1),
    ("ttl", "60"),
    ("ttl", float("nan")),
    ("ttl", float("inf")),
    ("ttl", True),
    ("ttl", timedelta(seconds=-1)),
    ("vary", "accept"),
    ("vary", ["*"]),
    ("vary", ["a b"]),
    ("vary", ["a\r\nb"]),
    ("vary", [""]),
    ("vary", [5]),
    ("vary", 5),
    ("vary", None),
    ("cookies", "session"),
    ("cookies", ["a=b"]),
    ("cookies", [None]),
    ("cookies", 5),
    ("query", "id"),
    ("query", [1]),
    ("query", 5),
    ("statuses", [206]),
    ("statuses", [304]),
    ("statuses", [100]),
    ("statuses", [600]),
    ("statuses", ["200"]),
    ("statuses", []),
    ("statuses", 200),
    ("stale_while_revalidate", -1),
    ("stale_while_revalidate", "1"),
    ("stale_if_error", float("inf")),
    ("stale_if_error", True),
    ("jitter", 1),
    ("jitter", -0.1),
    ("jitter", "0.1"),
    ("public", "no"),
    ("public", None),
]


@pytest.mark.parametrize("make", [cache_response, cache_policy])
@pytest.mark.parametrize(("option", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_what_cannot_be_meant_is_refused_at_decoration(make: Any, option: str, value: Any) -> None:
    """With an error that names the option, and the value or what is wrong in it."""
    with pytest.raises(ConfigurationError) as caught:
        make(**{"ttl": 60, option: value})
    assert option in str(caught.value)
    culprit = value[0] if isinstance(value, list) and value else value
    assert value == [] or repr(culprit) in str(caught.value)


@pytest.mark.parametrize("tags", ["product", ["product:{nothing}"], ["{product_id.x}"], ["{}"], [5], 5, ["{"]])
def test_templates_that_name_nothing_are_refused(tags: Any) -> None:
    async def page(request: Request, product_id: int) -> PlainTextResponse:
        raise AssertionError

    with pytest.raises(ConfigurationError, match=r"tag|template"):
        cache_response(60, tags=tags)(page)


async def test_a_template_that_names_no_path_parameter_says_so_at_the_first_request(cache: Cache) -> None:
    @cache_response(60, tags=["product:{product_id}"])
    async def page(request: Request) -> PlainTextResponse:
        raise AssertionError

    call = await ask(served(cache, page, "/{id}"), "/1")
    assert isinstance(call.error, TagTemplateError)
    assert "product_id" in str(call.error)
    assert cache._filling().flights._open == {}


def test_what_is_no_endpoint_function_is_refused() -> None:
    class Page(HTTPEndpoint):
        pass

    async def generator(request: Request) -> AsyncIterator[str]:
        yield "x"

    def sync_generator(request: Request) -> Iterator[str]:
        yield "x"

    for endpoint in (Page, generator, sync_generator, None, "page", 5):
        with pytest.raises(ConfigurationError):
            cache_response(60)(endpoint)  # type: ignore[type-var]


def test_the_forgotten_parentheses_are_named() -> None:
    async def page(request: Request) -> PlainTextResponse:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="ttl"):
        cache_response(page)  # type: ignore[arg-type]


def test_one_route_has_one_policy() -> None:
    async def page(request: Request) -> PlainTextResponse:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="already"):
        cache_response(60)(cache_response(60)(page))
