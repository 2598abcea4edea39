"""Concurrent misses run a route once. Whatever becomes of that run, nobody hangs or gets what is not theirs."""

from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags
from asynctag.http import CacheMiddleware, Policy, cache_response
from asynctag.integrations.fastapi import cache_policy
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, SlowBackend, all_blocked, ask, begin, request, running

pytestmark = pytest.mark.anyio


def starlette_app(cache: Cache, endpoint: Any, **policy: Any) -> Starlette:
    app = Starlette(routes=[StarletteRoute("/", cache_response(60, **policy)(endpoint))])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


async def meet(app: Any, route: Route, count: int = 4, **more: Any) -> list[Call]:
    """Several requests at once, of which the others come while the first is under way."""
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, **more)]
            await route.entered.wait()
            calls += [begin(tasks, app, **more) for _ in range(count - 1)]
            await all_blocked()
            route.go.set()
    return calls


# --- one run for all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [False, True])
async def test_concurrent_misses_run_the_route_once(cache: Cache, public: bool) -> None:
    """At the endpoint and before routing. Fails where `Flights.board` always says LEAD."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page, public=public, tags=["page"])
    if public:  # the URL's record stays: the meeting is before routing
        await begin_and_finish(app, route)
        await cache.invalidate("page")
    calls = await meet(app, route)
    assert {call.text for call in calls} == {f"run {route.runs}"}
    assert route.runs == (2 if public else 1)


async def begin_and_finish(app: Any, route: Route) -> None:
    route.go.set()
    await ask(app)
    route.entered, route.go = anyio.Event(), anyio.Event()


async def test_concurrent_misses_meet_before_routing_where_the_record_is_known(cache: Cache) -> None:
    """On a URL that is known to be public, nothing of the application runs for those who wait."""
    route = Route()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {"Cache-Control": "public, max-age=60"}
        await PlainTextResponse(f"run {await route.pause()}", headers=headers)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    await begin_and_finish(wrapped, route)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, wrapped, "/?new=1") for _ in range(5)]
            await all_blocked()
            assert route.runs == 2
            route.go.set()
    assert {call.text for call in calls} == {"run 2"}


@pytest.mark.parametrize("where", ["around", "policy", "within", "within, with a cookie"])
async def test_what_is_built_from_what_was_read_before_the_wait_is_not_stored(cache: Cache, where: str) -> None:
    """Who waits has been through what stands before, which may have read what is stale by now: it looks no later."""
    route, price = Route(), ["old"]

    class Reading:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope["price"] = price[0]
            await anyio.lowlevel.checkpoint()
            await self.app(scope, receive, send)

    def policy(connection: HTTPConnection) -> Policy:
        connection.scope["price"] = price[0]
        return Policy(ttl=60, public=True)

    async def page(request: Request) -> PlainTextResponse:
        add_tags("price")
        await route.pause()
        return PlainTextResponse(request.scope["price"])

    declared = cache_response(60, cookies=(), public=where == "around")(page)
    site: Any = Starlette(routes=[StarletteRoute("/", page if where == "policy" else declared)])
    if where.startswith("within"):
        site = Reading(site)
    app: Any = CacheMiddleware(site, cache=cache, policy=policy if where == "policy" else None)
    if where == "around":
        app = Reading(app)
    headers = {"cookie": "id=1"} if where == "within, with a cookie" else {}
    await begin_and_finish(app, route)
    await cache.invalidate("price")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, headers=headers) for _ in range(3)]
            await all_blocked()
            assert route.runs == 2
            price[0] = "new"
            await cache.invalidate("price")
            route.go.set()
    assert {call.text for call in calls} == {"old"}, "as they were before the invalidation"
    assert (await ask(app)).text == "new"


async def test_sync_routes_are_collapsed(cache: Cache) -> None:
    runs: list[int] = []
    route = Route()
    app = FastAPI()

    @app.get("/")
    @cache_response(60)
    def page() -> dict[str, int]:
        runs.append(1)
        anyio.from_thread.run(route.pause)
        return {"run": len(runs)}

    app.add_middleware(CacheMiddleware, cache=cache)
    calls = await meet(app, route)
    assert len(runs) == 1
    assert {call.text for call in calls} == {'{"run":1}'}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_routes_under_a_router_policy_are_collapsed(cache: Cache, kind: str) -> None:
    route, runs = Route(), []
    router = APIRouter(dependencies=[Depends(cache_policy(60))])

    if kind == "async":

        @router.get("/")
        async def page() -> dict[str, int]:
            runs.append(1)
            return {"run": await route.pause()}

    else:

        @router.get("/")
        def sync_page() -> dict[str, int]:
            runs.append(1)
            return {"run": anyio.from_thread.run(route.pause)}

    app = FastAPI()
    app.include_router(router)
    app.add_middleware(CacheMiddleware, cache=cache)
    calls = await meet(app, route)
    assert len(runs) == 1
    assert {call.text for call in calls} == {'{"run":1}'}


async def test_requests_for_different_variants_do_not_wait_for_each_other(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        return PlainTextResponse(request.headers.get("accept-language", "-"))

    app = starlette_app(cache, page, vary=["accept-language"])
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, headers={"accept-language": lang}) for lang in ("de", "fr", "de")]
            await all_blocked()
            assert route.runs == 2
            route.go.set()
    assert [call.text for call in calls] == ["de", "fr", "de"]


# --- what turned out not to be theirs -----------------------------------------------------------------

NOT_SHARED = {
    "set-cookie": {"set-cookie": "session=1"},
    "private": {"cache-control": "private"},
    "no-store": {"cache-control": "no-store"},
    "no-cache": {"cache-control": "no-cache"},
    "vary-*": {"vary": "*"},
    "vary-cookie": {"vary": "cookie"},
    "vary-authorization": {"vary": "authorization"},
}


@pytest.mark.parametrize("why", NOT_SHARED)
@pytest.mark.parametrize("public", [False, True])
async def test_those_who_waited_never_get_a_response_that_may_not_be_stored(
    cache: Cache, why: str, public: bool
) -> None:
    """Each of them runs the route: what the first got is of the first. Fails where such a response is stored."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"for {await route.pause()}", headers=NOT_SHARED[why])

    calls = await meet(starlette_app(cache, page, public=public), route)
    assert len({call.text for call in calls}) == len(calls) == route.runs


