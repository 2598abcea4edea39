"""A response that was stored and is gone, or a new query of a known path, is brought without an exchange, and all that
an exchange would see to still holds: who waits, who is served what, and that nothing stale is stored.

The general path is the authority: what happens is played both ways.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.routing import Router

from asynctag import Cache, add_tags, no_store
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from asynctag.http.wanted import SLOTS, WANTED
from asynctag.testing import FakeClock
from tests.http.driver import Call, Route, all_blocked, ask, begin
from tests.http.test_precedents import WARM, Counting, general_path, plainly

T = TypeVar("T")

#: How a page is declared: by its own header, or by the policy of its route. The hits of the last are served at the
#: endpoint, those of the others before routing.
KINDS = pytest.mark.parametrize("kind", ["header", "public", "endpoint"])
GONE, NEW = 'edge; fwd=stale; stored; detail="%s"', "edge; fwd=uri-miss; stored"
#: How the page is lost, which URL is asked for then, and what `Cache-Status` says.
LOST = {
    "invalidated": ("/page", GONE % "tag page"),
    "softened": ("/page", GONE % "tag page"),
    "expired": ("/page", GONE % "expired"),
    "cleared": ("/page", GONE % "everything"),
    "changed": ("/page", GONE % "its URL"),
    "deleted": ("/page", NEW),
    "not": ("/page?of=another", NEW),
}
#: After these, nothing is known of the URL either: a page that declares itself is not looked for.
UNKNOWN = ("cleared", "changed")


class FailureError(Exception):
    """Of the application."""


class Shop:
    """A page at every path. `said`: what its headers say besides; `policy` goes to `cache_response`."""

    def __init__(self, kind: str, said: dict[str, str] | None = None, cache: Any = None, **policy: Any) -> None:
        self.clock = FakeClock()
        self.backend = Counting(clock=self.clock)
        self.cache = Cache(self.backend, **(cache or {}))
        self.headers = {"cache-control": "s-maxage=60"} if kind == "header" else {}
        self.headers |= said or {}
        self.price = 1
        #: How often the application was reached, and what the page was asked.
        self.reached, self.asked = 0, list[dict[str, str]]()
        self.answer: Callable[[Request, str], Awaitable[Response]] = self.as_ever  # replaced by tests
        #: Before the page reads the price, and after.
        self.before, self.after = Route(), Route()
        self.before.go.set()
        self.after.go.set()

        async def page(request: Request) -> Response:
            if request.method == "POST":
                return Response()
            self.asked.append(dict(request.headers))
            run = await self.before.pause()
            add_tags("page")
            text = f"run {run}, price {self.price}"
            await self.after.pause()
            return await self.answer(request, text)

        endpoint = page if kind == "header" else cache_response(60, public=kind == "public", **policy)(page)
        self.routes = Router([StarletteRoute("/{path}", endpoint, methods=["GET", "POST"])])
        self.app = CacheMiddleware(self._reach, cache=self.cache, name="edge")

    async def _reach(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        await self.routes(scope, receive, send)

    async def as_ever(self, request: Request, text: str) -> Response:
        return PlainTextResponse(text, headers=self.headers)

    @property
    def runs(self) -> int:
        return self.before.runs

    async def warm(self) -> "Shop":
        """Have the page be stored, as its fourth run, after others that set the precedent."""
        for path in (*WARM, "/page"):
            assert "stored" in (await ask(self.app, path)).all("cache-status")[0]
        return self

    async def lose(self, how: str = "invalidated") -> "Shop":
        """Have the page be gone, and count from here."""
        match how:
            case "invalidated" | "softened":
                await self.cache.invalidate("page", soft=how == "softened")
            case "expired":
                self.clock.advance(61)
            case "cleared":
                await self.cache.clear()
            case "changed":
                await ask(self.app, "/page", method="POST")
            case "deleted":
                for key in [key for key in self.backend._entries if "|k|http record" not in key]:
                    await self.backend.delete(key)
        self.before.runs = self.reached = self.backend.at_once = 0
        self.asked.clear()
        return self

    def hold(self) -> None:
        """From here on, the page waits before it reads."""
        self.before.entered, self.before.go = anyio.Event(), anyio.Event()

    async def crowd(self, url: str = "/page", users: Sequence[str] = ("",) * 20) -> tuple[list[Call], int]:
        """Callers who come while the first is in the page; how often those in it had to be let go till all was done."""
        self.hold()
        rounds = 0
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                calls = [begin(tasks, self.app, url, headers={"x-user": users[0]})]
                await self.before.entered.wait()
                calls += [begin(tasks, self.app, url, headers={"x-user": user}) for user in users[1:]]
                await all_blocked()
                while not all(call.ended.is_set() for call in calls):
                    rounds += 1
                    go, self.before.go = self.before.go, anyio.Event()
                    go.set()
                    await all_blocked()
        self.before.go.set()
        assert self.open_flights() == []
        return calls, rounds

    def open_flights(self) -> list[str]:
        return list(self.cache._filling().flights._open)

    def standing(self) -> dict[str, tuple[str, ...]]:
        return {entry.key: entry.tags for entry in self.backend._entries.values()}


async def both_ways(play: Callable[[], Awaitable[T]]) -> T:
    """What comes of `play`, which is the same where an exchange sees to it."""
    short = await play()
    with general_path():
        assert short == await play()
    return short


def seen(call: Call) -> tuple[str, list[dict[str, Any]]]:
    return repr(call.error), [plainly(one) for one in call.messages]


def sorted_by_what_was_seen(calls: Sequence[Call]) -> list[str]:
    return sorted(repr(seen(call)) for call in calls)


# --- it is brought ------------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("how", LOST)
async def test_it_is_stored_in_one_step_and_says_why_it_was_gone(how: str, kind: str) -> None:
    url, status = LOST[how]
    steps: list[int] = []

    async def play() -> Any:
        shop = await (await Shop(kind).warm()).lose(how)
        call = await ask(shop.app, url)
        steps.append(shop.backend.at_once)
        hit = await ask(shop.app, url)
        assert (hit.text, hit.hit, shop.runs) == (call.text, True, 1)
        assert call.cache_status == (NEW if kind == "header" and how in UNKNOWN else status)
        return seen(call), shop.standing()

    await both_ways(play)
    assert steps == [1, 0]


@pytest.mark.anyio
@KINDS
async def test_it_can_be_brought_any_number_of_times(kind: str) -> None:
    """Each in the place of the last: nothing piles up."""
    shop = await Shop(kind).warm()
    before = shop.standing(), shop.backend.size
    for shop.price in range(2, 5):
        await shop.lose()
        assert (await ask(shop.app, "/page")).text == f"run 1, price {shop.price}"
        assert shop.backend.at_once == 1
    assert (shop.standing(), shop.backend.size) == before


@pytest.mark.anyio
async def test_a_url_that_was_served_before_routing_may_be_served_at_its_endpoint_next() -> None:
    """What is known of it says more than is needed: it is stored in one step all the same."""
    steps: list[int] = []

    async def play() -> Any:
        shop = await Shop("header").warm()
        shop.routes = Shop("endpoint").routes
        for path in WARM:
            await shop.lose()
            await ask(shop.app, path)
        await shop.lose()
        call = await ask(shop.app, "/page")
        steps.append(shop.backend.at_once)
        assert (await ask(shop.app, "/page")).hit
        return seen(call), shop.standing()

    await both_ways(play)
    assert steps == [1, 0]


# --- callers who meet ---------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("how", LOST)
async def test_of_twenty_callers_one_runs_the_page(how: str, kind: str) -> None:
    """The others wait for it: before routing, where it is served there. Of a URL of which nothing is known, and that
    declares itself, nobody can tell: they come side by side, as to a new one."""
    shop = await (await Shop(kind).warm()).lose(how)
    url, status = LOST[how]
    calls, rounds = await shop.crowd(url)
    if kind == "header" and how in UNKNOWN:
        assert (shop.runs, rounds) == (20, 1)
        return
    assert (shop.runs, rounds, shop.backend.at_once) == (1, 1, 1)
    assert shop.reached == (20 if kind == "endpoint" or how in UNKNOWN else 1)
    assert {call.text for call in calls} == {"run 1, price 1"}
    assert calls[0].cache_status == status
    assert {call.cache_status for call in calls[1:]} == {"edge; fwd=uri-miss; collapsed; ttl=60"}


def told(shop: Shop, what: str) -> Callable[[Request, str], Awaitable[Response]]:
    """The page's answer, as it is told."""

    async def answer(request: Request, text: str) -> Response:
        headers = {**shop.headers}
        match what:
            case "no_store":
                no_store()
            case "private":
                headers["cache-control"] = "private"
            case "vary":
                headers["vary"] = "accept-language"
            case "raises":
                raise FailureError(text)
            case "500" | "203":
                return PlainTextResponse(text, int(what))
            case "nothing" if "run 1," in text:
                return Nothing()
            case "gone":
                while "run 1," in text and (await request.receive())["type"] != "http.disconnect":
                    pass
        return PlainTextResponse(text, headers=headers)

    return answer


