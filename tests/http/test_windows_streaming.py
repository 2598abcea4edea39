"""How responses with windows go out: what is there at once, the rest in order, never a page that only looks whole."""

import json
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from importlib.metadata import version
from operator import eq
from operator import is_ as is_the_same
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache
from asynctag.errors import WindowError
from asynctag.http import CacheMiddleware, Policy, cache_of, current_request
from asynctag.windows import Window
from tests.http.driver import Call, Message, all_blocked, ask, begin, request
from tests.http.windowed import ALICE, BOB, is_for_one, page_app, visitor_of

pytestmark = pytest.mark.anyio

STARLETTE = tuple(map(int, version("starlette").split(".")[:2]))

#: How a page comes to be served; whether it is a hit, the second time.
WAYS: dict[str, dict[str, Any] | None] = {
    "before routing": {"public": True},
    "at the endpoint": {"key": lambda request: "everybody's"},
    "not stored": None,
}


class Doors:
    """Windows that wait to be let through, each by its number."""

    def __init__(self, cache: Cache, **options: Any) -> None:
        self.began: list[int] = []
        self.cancelled: list[int] = []
        self.open = [anyio.Event() for _ in range(20)]
        self.fails: set[int] = set()

        @cache.window(name="door", **options)
        async def door(number: int) -> str:
            self.began.append(number)
            try:
                await self.open[number].wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.append(number)
                raise
            if number in self.fails:
                raise LookupError(f"door {number}")
            return f"<{number}>"

        self.door = door


class Pieces:
    """A body in pieces: no generator, which would have to be closed where it is left behind."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> str:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def of_text(text: Callable[[], str]) -> Any:
    async def page(request: Request) -> Response:
        return PlainTextResponse(text())

    return page


def ended(call: Call) -> bool:
    """Whether the last of the body was sent."""
    return any(one["type"] == "http.response.body" and not one.get("more_body", False) for one in call.messages)


def decompressed(call: Call) -> str:
    """What is there of the body so far."""
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(call.body).decode()


async def prepared(app: Any, way: str, doors: Doors) -> None:
    """Have the next request be served that way."""
    if way != "not stored":
        for door in doors.open:
            door.set()
        await ask(app)
        doors.began.clear()
        doors.open = [anyio.Event() for _ in doors.open]


# --- as it comes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [False, True], ids=["the next time", "the first time"])
async def test_what_stands_before_a_window_is_out_before_it_ends(cache: Cache, way: str, first: bool) -> None:
    """Each part as soon as all before it is there, and in the order of the page. The headers go first."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c{doors.door(2)}d"), WAYS[way])
    if not first:
        await prepared(app, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            assert (call.status, is_for_one(call), call.text) == (200, True, "a")
            assert call.all("content-length") == []
            assert sorted(doors.began) == [0, 1, 2]
            doors.open[2].set()
            await all_blocked()
            assert call.text == "a"
            doors.open[0].set()
            await all_blocked()
            assert call.text == "a<0>b"
            assert not ended(call)
            doors.open[1].set()
    assert call.text == "a<0>b<1>c<2>d"
    assert ended(call)
    assert call.hit is (not first and way != "not stored")


@pytest.mark.skipif(STARLETTE < (1, 5), reason="older ones hold what is compressed till there is more of it")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 5000])
async def test_compressed_on_its_way_it_is_out_as_well(cache: Cache, way: str, length: int) -> None:
    """By Starlette's middleware, outside: what is out can be decompressed by a browser, however short it is."""
    doors = Doors(cache)
    inner = page_app(cache, of_text(lambda: f"{'a' * length}{doors.door(0)}b{doors.door(1)}c"), WAYS[way])
    app = GZipMiddleware(inner)
    await prepared(inner, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app, headers={"accept-encoding": "gzip"})
            await all_blocked()
            assert call.header("content-encoding") == "gzip"
            assert decompressed(call) == "a" * length
            doors.open[0].set()
            await all_blocked()
            assert decompressed(call) == "a" * length + "<0>b"
            doors.open[1].set()
    assert decompressed(call) == "a" * length + "<0>b<1>c"