async def test_those_who_waited_never_get_a_response_of_another_variant(cache: Cache) -> None:
    """That the URL varies was not known when they met. Fails where its flight lands with the response all the same."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        return PlainTextResponse(request.headers["accept-language"], headers={"vary": "Accept-Language"})

    app = starlette_app(cache, page)
    languages = ["de", "fr", "de", "en", "fr"]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, headers={"accept-language": languages[0]})]
            await route.entered.wait()
            calls += [begin(tasks, app, headers={"accept-language": lang}) for lang in languages[1:]]
            await all_blocked()
            route.go.set()
    assert [call.text for call in calls] == languages
    for lang in ("de", "fr", "en"):
        later = await ask(app, headers={"accept-language": lang})
        assert (later.text, later.hit) == (lang, True)


async def test_what_is_not_stored_does_not_make_the_next_ones_wait(cache: Cache) -> None:
    """After it, requests run side by side for a while."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        await route.pause()
        return PlainTextResponse("x", headers={"cache-control": "private"})

    app = starlette_app(cache, page)
    await begin_and_finish(app, route)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                begin(tasks, app)
            await all_blocked()
            assert route.runs == 4
            route.go.set()


# --- leaders that fail --------------------------------------------------------------------------------


async def test_a_cancelled_leader_is_followed_by_one_of_those_who_wait(cache: Cache) -> None:
    """Fails where `Exchange.run` does not land its flight in `finally`: the others wait for ever."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page)
    calls: list[Call] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                first.start_soon(request("/").run, app)
                await route.entered.wait()
                calls = [begin(tasks, app) for _ in range(3)]
                await all_blocked()
                first.cancel_scope.cancel()
            await all_blocked()
            assert route.runs == 2
            route.go.set()
    assert {call.text for call in calls} == {"run 2"}


async def test_a_streaming_leader_whose_client_goes_away_is_followed_by_another(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> StreamingResponse:
        async def body() -> Any:
            yield b"run "
            yield str(await route.pause()).encode()

        return StreamingResponse(body())

    app = starlette_app(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            first = begin(tasks, app)
            await route.entered.wait()
            others = [begin(tasks, app) for _ in range(3)]
            await all_blocked()
            first.disconnect()
            await all_blocked()
            assert route.runs == 2
            route.go.set()
    assert {call.text for call in others} == {"run 2"}
    assert (await ask(app)).hit


async def test_a_leader_that_breaks_off_as_its_client_goes_is_followed_by_one_only(cache: Cache) -> None:
    """Its application polls for the disconnect and ends early: that half is nobody's, and one takes over, not all."""
    first_run, later_runs = Route(), Route()

    async def page(request: Request) -> PlainTextResponse:
        if first_run.runs:
            return PlainTextResponse(f"whole {await later_runs.pause()}")
        await first_run.pause()
        while not await request.is_disconnected():
            await anyio.lowlevel.checkpoint()
        return PlainTextResponse("half")

    app = starlette_app(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            first = begin(tasks, app)
            await first_run.entered.wait()
            others = [begin(tasks, app) for _ in range(3)]
            await all_blocked()
            first.disconnect()
            first_run.go.set()
            await later_runs.entered.wait()
            await all_blocked()
            assert later_runs.runs == 1
            later_runs.go.set()
    assert first.text == "half"
    assert {call.text for call in others} == {"whole 1"}
    assert (await ask(app)).text == "whole 1"


@pytest.mark.parametrize("public", [False, True])
async def test_a_failing_route_hangs_nobody_and_is_tried_again(cache: Cache, public: bool) -> None:
    route, failing = Route(), [True]

    async def page(request: Request) -> PlainTextResponse:
        mine = await route.pause()
        if failing[0]:
            raise RuntimeError(f"run {mine}")
        return PlainTextResponse("well")

    app = starlette_app(cache, page, public=public)
    calls = await meet(app, route, 5)
    assert {call.status for call in calls} == {500}
    assert all(isinstance(call.error, RuntimeError) for call in calls)
    failing[0] = False
    assert (await ask(app)).text == "well"
    assert (await ask(app)).hit


async def test_an_error_answer_hangs_nobody_and_is_not_stored(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("no", status_code=404 if await route.pause() < 4 else 200)

    app = starlette_app(cache, page)
    calls = await meet(app, route, 3)
    assert [call.status for call in calls] == [404, 404, 404]
    assert (await ask(app)).status == 200


@pytest.mark.parametrize("fails", ["raises", "answers 500"])
async def test_many_at_once_get_the_stale_response_instead_of_an_error(
    cache: Cache, clock: FakeClock, fails: str
) -> None:
    """The second flight of a failing route answers from what is stored too, for all who wait for it."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        if await route.pause() == 1:
            return PlainTextResponse("old")
        if fails == "raises":
            raise RuntimeError("down")
        return PlainTextResponse("down", status_code=503)

    app = starlette_app(cache, page, stale_if_error=600)
    await begin_and_finish(app, route)
    clock.advance(61)
    calls = await meet(app, route, 5)
    assert [(call.error, call.status, call.text) for call in calls] == [(None, 200, "old")] * 5


async def test_a_leader_cancelled_while_its_response_is_being_written_hangs_nobody(clock: FakeClock) -> None:
    """Its flight is landed also where the store itself is what was given up."""
    backend = SlowBackend(clock=clock)
    route, cache = Route(), Cache(backend)

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page)
    others: list[Call] = []
    with anyio.move_on_after(2) as limit:
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                first.start_soon(request("/").run, app)
                await route.entered.wait()
                others = [begin(tasks, app) for _ in range(2)]
                await all_blocked()
                route.go.set()
                await backend.writing.wait()
                first.cancel_scope.cancel()
            backend.let_through.set()
    assert not limit.cancelled_caught, "those who waited for the cancelled one wait for ever"
    assert {call.text for call in others} == {"run 2"}
    assert cache._filling().flights._open == {}


async def test_a_response_invalidated_while_it_was_computed_is_not_given_to_those_who_waited(cache: Cache) -> None:
    """Who came after the invalidation must not get data from before it. Fails where every landing is ACCEPTED."""
    route = Route()

    @cache.cached(ttl=60, tags=["data"], name="data")
    async def data() -> int:
        return await route.pause()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await data()}")

    app = starlette_app(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            first = begin(tasks, app)
            await route.entered.wait()
            await cache.invalidate("data")
            late = begin(tasks, app)
            await all_blocked()
            route.go.set()
    assert first.text == "run 1"
    assert late.text == "run 2"


async def test_a_head_request_does_not_stop_those_behind_it_from_sharing(cache: Cache) -> None:
    """A HEAD brings no body that others could have: GETs that come meanwhile are collapsed all the same."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            begin(tasks, app, method="HEAD")
            await route.entered.wait()
            gets = [begin(tasks, app) for _ in range(4)]
            await all_blocked()
            route.go.set()
    assert len({call.text for call in gets}) == 1


async def test_a_request_that_wants_it_new_neither_waits_nor_hangs(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page)
    await begin_and_finish(app, route)
    calls = await meet(app, route, 3, headers={"cache-control": "no-cache"})
    assert all(call.status == 200 for call in calls)
    assert all(call.text != "run 1" for call in calls)


async def test_flights_land_under_a_cache_that_is_open(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> JSONResponse:
        return JSONResponse({"run": await route.pause()})

    app = starlette_app(cache, page)
    async with running(app):
        calls = await meet(app, route)
        assert {call.text for call in calls} == {'{"run":1}'}


async def test_one_of_those_who_wait_may_give_up(cache: Cache) -> None:
    """Neither the leader nor the others notice."""
    route = Route()

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"run {await route.pause()}")

    app = starlette_app(cache, page)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app)]
            await route.entered.wait()
            async with anyio.create_task_group() as impatient:
                impatient.start_soon(request("/").run, app)
                calls.append(begin(tasks, app))
                await all_blocked()
                impatient.cancel_scope.cancel()
            route.go.set()
    assert [call.text for call in calls] == ["run 1", "run 1"]