class Nothing(Response):
    """No answer goes out."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("what", ["no_store", "private", "vary", "raises", "500", "203"])
async def test_what_is_not_stored_is_nobody_elses(kind: str, what: str) -> None:
    """Those who waited go on side by side, not one after another: after a status, which may be one caller's alone, a
    second tries, before routing and at the endpoint."""

    async def play() -> Any:
        shop = await (await Shop(kind).warm()).lose()
        shop.answer = told(shop, what)
        calls, rounds = await shop.crowd()
        assert len({repr(call.error) if call.error else call.text for call in calls}) == shop.runs == 20
        assert rounds <= (6 if kind == "public" else 4)
        return rounds, sorted_by_what_was_seen(calls)

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize(("how", "served"), [("cancelled", 2), ("gone", 2), ("nothing", 2), ("unsent", 1)])
async def test_nobody_waits_for_one_who_is_gone(kind: str, how: str, served: int) -> None:
    """One of the others brings it for all, where it is not stored already."""
    shop = await (await Shop(kind).warm()).lose()
    shop.answer = told(shop, how)
    shop.hold()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                leader = begin(first, shop.app, "/page")
                await shop.before.entered.wait()
                others = [begin(tasks, shop.app, "/page") for _ in range(3)]
                await all_blocked()
                leader.sending_fails = how == "unsent"
                leader.disconnect()
                if how == "cancelled":
                    first.cancel_scope.cancel()
                else:
                    shop.before.go.set()
            shop.before.go.set()
    assert {call.text for call in others} == {f"run {served}, price 1"}
    assert (shop.runs, shop.open_flights()) == (served, [])


# --- what an exchange is to see to --------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
async def test_what_a_transaction_holds_is_served_as_the_cache_says(kind: str) -> None:
    """What is brought meanwhile is not stored."""

    async def play() -> Any:
        shop = await Shop(kind, cache={"while_leased": "serve_stale"}).warm()
        await shop.backend.lease(["|t|page"], "another", 3600)
        calls = [await ask(shop.app, "/page")]
        assert (calls[0].text, shop.runs) == ("run 4, price 1", 4)
        await shop.lose("expired")
        for url in ("/page", "/page?of=another"):
            calls += [await ask(shop.app, url) for _ in range(2)]
        assert (shop.runs, shop.backend.at_once) == (4, 0)
        await shop.backend.release(["|t|page"], "another")
        calls += [await ask(shop.app, "/page") for _ in range(2)]
        assert (calls[-1].text, calls[-1].hit) == ("run 5, price 1", True)
        return [seen(call) for call in calls]

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("what", ["page", "another", "its URL"])
async def test_while_an_invalidation_is_queued_nothing_that_it_may_be_of_is_stored(kind: str, what: str) -> None:
    """Nor is anything known of a URL of which it is."""

    async def play() -> Any:
        shop = await Shop(kind).warm()
        shop.backend.refuses = True
        await (shop.lose("changed") if what == "its URL" else shop.cache.invalidate(what, queue=True))
        await shop.lose("expired")
        calls, rounds = await shop.crowd(users=("",) * 3)
        assert (rounds == 1) == (what == "another" or (kind == "header" and what == "its URL"))
        calls += [await ask(shop.app, "/page")]
        assert (calls[-1].hit, shop.backend.at_once) == (what == "another", 0)
        shop.backend.refuses = False
        await shop.cache.flush_invalidations()
        assert (await ask(shop.app, "/page")).text[-7:] == "price 1"
        assert (await ask(shop.app, "/page")).hit
        return sorted(call.cache_status for call in calls)

    await both_ways(play)


@pytest.mark.anyio
@KINDS
async def test_a_cache_that_is_disabled_brings_nothing(kind: str) -> None:
    """Everybody runs the page, and nobody waits."""

    async def play() -> Any:
        shop = await (await Shop(kind).warm()).lose()
        with shop.cache.disabled():
            calls, rounds = await shop.crowd()
        assert (shop.runs, rounds, shop.backend.at_once) == (20, 1, 0)
        assert not (await ask(shop.app, "/page")).hit
        return sorted_by_what_was_seen(calls)

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("how", ["softened", "expired"])
async def test_what_may_be_served_stale_is_and_is_renewed_behind_that(kind: str, how: str) -> None:
    said = {"cache-control": "public, max-age=60, stale-while-revalidate=30"} if kind == "header" else {}

    async def play() -> Any:
        shop = Shop(kind, said, **({} if said else {"stale_while_revalidate": 30}))
        async with shop.cache:
            await (await shop.warm()).lose(how)
            shop.price = 2
            stale = await ask(shop.app, "/page")
            await all_blocked()
            renewed = await ask(shop.app, "/page")
        assert (stale.text, stale.hit) == ("run 4, price 1", True)
        assert (renewed.text, renewed.hit, shop.runs) == ("run 1, price 2", True, 1)
        return seen(stale)

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("how", ["expired", "invalidated"])
@pytest.mark.parametrize("what", ["raises", "500"])
async def test_an_error_is_answered_with_what_may_stand_in_for_it(kind: str, how: str, what: str) -> None:
    """Which is nothing that was invalidated."""
    said = {"cache-control": "public, max-age=60, stale-if-error=600"} if kind == "header" else {}

    async def play() -> Any:
        shop = Shop(kind, said, **({} if said else {"stale_if_error": 600}))
        await (await shop.warm()).lose(how)
        shop.answer = told(shop, what)
        call = await ask(shop.app, "/page")
        assert (call.error is None and call.status == 200) == (how == "expired")
        assert how == "invalidated" or call.text == "run 4, price 1"
        return seen(call), shop.open_flights()

    assert (await both_ways(play))[1] == []


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize(
    ("validator", "value", "condition"),
    [("etag", '"own"', "if-none-match"), ("last-modified", "Sat, 01 Jan 2022 00:00:00 GMT", "if-modified-since")],
)
async def test_a_page_is_asked_by_its_own_validator(kind: str, validator: str, value: str, condition: str) -> None:
    """Where it has expired, and before routing: an endpoint has its request already. What was invalidated is whole."""

    async def play() -> Any:
        shop = Shop(kind, {validator: value})
        await (await shop.warm()).lose("expired")
        one = None if kind == "endpoint" else value

        async def answer(request: Request, text: str) -> Response:
            return Response(status_code=304 if condition in request.headers else 200, headers=shop.headers)

        shop.answer = answer
        expired = await ask(shop.app, "/page")
        assert [asked.get(condition) for asked in shop.asked] == [one]
        assert (expired.status, expired.text) == (200, "run 4, price 1" if one else "")
        await shop.lose()
        invalidated = await ask(shop.app, "/page")
        assert [asked.get(condition) for asked in shop.asked] == [None]
        return seen(expired), seen(invalidated)

    await both_ways(play)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("header", {}),
        *((kind, {"vary": ["x-user"]}) for kind in ("public", "endpoint")),
        *((kind, {"query": ["of"]}) for kind in ("public", "endpoint")),
        *((kind, {"ignore_query": ["n"]}) for kind in ("public", "endpoint")),
        ("endpoint", {"key": lambda request: request.headers["x-user"]}),
    ],
)
async def test_what_is_told_apart_by_more_than_its_url_is_looked_for_there(kind: str, policy: dict[str, Any]) -> None:
    """One's is not another's, and a hit is found under any spelling of its URL."""
    by_query = "query" in policy or "ignore_query" in policy

    async def play() -> Any:
        shop = Shop(kind, {} if policy else {"vary": "x-user"}, **policy)

        async def answer(request: Request, text: str) -> Response:
            return PlainTextResponse(request.headers["x-user"], headers=shop.headers)

        shop.answer = answer
        calls: list[Call] = []
        for _ in range(3):
            for again in range(2):
                for user in ("alice", "bob"):
                    url = f"/page?of={user}&n={again}" if by_query else "/page"
                    calls.append(await ask(shop.app, url, headers={"x-user": user}))
                    assert (calls[-1].text, calls[-1].hit) == (user, bool(again))
            await shop.lose()
        return [seen(call) for call in calls]

    await both_ways(play)


# --- what comes while it is brought -------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["invalidated", "softened", "cleared", "changed", "queued"])
async def test_what_is_invalidated_meanwhile_is_not_stored(kind: str, when: str, how: str) -> None:
    """Before the page has read, nobody can tell that it had not; after that, it is stale."""

    async def play() -> Any:
        shop = await (await Shop(kind).warm()).lose()
        shop.hold()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                calls = [begin(tasks, shop.app, "/page")]
                await shop.before.entered.wait()
                if when == "after":
                    shop.after.entered, shop.after.go = anyio.Event(), anyio.Event()
                    shop.before.go.set()
                    await shop.after.entered.wait()
                calls.append(begin(tasks, shop.app, "/page"))
                await all_blocked()
                shop.price, shop.backend.refuses = 2, how == "queued"
                await shop.cache.invalidate("page", queue=True) if how == "queued" else await shop.lose(how)
                calls.append(begin(tasks, shop.app, "/page"))
                await all_blocked()
                shop.before.go.set()
                shop.after.go.set()
        shop.backend.refuses = False
        await shop.cache.flush_invalidations()
        calls.append(await ask(shop.app, "/page"))
        assert "stored" not in calls[0].cache_status
        assert calls[0].text.endswith("price 1" if when == "after" else "price 2")
        assert [call.text[-7:] for call in calls[2:]] == ["price 2"] * 2
        assert shop.open_flights() == []
        return seen(calls[0])  # which of the others is next is told by nothing

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"cache-control": "private"},
        {"cache-control": "no-store"},
        {"cache-control": "private", "set-cookie": "id=1"},
        {"vary": "x-user"},
        {"vary": "cookie, x-user"},
        {"vary": "*"},
    ],
    ids=repr,
)
async def test_a_page_that_turns_into_one_of_each_user_reaches_no_other(kind: str, said: dict[str, str]) -> None:
    """Nor does it where it was everybody's in between. `said`: by what it tells; by `no_store()`, if by nothing."""

    async def play() -> Any:
        shop = await Shop(kind).warm()
        turned = False

        async def answer(request: Request, text: str) -> Response:
            if not turned:
                return await shop.as_ever(request, "everybody's")
            if not said:
                no_store()
            return PlainTextResponse(request.headers["x-user"], headers=shop.headers | said)

        shop.answer = answer
        calls: list[Call] = []
        for turned in (True, False, True, True):
            await shop.lose()
            for path in WARM:  # so that it is known how such responses begin
                await ask(shop.app, path, headers={"x-user": "first"})
            met, _ = await shop.crowd(users=("alice", "bob", "bob"))
            met += [await ask(shop.app, "/page", headers={"x-user": name}) for name in ("bob", "carol")]
            users = ["alice", "bob", "bob", "bob", "carol"]
            assert [call.text for call in met] == (users if turned else ["everybody's"] * 5)
            calls += met
        return sorted_by_what_was_seen(calls)

    await both_ways(play)