@pytest.mark.parametrize("way", WAYS)
async def test_what_need_not_wait_goes_out_with_the_text_around_it(cache: Cache, way: str) -> None:
    """In one piece, with its length where nothing has to wait."""
    doors, visitor = Doors(cache), visitor_of(cache)
    texts = iter([lambda: f"a{visitor()}b{visitor()}c", lambda: f"a{visitor()}b{doors.door(0)}c{visitor()}d"])
    text = next(texts)
    app = page_app(cache, of_text(lambda: text()), WAYS[way])
    for _ in range(2):
        call = await ask(app, headers=ALICE)
        assert (call.chunks, call.header("content-length")) == ([b"aalicebalicec"], "13")
    await cache.clear()
    text = next(texts)
    await prepared(app, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app, headers=BOB)
            await all_blocked()
            assert call.chunks == [b"abobb"]
            doors.open[0].set()
    assert call.chunks == [b"abobb", b"<0>cbobd"]


@pytest.mark.parametrize("way", WAYS)
async def test_windows_run_side_by_side(cache: Cache, way: str) -> None:
    """Ten that wait for each other in a ring: one after the other, none would ever end."""
    began = [anyio.Event() for _ in range(10)]

    @cache.window(name="ring")
    async def ring(number: int) -> str:
        began[number].set()
        await began[(number + 1) % 10].wait()
        return str(number)

    app = page_app(cache, of_text(lambda: "".join(f" {ring(number)}" for number in range(10))), WAYS[way])
    for _ in range(2):
        assert (await ask(app)).text == " 0 1 2 3 4 5 6 7 8 9"
        began[:] = [anyio.Event() for _ in range(10)]


@pytest.mark.parametrize("way", WAYS)
async def test_the_same_window_is_called_once_a_serve(cache: Cache, way: str) -> None:
    """However often it stands there; with other arguments it is another, and its tags do not matter."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: "".join(f"{doors.door(number)}" for number in [0, 1, 0, 0, 1])), WAYS[way])
    for _ in range(2):
        doors.began.clear()
        for door in doors.open:
            door.set()
        assert (await ask(app)).text == "<0><1><0><0><1>"
        assert sorted(doors.began) == [0, 1]


@pytest.mark.parametrize("way", WAYS)
async def test_a_window_that_is_late_gives_way_while_others_are_waited_for(cache: Cache, way: str) -> None:
    """In the middle of a page, its fallback."""
    doors = Doors(cache)

    @cache.window(name="late", timeout=0.001, fallback="(late)")
    async def late() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    app = page_app(cache, of_text(lambda: f"a{late()}b{doors.door(0)}c{late()}d"), WAYS[way])
    await prepared(app, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call, out = request("/"), anyio.Event()

            def look(message: Message) -> None:
                if b"(late)" in message.get("body", b""):
                    out.set()

            call.on_message = look
            tasks.start_soon(call.run, app)
            await out.wait()
            assert call.text in ("a", "a(late)b")
            doors.open[0].set()
    assert call.text == "a(late)b<0>c(late)d"


# --- what fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_window_that_fails_before_anything_is_out_is_a_500(cache: Cache, way: str) -> None:
    """At once, or with another beside it that would have waited, which is ended. Nothing of the page is out."""
    doors = Doors(cache)

    @cache.window(name="fails")
    async def fails() -> str:
        if "x-fail" in current_request().headers:
            raise LookupError("x")
        return "fine"

    app = page_app(cache, of_text(lambda: f"secret {doors.door(0)} {fails()}"), WAYS[way])
    await prepared(app, way, doors)
    call = await ask(app, headers={"x-fail": "1"})
    assert (call.status, call.text) == (500, "Internal Server Error")
    assert isinstance(call.error, WindowError)
    assert str(call.error) == "a window in the response to GET / failed, and has no fallback: LookupError('x')"
    assert isinstance(call.error.__cause__, LookupError)
    assert doors.began == doors.cancelled == [0]


@pytest.mark.parametrize("way", WAYS)
async def test_a_window_that_fails_later_cuts_the_page(cache: Cache, way: str) -> None:
    """The server is told by an exception, as it is, and never that this was the end."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c{doors.door(2)}d"), WAYS[way])
    await prepared(app, way, doors)
    doors.fails.add(1)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            doors.open[0].set()
            await all_blocked()
            doors.open[1].set()
    assert call.text == "a<0>b"
    assert not ended(call)
    assert isinstance(call.error, WindowError)
    assert isinstance(call.error.__cause__, LookupError)
    assert doors.cancelled == [2]


