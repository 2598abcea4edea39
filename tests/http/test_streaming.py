"""Bodies pass through as they come; what is stored is whole, or it is not stored."""

import gzip
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route as StarletteRoute

from asynctag import Cache, add_tags
from asynctag.http import CacheMiddleware, cache_response
from tests.http.driver import Route, all_blocked, ask, begin, request

pytestmark = pytest.mark.anyio

PUBLIC = [(b"cache-control", b"public, max-age=60")]


class Script:
    """A bare ASGI application that sends the messages it was given."""

    def __init__(self, *messages: dict[str, Any], error: Exception | None = None) -> None:
        self.messages, self.error, self.runs = messages, error, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        for message in self.messages:
            await send(dict(message))
        if self.error is not None:
            raise self.error


def start(*headers: tuple[bytes, bytes], status: int = 200, **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [*PUBLIC, *headers], **more}


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def stored(app: Any, path: str = "/") -> bool:
    """Whether the next request for it is a hit."""
    return (await ask(app, path)).hit


# --- as it comes --------------------------------------------------------------------------------------


async def test_the_first_chunk_is_out_before_the_second_is_produced(cache: Cache) -> None:
    """Fails where the middleware gathers the body before it sends."""
    route = Route()

    async def page(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"one "
            await route.pause()
            yield b"two"

        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await route.entered.wait()
            assert call.chunks == [b"one "]
            route.go.set()
    assert call.body == b"one two"
    later = await ask(app)
    assert later.hit
    assert later.body == b"one two"
    assert later.header("content-length") == "7"


async def test_a_response_is_stored_before_its_last_byte_goes_out(cache: Cache) -> None:
    """A client that has the whole of it finds it cached. Fails where `_continue` sends before it stores."""
    for name, messages in {
        "/whole": [start(), part(b"whole")],
        "/chunks": [start(), part(b"a", True), part(b"b")],
        "/empty": [start(), part(b"a", True), part(b"", False)],
    }.items():
        app = CacheMiddleware(Script(*messages), cache=cache)
        call = request(name)
        entries: list[int] = []
        before = len(cache._filling().backend)  # type: ignore[arg-type]

        def look(message: dict[str, Any], entries: list[int] = entries) -> None:
            if message["type"] == "http.response.body" and not message["more_body"]:
                entries.append(len(cache._filling().backend))  # type: ignore[arg-type]

        call.on_message = look
        await call.run(app)
        assert entries == [before + 2], name  # the URL's record and the response


async def test_no_message_is_lost_or_changed_on_a_miss(cache: Cache) -> None:
    messages = [start((b"x-a", b"1")), part(b"a", True), part(b"", True), part(b"b", True), part(b"")]
    call = await ask(CacheMiddleware(Script(*messages), cache=cache))
    assert [(one["body"], one["more_body"]) for one in call.messages[1:]] == [
        (one["body"], one["more_body"]) for one in messages[1:]
    ]
    assert (b"x-a", b"1") in call.start["headers"]


# --- how much -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kept"), [(0, True), (99, True), (100, True), (101, False)])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_what_is_above_max_body_is_passed_on_and_not_stored(
    cache: Cache, size: int, kept: bool, pieces: int
) -> None:
    body = b"x" * size
    cuts = [body[size * n // pieces : size * (n + 1) // pieces] for n in range(pieces)]
    messages = [part(cut, n < pieces - 1) for n, cut in enumerate(cuts)]
    app = CacheMiddleware(Script(start(), *messages), cache=cache, max_body=100)
    call = await ask(app)
    assert call.body == body
    assert await stored(app) is kept


async def test_max_body_of_nothing_stores_empty_bodies_only(cache: Cache) -> None:
    app = CacheMiddleware(Script(start(), part(b"x")), cache=cache, max_body=0)
    await ask(app)
    assert not await stored(app)


# --- never a half -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [b"4", b"6", b"x", b""])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_body_that_is_not_as_long_as_its_content_length_is_not_stored(
    cache: Cache, length: bytes, pieces: int
) -> None:
    """Fails where `_store` does not compare them."""
    body = [part(b"12345")] if pieces == 1 else [part(b"12", True), part(b"345")]
    app = CacheMiddleware(Script(start((b"content-length", length)), *body), cache=cache)
    assert (await ask(app)).body == b"12345"
    assert not await stored(app)


async def test_a_right_content_length_is_stored(cache: Cache) -> None:
    app = CacheMiddleware(Script(start((b"content-length", b"5")), part(b"12345")), cache=cache)
    await ask(app)
    later = await ask(app)
    assert later.hit
    assert later.header("content-length") == "5"


async def test_an_application_that_raises_in_the_middle_stores_nothing(cache: Cache) -> None:
    """Fails where `run` stores what was recorded once the application has ended, however it has."""
    app = CacheMiddleware(Script(start(), part(b"half", True), error=RuntimeError("broken")), cache=cache)
    call = await ask(app)
    assert isinstance(call.error, RuntimeError)
    assert call.body == b"half"
    assert not await stored(app)


async def test_an_application_that_stops_in_the_middle_stores_nothing(cache: Cache) -> None:
    app = CacheMiddleware(Script(start(), part(b"half", True)), cache=cache)
    await ask(app)
    assert not await stored(app)


async def test_an_application_that_says_nothing_stores_nothing(cache: Cache) -> None:
    app = CacheMiddleware(Script(), cache=cache)
    assert (await ask(app)).messages == []
    assert cache._filling().flights._open == {}


async def test_a_start_without_a_body_is_not_swallowed_by_an_error(cache: Cache) -> None:
    """The start is held until the first of the body is there; an error before it leaves the answer to the server."""
    app = CacheMiddleware(Script(start(), error=RuntimeError("early")), cache=cache)
    call = await ask(app)
    assert isinstance(call.error, RuntimeError)
    assert call.messages == []


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_goes_away_in_the_middle_stores_nothing(cache: Cache, spec: str) -> None:
    """As servers tell it: by a message, and by a `send` that raises. Fails where `_gone` is left out of `_store`."""
    route = Route()

    async def page(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            await route.pause()
            yield b" whole"

        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app, asgi={"version": "3.0", "spec_version": spec})
            await route.entered.wait()
            call.disconnect()
            call.sending_fails = spec == "2.4"
            await all_blocked()
            route.go.set()
    assert call.body == b"half"
    route.go.set()
    assert not await stored(app)
    assert await stored(app)


async def test_an_application_that_ends_early_for_a_client_that_is_gone_stores_nothing(cache: Cache) -> None:
    """It closes its body properly, and it is half a body all the same."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(part(b"half", True))
        await receive()
        if (await receive())["type"] == "http.disconnect":
            await send(part(b""))
            return

    wrapped = CacheMiddleware(app, cache=cache)
    call = request("/")
    call.disconnect()
    await call.run(wrapped)
    assert call.body == b"half"
    record = await ask(CacheMiddleware(Script(start(), part(b"x")), cache=cache))
    assert not record.hit


# --- what is not a body -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"type": "http.response.pathsend", "path": "/tmp/file"},
        {"type": "http.response.zerocopysend", "file": 3},
        {"type": "http.response.something.new", "x": 1},
    ],
)
async def test_a_message_in_place_of_the_body_passes_and_is_not_stored(cache: Cache, message: dict[str, Any]) -> None:
    app = CacheMiddleware(Script(start(), message), cache=cache)
    call = await ask(app)
    assert [one["type"] for one in call.messages] == ["http.response.start", message["type"]]
    assert call.messages[1] == message
    assert not await stored(app)


async def test_early_hints_pass_at_once_and_the_response_is_stored(cache: Cache) -> None:
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]}
    app = CacheMiddleware(Script(hint, start(), part(b"x")), cache=cache)
    call = await ask(app)
    assert [one["type"] for one in call.messages] == [hint["type"], "http.response.start", "http.response.body"]
    assert await stored(app)


async def test_trailers_pass(cache: Cache) -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    app = CacheMiddleware(Script(start((b"trailer", b"x-sum"), trailers=True), part(b"x"), trailers), cache=cache)
    call = await ask(app)
    assert call.messages[-1] == trailers
    assert call.start["trailers"] is True
    assert not await stored(app)


async def test_an_event_stream_passes_chunk_by_chunk_and_is_not_stored(cache: Cache) -> None:
    route = Route()
    app = FastAPI()

    @app.get("/")
    @cache_response(60)
    async def events() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await route.pause()
            yield b"data: 2\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app) for _ in range(2)]
            await all_blocked()
            assert [call.chunks for call in calls] == [[b"data: 1\n\n"]] * 2  # nobody waits for a stream
            route.go.set()
    assert not await stored(app)


# --- tags ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_tags_of_a_streamed_body_are_the_responses(cache: Cache, kind: str) -> None:
    """Also those that come after the headers are out. Fails where the tags are taken at the first chunk."""

    @cache.cached(ttl=60, tags=["nested"], name="nested")
    async def nested() -> str:
        return "n"

    async def page(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"a"
            yield (await nested()).encode()
            add_tags("late")

        def sync_body() -> Iterator[bytes]:
            yield b"a"
            yield anyio.from_thread.run(nested).encode()
            add_tags("late")

        return StreamingResponse(body() if kind == "async" else sync_body())

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    for tag in ("nested", "late"):
        await ask(app)
        assert await stored(app)
        await cache.invalidate(tag)
        assert not await stored(app), tag


async def test_an_invalidation_while_the_body_streams_keeps_it_out_of_the_cache(cache: Cache) -> None:
    route = Route()

    async def page(request: Request) -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"old "
            await route.pause()
            add_tags("data")
            yield b"data"

        return StreamingResponse(body())

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            call = begin(tasks, app)
            await route.entered.wait()
            await cache.invalidate("data")
            route.go.set()
    assert call.body == b"old data"
    assert not await stored(app)


async def test_what_a_background_task_caches_or_tags_is_not_the_responses(cache: Cache) -> None:
    """It runs after the last byte: adds do nothing, and a cached call there opens a fresh root."""
    done: list[str] = []

    @cache.cached(ttl=60, tags=["mail"], name="mail")
    async def mail() -> str:
        return "sent"

    async def after() -> None:
        add_tags("after")
        done.append(await mail())

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x", background=BackgroundTask(after))

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    await ask(app)
    assert done == ["sent"]
    await cache.invalidate("after", "mail")
    assert await stored(app)
    assert (await mail.explain()).tags == {"mail"}


async def test_a_background_task_that_fails_does_not_undo_the_store(cache: Cache) -> None:
    async def after() -> None:
        raise RuntimeError("after")

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x", background=BackgroundTask(after))

    app = Starlette(routes=[StarletteRoute("/", cache_response(60)(page))])
    app.add_middleware(CacheMiddleware, cache=cache)
    assert (await ask(app)).status == 200
    assert await stored(app)


# --- compression --------------------------------------------------------------------------------------

LONG = "x" * 2000


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("first", ["gzip", "identity"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_compression_on_either_side_gives_each_client_what_it_can_read(
    cache: Cache, inside: bool, first: str, streamed: bool
) -> None:
    runs: list[int] = []

    async def page(request: Request) -> Any:
        runs.append(1)
        if not streamed:
            return PlainTextResponse(LONG)

        async def body() -> AsyncIterator[bytes]:
            yield LONG[:1000].encode()
            yield LONG[1000:].encode()

        return StreamingResponse(body())

    inner: Any = Starlette(routes=[StarletteRoute("/", cache_response(60, public=True)(page))])
    if inside:
        app: Any = CacheMiddleware(GZipMiddleware(inner), cache=cache)
    else:
        app = GZipMiddleware(CacheMiddleware(inner, cache=cache))
    second = "identity" if first == "gzip" else "gzip"
    for encoding in (first, second, first, second):
        call = await ask(app, headers={"accept-encoding": encoding})
        assert call.header("content-encoding") == ("gzip" if encoding == "gzip" else None)
        body = gzip.decompress(call.body) if encoding == "gzip" else call.body
        assert body.decode() == LONG
        assert call.header("content-length") in (None, str(len(call.body)))
        assert "accept-encoding" in (call.header("vary") or "").lower()
    assert call.hit
    assert len(runs) == (2 if inside else 1)