# --- what is around -----------------------------------------------------------------------------------


@pytest.mark.anyio
@KINDS
async def test_a_computation_around_depends_on_what_is_brought_for_it(kind: str) -> None:
    """On its tags, and on how long it is fresh; also where another brings it, or it is invalidated meanwhile."""

    async def play() -> Any:
        shop = await Shop(kind).warm()

        @shop.cache.cached(ttl=600, name="around")
        async def around() -> str:
            return (await ask(shop.app, "/page")).text

        for how in ("invalidated", "expired", "invalidated", "softened", "cleared"):
            await shop.lose(how)
            shop.price += 1
            assert await around() == await around() == f"run 1, price {shop.price}"
        for first in (True, False):
            await shop.lose()
            shop.hold()
            shop.price += 1
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    if first:
                        begin(tasks, shop.app, "/page")
                        await shop.before.entered.wait()
                    tasks.start_soon(around)
                    await all_blocked()
                    if not first:
                        await shop.cache.invalidate("page")
                    shop.before.go.set()
            assert await around() == f"run {1 if first else 2}, price {shop.price}"
        await shop.lose()
        assert await around() == f"run 1, price {shop.price}"
        return shop.standing()

    await both_ways(play)


@pytest.mark.anyio
@KINDS
async def test_what_is_brought_in_a_transaction_is_nobody_elses_before_it_ends(kind: str) -> None:
    """It may show what is never committed."""

    async def play() -> Any:
        shop = await (await Shop(kind).warm()).lose()
        transaction = shop.cache.transaction()
        await transaction.__aenter__()
        shop.price = 2
        inside = await ask(shop.app, "/page")
        shop.price = 1
        await transaction.__aexit__(FailureError, FailureError(), None)
        assert shop.backend.at_once == 0
        outside = await ask(shop.app, "/page")
        assert (inside.text, outside.text) == ("run 1, price 2", "run 2, price 1")
        return seen(inside), seen(outside)

    await both_ways(play)


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("shared", ["cache", "backend", "nothing"])
async def test_of_two_around_one_another_none_waits_for_the_other(kind: str, shared: str) -> None:
    """What they share is one page's, by the same key: it is never stale."""

    async def play() -> Any:
        shop = Shop(kind)
        outer = {"cache": shop.cache, "backend": Cache(shop.backend), "nothing": Cache(Counting(clock=shop.clock))}
        shop.app = CacheMiddleware(shop.app, cache=outer[shared], name="outer")
        await shop.warm()
        said: list[Any] = []
        for how in ("invalidated", "expired", "cleared", "invalidated"):
            await shop.lose(how)
            shop.price += 1
            calls, rounds = await shop.crowd(users=("",) * 5)
            calls.append(await ask(shop.app, "/page"))
            assert {call.text[-7:] for call in calls} == {f"price {shop.price}"}
            assert (rounds, shop.runs) == (1, 1) or shared == "backend" or how == "cleared"
            said += sorted(call.all("cache-status") for call in calls)
        return said

    await both_ways(play)