async def test_over_http_a_timeout_is_the_cause_of_a_window_error(cache: Cache) -> None:
    """As any exception of a window is. Who calls what is cached gets it as it is."""

    @cache.window(name="late", timeout=1e-9)
    async def late() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    @cache.cached(ttl=60, name="text")
    async def text() -> str:
        return f"Hello {late()}"

    call = await ask(page_app(cache, of_text(lambda: f"Hello {late()}"), {"public": True}))
    assert isinstance(call.error, WindowError)
    assert isinstance(call.error.__cause__, TimeoutError)
    with pytest.raises(TimeoutError, match="the window late took longer"):
        await text()


async def test_what_cannot_stand_there_is_found_out_in_the_middle_too(cache: Cache) -> None:
    doors = Doors(cache)

    @cache.window(name="number")
    async def number() -> Any:
        return 5

    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{number()}c{doors.door(1)}d"), {"public": True})
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            doors.open[0].set()
    assert (call.text, ended(call)) == ("a", False)
    assert isinstance(call.error, WindowError)
    assert doors.cancelled == [1]


@pytest.mark.parametrize("way", WAYS)
async def test_for_http_1_0_a_page_is_whole_or_an_error(cache: Cache, way: str) -> None:
    """Its end is that of the connection, there: one that is cut looks whole. So its length is told."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c"), WAYS[way])
    await prepared(app, way, doors)
    for fails in (False, True):
        if fails:
            doors.fails.add(1)
        doors.open = [anyio.Event() for _ in doors.open]
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                call = begin(tasks, app, http_version="1.0")
                await all_blocked()
                assert call.messages == []
                doors.open[0].set()
                await all_blocked()
                assert call.messages == []
                doors.open[1].set()
        if fails:
            assert (call.status, call.text) == (500, "Internal Server Error")
        else:
            assert (call.text, call.header("content-length")) == ("a<0>b<1>c", "9")


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_cannot_send_ends_the_windows(cache: Cache, way: str) -> None:
    """Its own error comes through, by which frameworks know that the client is gone."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c"), WAYS[way])
    await prepared(app, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            call.sending_fails = True
            doors.open[0].set()
    assert type(call.error) is OSError
    assert doors.cancelled == [1]


@pytest.mark.parametrize("way", ["before routing", "at the endpoint"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_goes_away_ends_the_windows_of_a_hit(cache: Cache, way: str, version: str) -> None:
    """Nobody waits for them any more. It is no error."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c"), WAYS[way])
    await prepared(app, way, doors)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app, http_version=version, chunks=[b"", b""])
            await all_blocked()
            doors.open[0].set()
            await all_blocked()
            call.disconnect()
    assert doors.cancelled == [1]
    assert call.error is None
    assert call.text == ("" if version == "1.0" else "a<0>b")
    assert not ended(call)


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_ends_a_request_ends_its_windows(cache: Cache, way: str) -> None:
    """As servers do that shut down, and some whose client is gone."""
    doors = Doors(cache)
    app = page_app(cache, of_text(lambda: f"a{doors.door(0)}b{doors.door(1)}c"), WAYS[way])
    await prepared(app, way, doors)
    call = request("/")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call.run, app)
            await all_blocked()
            tasks.cancel_scope.cancel()
    assert sorted(doors.cancelled) == [0, 1]
    assert (call.text, ended(call), call.error) == ("a", False, None)
    for door in doors.open:
        door.set()
    assert (await ask(app)).text == "a<0>b<1>c"


async def test_a_streamed_page_whose_client_goes_away_ends_its_windows(cache: Cache) -> None:
    """On a miss the framework listens for that."""
    doors = Doors(cache)

    async def page(request: Request) -> Response:
        return StreamingResponse(Pieces([f"a{doors.door(0)}b", "c"]))

    app = page_app(cache, page, {"public": True})
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            call.disconnect()
    assert doors.cancelled == [0]
    assert (call.text, ended(call)) == ("a", False)


# --- what the application streams ------------------------------------------------------------------------


def in_chunks(chunks: Callable[[], list[bytes]], *headers: tuple[bytes, bytes], **start: Any) -> Any:
    """A bare application that sends a body in pieces, made when the start is not out yet."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pieces = chunks()
        await send({"type": "http.response.start", "status": 200, "headers": list(headers), **start})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    return app


PUBLIC = (b"cache-control", b"public, max-age=60")
JSON = (b"content-type", b"application/json")


def quoting(*windows: Window[[], Any]) -> str:
    """JSON in which windows stand in every way, beside digits, quotes and backslashes."""
    value, text = windows
    return (
        f'{{"a": "{value()}", "b": "x {text()}", "c": "\\"{text()}\\"", "d": ["{value()}","{value()}"], '
        f'"e": "1234567890{text()}1234567890", "f": "\\\\", "g": "{text()}{text()}"}}'
    )


async def test_a_placeholder_may_be_cut_at_every_byte(cache: Cache) -> None:
    """Wherever the application happens to cut its body: in two, in single bytes, in random pieces."""

    @cache.window(name="value")
    async def value() -> Any:
        return {"n": 1}

    @cache.window(name="text")
    async def text() -> str:
        return 'say "x"'

    expected = {
        "a": {"n": 1},
        "b": 'x say "x"',
        "c": '"say "x""',
        "d": [{"n": 1}, {"n": 1}],
        "e": '1234567890say "x"1234567890',
        "f": "\\",
        "g": 'say "x"say "x"',
    }
    places: list[int] = []
    lengths: set[int] = set()

    def chunks() -> list[bytes]:
        body = quoting(value, text).encode()
        lengths.add(len(body))
        return [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]

    app = CacheMiddleware(in_chunks(chunks, PUBLIC, JSON), cache=cache)

    async def check(*cuts: int) -> None:
        places[:] = cuts
        await cache.clear()
        for hit in (False, True):
            call = await ask(app)
            assert call.error is None, (cuts, call.error)
            assert (json.loads(call.body), call.hit) == (expected, hit), (cuts, call.body)

    await check()
    (length,) = lengths
    for at in range(length + 1):
        await check(at)
    await check(*range(1, length))
    chance = random.Random(7)
    for _ in range(50):
        await check(*sorted(chance.randrange(length) for _ in range(chance.randrange(8))))


@pytest.mark.parametrize("policy", [None, {}, {"public": True}])
async def test_a_streamed_page_is_filled_as_it_comes(cache: Cache, policy: dict[str, Any] | None) -> None:
    """The windows of one chunk before the next is produced; the whole of it is stored."""
    doors = Doors(cache)
    produced: list[str] = []

    async def page(request: Request) -> Response:
        first = doors.door(0)

        async def body() -> AsyncIterator[str]:
            for text in (f"a{first}b", "", "c", f"d{doors.door(1)}", f"e{first}"):
                produced.append(text)
                yield f"{text}....."

        return StreamingResponse(body(), headers={"etag": '"x"'})

    app = page_app(cache, page, policy)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await all_blocked()
            assert (call.text, len(produced)) == ("a", 1)
            doors.open[0].set()
            await all_blocked()
            assert call.text.startswith("a<0>b..........c.....d")
            assert len(produced) == 4
            doors.open[1].set()
    assert call.text == "a<0>b..........c.....d<1>.....e<0>....."
    assert is_for_one(call)
    assert call.all("etag") == []
    assert doors.began == [0, 1]
    later = await ask(app)
    assert (later.text, later.hit) == (call.text, policy is not None)


@pytest.mark.parametrize("way", ["a window in each", "a window placed, and none in it"])
async def test_each_event_of_a_stream_goes_out_whole(cache: Cache, way: str) -> None:
    """With its last line break, by which the browser knows that it is one, and before the next is made."""
    visitor = visitor_of(cache)
    call = request("/", headers=ALICE)
    out: list[str] = []

    async def page(request: Request) -> Response:
        placed = visitor()
        name = placed if way == "a window in each" else "alice"

        async def events() -> AsyncIterator[str]:
            for text in (f"data: {name}\n\n", f'data: {{"who": "{name}"}}\n\n', f"id: 4\ndata: {name}\n\n"):
                yield text
                out.append(call.text)

        return StreamingResponse(events(), media_type="text/event-stream")

    await call.run(page_app(cache, page))
    first, second, third = "data: alice\n\n", 'data: {"who": "alice"}\n\n', "id: 4\ndata: alice\n\n"
    assert out == [first, first + second, first + second + third]


async def test_nobody_waits_for_the_windows_of_another(cache: Cache) -> None:
    """Those who came for a page that is streamed to someone whose windows take their time."""
    arrived = anyio.Event()

    @cache.window(name="slow_for_alice", timeout=None)
    async def slow_for_alice() -> str:
        if current_request().headers["x-user"] == "alice":
            await arrived.wait()
        return current_request().headers["x-user"]

    async def page(request: Request) -> Response:
        return StreamingResponse(Pieces([f"Hello {slow_for_alice()}, welcome", "!"]))

    for policy in ({"public": True}, {"key": lambda request: "everybody's"}):
        app = page_app(cache, page, policy)
        await cache.clear()
        arrived = anyio.Event()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                alice = begin(tasks, app, headers=ALICE)
                await all_blocked()
                bob = begin(tasks, app, headers=BOB)
                await all_blocked()
                assert (bob.text, ended(bob), ended(alice)) == ("Hello bob, welcome!", True, False)
                arrived.set()
        assert alice.text == "Hello alice, welcome!"


SENT_AS = {
    "nothing of caching": ({}, False),
    "public": ({"cache-control": "public, max-age=60"}, False),
    "private": ({"cache-control": "Private"}, True),
    "no-store": ({"cache-control": "max-age=0, no-store"}, True),
    "private, for a field": ({"cache-control": 'private="set-cookie"'}, False),
    "private, and a word to CDNs": ({"cache-control": "private", "cdn-cache-control": "max-age=60"}, False),
    "private, and a word to nginx": ({"cache-control": "private", "x-accel-expires": "60"}, False),
    "private, and a word to another": ({"cache-control": "private", "surrogate-control": "max-age=60"}, False),
    "private, and a length": ({"cache-control": "private", "content-length": "1000"}, False),
}


@pytest.mark.parametrize("said", SENT_AS)
@pytest.mark.parametrize("policy", [None, {}, {"public": True}])
async def test_the_first_window_after_the_headers_are_out(
    cache: Cache, said: str, policy: dict[str, Any] | None
) -> None:
    """Only in a response of which the headers say that nobody else may keep it: the others are cut."""
    visitor = visitor_of(cache)
    headers, fine = SENT_AS[said]

    async def page(request: Request) -> Response:
        texts = (text() for text in (lambda: "first ", lambda: f"second {visitor()} ", lambda: f"third {visitor()}"))
        return StreamingResponse(Pieces(texts), headers=headers)

    call = await ask(page_app(cache, page, policy), headers=ALICE)
    if fine:
        assert call.text == "first second alice third alice"
        assert call.header("cache-control") == headers["cache-control"]
    else:
        assert "first second ".startswith(call.text)
        assert not ended(call)
        assert "Place the first window before the response begins" in str(call.error)


async def test_a_placed_window_has_the_headers_say_that_more_may_come(cache: Cache) -> None:
    """A stream that begins with one placed is nobody else's, whenever it stands in the body."""
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        placed = visitor()
        pieces = Pieces(["", "first ", f"second {placed}"])
        return StreamingResponse(pieces, headers={"cache-control": "max-age=60"})

    call = await ask(page_app(cache, page), headers=ALICE)
    assert (call.text, is_for_one(call)) == ("first second alice", True)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("policy", [False, True])
async def test_without_windows_every_message_goes_out_as_it_came(cache: Cache, method: str, policy: bool) -> None:
    """At once, and where nothing is to be stored the very objects: an event stream above all."""
    doors: list[anyio.Event] = [anyio.Event(), anyio.Event()]
    sent: list[Message] = [
        {"type": "http.response.debug", "info": {}},
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
        {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": True},
        {"type": "http.response.body", "body": memoryview(b'data: "\n\n'), "more_body": True},
        {"type": "http.response.body"},
        {"type": "http.response.trailers", "headers": [], "more_trailers": False},
    ]

    async def events(scope: Any, receive: Any, send: Any) -> None:
        for message in sent[:3]:
            await send(message)
        await doors[0].wait()
        for message in sent[3:]:
            await send(message)

    paths = {"/": Policy(ttl=60, public=True)} if policy else None
    app = CacheMiddleware(events, cache=cache, policy=paths)
    received: list[Message] = []

    async def send(message: Message) -> None:
        received.append(message)

    call = request("/", method=method)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app, call.scope, call.receive, send)
            await all_blocked()
            assert len(received) == 3
            doors[0].set()
    if policy and method == "GET":
        assert [one.get("body") for one in received if one["type"] == "http.response.body"] == [
            b"data: 1\n\n",
            b"",
            b'data: "\n\n',
            b"",
        ]
    else:
        same = is_the_same if method == "GET" else eq  # that of an unsafe method tells what it has changed
        assert all(map(same, received, sent))
        assert len(received) == len(sent)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_not_of_the_body_goes_by(cache: Cache, method: str) -> None:
    """Messages that a server knows and this cache does not: before the start, within the body, after it."""
    visitor = visitor_of(cache)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = f"{visitor()} and {visitor()}".encode()
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": text[:60], "more_body": True})
        await send({"type": "http.response.push", "path": "/style.css", "headers": []})
        await send({"type": "http.response.body", "body": bytearray(text[60:]), "more_body": False})
        await send({"type": "http.response.trailers", "headers": [(b"x", b"y")], "more_trailers": False})

    call = await ask(CacheMiddleware(app, cache=cache), headers=ALICE, method=method)
    assert call.error is None
    kinds = [one["type"].rpartition(".")[2] for one in call.messages]
    assert sorted(kind for kind in kinds if kind != "body") == ["debug", "push", "start", "trailers"]
    assert kinds[-1] == "trailers"
    assert call.start["trailers"] is True
    assert call.text == "alice and alice"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_is_held_goes_out_filled_before_a_file_that_the_server_sends(cache: Cache, method: str) -> None:
    """A placeholder that stands at the end of what came so far is whole, then."""
    visitor = visitor_of(cache)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = f"Hello {visitor()}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.zerocopysend", "file": 7, "more_body": False})

    call = await ask(CacheMiddleware(app, cache=cache), method=method, headers=ALICE)
    assert (call.text, call.error, is_for_one(call)) == ("Hello alice", None, True)
    assert call.messages[-1]["type"] == "http.response.zerocopysend"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_file_that_the_server_sends_is_not_filled(cache: Cache, method: str) -> None:
    """Its start goes out as it is, before it."""
    visitor = visitor_of(cache)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        visitor()
        await send({"type": "http.response.start", "status": 200, "headers": [PUBLIC, (b"etag", b'"x"')]})
        await send({"type": "http.response.pathsend", "path": "/etc/hostname"})

    call = await ask(CacheMiddleware(app, cache=cache), method=method)
    assert [one["type"] for one in call.messages] == ["http.response.start", "http.response.pathsend"]
    assert call.header("cache-control") == "public, max-age=60"
    assert call.header("etag") == '"x"'


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_application_that_begins_twice_is_for_the_server_to_refuse(cache: Cache, method: str) -> None:
    """No start is lost for being held."""
    visitor = visitor_of(cache)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        visitor()
        for status in (200, 500):
            await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    call = await ask(CacheMiddleware(app, cache=cache), method=method)
    assert [one["status"] for one in call.messages if one["type"] == "http.response.start"] == [200, 500]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("out", [False, True])
async def test_an_application_that_goes_on_after_a_failure_makes_no_page_look_whole(
    cache: Cache, method: str, out: bool
) -> None:
    """What comes after the cut is refused too. If nothing was out yet, it may say what it has instead."""

    @cache.window(name="fails")
    async def fails() -> str:
        raise LookupError("x")

    errors: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = f"second {fails()} and more"
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        if out:
            await send({"type": "http.response.body", "body": b"first.. ", "more_body": True})
        messages = [{"type": "http.response.body", "body": text.encode(), "more_body": True}]
        if not out:
            messages.append({**start, "status": 503})
        messages.append({"type": "http.response.body", "body": b"last"})
        for message in messages:
            try:
                await send(message)
            except WindowError as error:
                errors.append(str(error))

    call = await ask(CacheMiddleware(app, cache=cache), method=method)
    if out:
        assert len(errors) == 2
        assert not ended(call)
        assert b"first.. ".startswith(call.body)
    else:
        assert len(errors) == 1
        assert (call.status, call.text) == (503, "last")


@pytest.mark.parametrize("when", ["before the start", "with the first chunk", "later"])
async def test_a_page_that_is_asked_about_while_it_is_sent_goes_on(cache: Cache, when: str) -> None:
    """Somebody wants the response of a silent URL cached, once some of it is out or held."""
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        placed = visitor()
        if when == "before the start":
            await cache_of(request).explain_response()

        async def body() -> AsyncIterator[str]:
            if when == "with the first chunk":
                await cache_of(request).explain_response()
            yield f"Hello {placed}"
            if when == "later":
                await cache_of(request).explain_response()
            yield f", {placed}!"

        return StreamingResponse(body())

    app = page_app(cache, page)
    for user in (ALICE, BOB):
        call = await ask(app, headers=user)
        assert call.error is None
        assert call.text == f"Hello {user['x-user']}, {user['x-user']}!"
        assert is_for_one(call)


async def test_a_long_stream_keeps_nothing_of_what_has_gone_out(cache: Cache) -> None:
    """What is held back is never longer than the beginning of a placeholder."""
    visitor = visitor_of(cache)
    call = request("/", headers=ALICE)
    lengths: list[int] = []

    async def page(request: Request) -> Response:
        placed = visitor()

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            for number in range(500):
                piece = b"1234567890" * 20 if number % 2 else f"{placed}".encode()
                sent += len(piece) if number % 2 else len("alice")
                yield piece
                lengths.append(sent - len(call.body))

        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", page)])
    app.add_middleware(CacheMiddleware, cache=cache)
    await call.run(app)
    assert call.body == (b"alice" + b"1234567890" * 20) * 250
    assert max(lengths) < 110
