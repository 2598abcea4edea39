"""Policies: by path, by a function of the request, whose a response is, and which query parameters count."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asynctag import Cache
from asynctag.errors import ConfigurationError
from asynctag.http import CacheMiddleware, Policy, cache_of, cache_response
from tests.http.driver import Call, ask

pytestmark = pytest.mark.anyio


def of_whom(request: HTTPConnection) -> str | None:
    """Who asks, as a guard would have found out."""
    return request.headers.get("x-user")


def counted(cache: Cache, *, headers: dict[str, str] | None = None, **policy: Any) -> Starlette:
    runs: list[int] = []

    @cache_response(60, **policy)
    async def page(request: Request) -> PlainTextResponse:
        runs.append(1)
        return PlainTextResponse(f"{len(runs)} for {of_whom(request)}", headers=headers)

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


def user(name: str, **more: str) -> dict[str, str]:
    return {"x-user": name} | more


# --- whose it is ------------------------------------------------------------------------------------------


async def test_a_key_function_gives_each_user_an_entry(cache: Cache) -> None:
    app = counted(cache, key=of_whom)
    said = [(await ask(app, headers=user(name))).text for name in ("alice", "bob", "alice", "bob")]
    assert said == ["1 for alice", "2 for bob", "1 for alice", "2 for bob"]


@pytest.mark.parametrize("credentials", [{"authorization": "Bearer a"}, {"cookie": "session=a"}])
async def test_with_it_credentials_do_not_bypass(cache: Cache, credentials: dict[str, str]) -> None:
    """The function has seen them; and who has none of that key does not get there by leaving them out."""
    app = counted(cache, key=of_whom)
    await ask(app, headers=user("alice", **credentials))
    assert (await ask(app, headers=user("alice", **credentials))).hit
    assert (await ask(app, headers=user("bob", **credentials))).text == "2 for bob"
    assert (await ask(app, headers=credentials)).cache_status == 'asynctag; fwd=bypass; detail="key"'


@pytest.mark.parametrize("said", ["public, max-age=60", "s-maxage=60"])
async def test_what_is_one_users_is_never_served_before_routing(cache: Cache, said: str) -> None:
    """Whatever the response says of itself: who asks is known at the endpoint."""
    app = counted(cache, key=of_whom, headers={"cache-control": said})
    await ask(app, headers=user("alice"))
    for name, expected in (("bob", "2 for bob"), ("alice", "1 for alice"), ("eve", "3 for eve")):
        assert (await ask(app, headers=user(name))).text == expected
    assert not (await ask(app)).hit


async def test_no_cache_on_the_way_may_keep_it(cache: Cache) -> None:
    app = counted(cache, key=of_whom)
    for _ in range(2):
        assert (await ask(app, headers=user("alice"))).header("cache-control") == "private, no-cache"


@pytest.mark.parametrize("names", [("a", "b"), ("1", "11"), ("é", "e"), ("x" * 2000, "x" * 2001), ("\ud800", "\ud801")])
async def test_two_keys_are_two_entries(cache: Cache, names: tuple[str, str]) -> None:
    """Of any length, in any characters."""
    waiting = list(names)
    app = counted(cache, key=lambda request: waiting.pop(0))
    assert [(await ask(app)).hit for _ in range(2)] == [False, False]


async def test_a_key_function_that_returns_something_else_is_said(cache: Cache) -> None:
    call = await ask(counted(cache, key=lambda request: 635))
    assert isinstance(call.error, ConfigurationError)
    assert "str(user.id)" in str(call.error)


def test_a_key_function_and_public_do_not_go_together(cache: Cache) -> None:
    with pytest.raises(ConfigurationError, match="one user's"):
        cache_response(60, key=of_whom, public=True)


async def test_one_without_a_key_function_does_not_find_them(cache: Cache) -> None:
    """Another version of the application, on the same entries."""
    await ask(counted(cache, key=of_whom), headers=user("alice"))
    assert (await ask(counted(cache), headers=user("alice"))).text == "1 for alice"
    assert (await ask(counted(cache), headers=user("bob"))).text == "1 for alice"  # stored by the second, for all
    assert (await ask(counted(cache, key=of_whom), headers=user("bob"))).text == "1 for bob"


# --- the query -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/?a=1&utm_source=x", "/?a=1", True),
        ("/?utm_source=x&a=1", "/?a=1&utm_medium=y&fbclid=9", True),
        ("/?%75tm_source=x&a=1", "/?a=1", True),
        ("/?utm=1", "/?utm=2", False),
        ("/?a=1&fbclid=1", "/?a=2&fbclid=1", False),
        ("/?fbclid2=1", "/?fbclid2=2", False),
        ("/?a=1;utm_source=x", "/?a=1", False),
    ],
)
async def test_parameters_that_do_not_count(cache: Cache, one: str, other: str, same: bool, public: bool) -> None:
    """By their decoded names; `;` is no separator for the application either."""
    app = counted(cache, ignore_query=["utm_*", "fbclid"], public=public)
    await ask(app, one)
    assert (await ask(app, other)).hit is same
    assert (await ask(app, one)).hit


async def test_they_are_other_entries_than_without(cache: Cache) -> None:
    await ask(counted(cache, ignore_query=["utm_*"]), "/?utm_x=1")
    assert not (await ask(counted(cache), "/?utm_x=1")).hit


@pytest.mark.parametrize("bad", ["utm_*", ["*"], ["u*m"], [""], [1]])
def test_what_cannot_be_ignored_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="ignore_query"):
        cache_response(60, ignore_query=bad)


# --- by path ----------------------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(scope["path"])(scope, receive, send)


async def test_policies_by_path(cache: Cache) -> None:
    """The first that fits counts; `None` leaves a path out."""
    app = CacheMiddleware(
        echo,
        cache=cache,
        policy={
            "/products/private": None,
            "/products/{number:int}": Policy(ttl=60, public=True),
            "/static/{rest:path}": Policy(ttl=600, public=True, query=()),
        },
    )

    async def second(path: str) -> Call:
        await ask(app, path)
        return await ask(app, path)

    assert "ttl=60" in (await second("/products/635")).cache_status
    assert "ttl=600" in (await second("/static/css/site.css?v=1")).cache_status
    for path in ("/products/private", "/products/x", "/products/635/", "/static", "/xproducts/635"):
        assert (await second(path)).cache_status == "", path


@pytest.mark.parametrize(
    "bad", [{"products": Policy()}, {"/{a": 5}, {"/{a:odd}": Policy()}, {1: Policy()}, {"/{a}/{a}": Policy()}, ["/"]]
)
def test_paths_and_policies_that_are_none_are_refused(cache: Cache, bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="policy="):
        CacheMiddleware(echo, cache=cache, policy=bad)


# --- what was decided ----------------------------------------------------------------------------------------------


async def test_a_request_can_be_asked_about(cache: Cache) -> None:
    """Whose policy counts, why it bypasses the cache, under which key it is looked up, and what is there."""
    told: list[Any] = []

    async def page(request: Request) -> PlainTextResponse:
        told.append(await cache_of(request).explain_response())
        return PlainTextResponse("page")

    cached = cache_response(60, tags=["list"], vary=["accept-language"])(page)
    app = Starlette(routes=[Route("/cached", cached), Route("/plain", page)])
    app.add_middleware(CacheMiddleware, cache=cache)
    await ask(app, "/plain")
    await ask(app, "/cached", headers={"accept-language": "de"})
    await ask(app, "/cached", headers={"authorization": "x"})
    await cache.invalidate("list")
    await ask(app, "/cached", headers={"accept-language": "de"})
    plain, first, bypass, stale = told
    assert (plain.policy, plain.bypass, plain.entry) == (None, None, None)
    assert "nothing is stored for this URL" in str(plain)
    assert first.policy is not None
    assert (first.policy.ttl, first.bypass, first.entry.state) == (60, None, "miss")
    assert (bypass.bypass, bypass.entry) == ("authorization", None)
    assert "bypasses the cache: authorization" in str(bypass)
    assert stale.entry.invalidated_by == "tag list"
    assert "tag list was invalidated" in str(stale)


async def test_what_is_no_exchange_says_so(cache: Cache) -> None:
    told: list[str] = []

    async def page(request: Request) -> PlainTextResponse:
        told.append(str(await cache_of(request).explain_response()))
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/", page, methods=["POST"])])
    app.add_middleware(CacheMiddleware, cache=cache)
    await ask(app, method="POST")
    assert told == ["a response to this method is never cached"]