# --- a number that paths share -------------------------------------------------------------------------


def all_wanted(app: CacheMiddleware) -> None:
    """As after so many stored paths that each number has one."""
    app._notice_backend()
    assert app._wanted is not None
    app._wanted[:] = bytes([WANTED]) * SLOTS


@pytest.mark.anyio
@KINDS
async def test_a_new_path_of_a_number_that_another_has_is_stored_as_ever(kind: str) -> None:
    """Where nothing is stored of it, the request goes without an exchange, and the URL is not held for known."""
    shop = await Shop(kind).warm()
    all_wanted(shop.app)
    known = len(shop.app._known)
    for n in range(3):
        first = await ask(shop.app, f"/new{n}")
        assert first.cache_status == NEW
        assert len(shop.app._known) == known
        again = await ask(shop.app, f"/new{n}")
        assert again.hit
        assert again.text == first.text
        known = len(shop.app._known)
    await shop.cache.invalidate("page")
    shop.price = 2
    for n in range(3):
        gone = await ask(shop.app, f"/new{n}")
        assert gone.cache_status == GONE % "tag page"
        assert "price 2" in gone.text


@pytest.mark.anyio
@pytest.mark.parametrize("shared", [False, True])
async def test_a_new_path_is_stored_by_the_headers_that_came(cache: Cache, shared: bool) -> None:
    """What stands within may change the request's headers in place: the next request comes as this one did."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"x-language", b"added within"))
        await PlainTextResponse("page", headers={"cache-control": "s-maxage=60", "vary": "x-language"})(
            scope, receive, send
        )

    app = CacheMiddleware(page, cache=cache)
    await ask(app, "/first")
    if shared:
        all_wanted(app)
    first = await ask(app, "/page", headers={"x-language": "en"})
    assert "stored" in first.cache_status
    assert (await ask(app, "/page", headers={"x-language": "en"})).hit
    assert not (await ask(app, "/page", headers={"x-language": "de"})).hit


@pytest.mark.anyio
async def test_what_stands_within_may_change_the_headers_in_place(cache: Cache) -> None:
    """Each user's page stands under the headers that the user has sent, though what is within has taken one away."""

    async def page(scope: Any, receive: Any, send: Any) -> None:
        user = dict(scope["headers"]).get(b"x-user", b"nobody").decode()
        scope["headers"][:] = [pair for pair in scope["headers"] if pair[0] != b"x-user"]
        said = {"cache-control": "s-maxage=60", "vary": "x-user"}
        await PlainTextResponse(f"the page of {user}", headers=said)(scope, receive, send)

    app = CacheMiddleware(page, cache=cache)
    for user in ("alice", "bob"):
        assert (await ask(app, "/page", headers={"x-user": user})).text == f"the page of {user}"
    assert (await ask(app, "/page")).text == "the page of nobody"
    for user in ("alice", "bob"):
        again = await ask(app, "/page", headers={"x-user": user})
        assert again.hit
        assert again.text == f"the page of {user}"


@pytest.mark.anyio
async def test_a_renewal_stands_under_the_headers_of_its_request(clock: FakeClock) -> None:
    cache, renewed = Cache(MemoryBackend(clock=clock)), anyio.Event()

    async def page(scope: Any, receive: Any, send: Any) -> None:
        user = dict(scope["headers"]).get(b"x-user", b"nobody").decode()
        said = {"cache-control": "s-maxage=10, stale-while-revalidate=100", "vary": "x-user"}
        if clock() > begun:
            scope["headers"][:] = [pair for pair in scope["headers"] if pair[0] != b"x-user"]
        await PlainTextResponse(f"the page of {user}", headers=said)(scope, receive, send)
        if clock() > begun:
            renewed.set()

    begun = clock()
    app = CacheMiddleware(page, cache=cache)
    async with cache:
        await ask(app, "/page", headers={"x-user": "alice"})
        clock.advance(20)
        assert (await ask(app, "/page", headers={"x-user": "alice"})).text == "the page of alice"
        with anyio.fail_after(10):
            await renewed.wait()
        await all_blocked()
        assert (await ask(app, "/page")).text == "the page of nobody"


@pytest.mark.anyio
async def test_an_unsafe_request_changes_the_url_that_it_was_sent_to(cache: Cache) -> None:
    """Though what stands within has changed its headers in place."""
    price = 1

    async def page(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"][:] = [pair for pair in scope["headers"] if pair[0] != b"host"]
        await PlainTextResponse(f"price {price}", headers={"cache-control": "s-maxage=60"})(scope, receive, send)

    app = CacheMiddleware(page, cache=cache)
    assert (await ask(app, "/page")).text == "price 1"
    assert (await ask(app, "/page")).hit
    price = 2
    await ask(app, "/page", method="POST")
    assert (await ask(app, "/page")).text == "price 2"
