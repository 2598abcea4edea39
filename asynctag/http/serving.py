"""Windows in responses: what they see, and how the response goes out around them."""

from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio.abc import TaskGroup
from starlette.requests import Request

from asynctag.errors import ConfigurationError, WindowError
from asynctag.http.asgi import AsgiScope, Message, Receive, Send
from asynctag.http.request import SCOPE_KEY, RequestCache
from asynctag.http.rules import Headers
from asynctag.placeholders import Place, Places, Segments, as_bytes
from asynctag.running import Running, running
from asynctag.scope import Scope, current_scope, gathering_scope, scope_of_block
from asynctag.skeleton import woven

if TYPE_CHECKING:
    from asynctag.http.exchange import Exchange
    from asynctag.http.middleware import CacheMiddleware
    from asynctag.http.silence import Passing, Silence

#: What goes out with a response that has windows: it is one user's, at one moment.
FOR_NOBODY_ELSE = (b"cache-control", b"private, no-store")

#: What a response says of its body, or of keeping it, that is not so once its windows are filled.
_OF_THE_SKELETON = frozenset(
    {
        b"accept-ranges",
        b"age",
        b"cache-groups",
        b"cache-tag",
        b"content-digest",
        b"content-md5",
        b"digest",
        b"edge-cache-tag",
        b"edge-control",
        b"etag",
        b"expires",
        b"last-modified",
        b"pragma",
        b"repr-digest",
        b"surrogate-control",
        b"surrogate-key",
        b"x-accel-expires",
        b"xkey",
    }
)

#: Messages that have the server send a file as the body, or as a part of it.
_FILES = frozenset({"http.response.pathsend", "http.response.zerocopysend"})

#: What tells some caches to keep a response, whatever `Cache-Control` says.
_TO_SOME = frozenset({b"edge-control", b"surrogate-control", b"x-accel-expires"})


class Aside:
    """Stands where an exchange would, where no response is stored: for an unsafe request, and while windows run."""

    __slots__ = ("routed",)

    def __init__(self, asgi: AsgiScope) -> None:
        self.routed = asgi


#: The exchange that runs here, or what stands where one would; None without the middleware.
current_exchange: ContextVar["Exchange | Silence | Passing | Aside | None"] = ContextVar(
    "asynctag_exchange", default=None
)


def current_request() -> Request:
    """The request that is being served, for windows and what they call: never that which filled the cache.

    Its body cannot be read. Raises `WindowError` in a cached computation, whose result is for other requests too, and
    `ConfigurationError` where no request comes through `CacheMiddleware`.
    """
    scope = gathering_scope()
    if scope is not None and not scope.is_response:
        raise WindowError(
            f"current_request() in {scope.name}, whose result is cached for other requests too: ask for it in a "
            f"window, or give what it needs as an argument"
        )
    found = current_exchange.get()
    if found is None or found.routed["type"] != "http":
        raise ConfigurationError(
            "no request is being served here: current_request() is for windows and what they call, in an application "
            "with CacheMiddleware around it"
        )
    return Request(found.routed)


# --- filling -----------------------------------------------------------------------------------------

#: A window where it stands in a response: its name and its parameters. It is called once a serve.
_Key: TypeAlias = tuple[str, bytes]


class Serving:
    """A request to which a response with windows goes out. They see it as `asgi`, and run in `context`.

    That is the middleware's, a copy of the one that runs without one: what the application has in its own is not there
    on a hit. With `receive`, which nobody else may use meanwhile, they end when the client goes away.
    """

    __slots__ = ("_asgi", "_cache", "_context", "_done", "_new", "_receive", "_send", "_windows", "begun", "gone")

    _windows: Running  # those of the text that is sent, `_new` by their places among them

    def __init__(
        self,
        middleware: "CacheMiddleware",
        asgi: AsgiScope,
        send: Send,
        context: Context | None = None,
        receive: Receive | None = None,
    ) -> None:
        self._cache = middleware.cache
        self._asgi = asgi
        self._send = send
        self._receive = receive
        self._done: dict[_Key, Any] = {}
        self._new: dict[_Key, int] = {}
        #: Whether the start of the response is out.
        self.begun = False
        #: Whether the client has gone away.
        self.gone = False
        self._context = context.copy() if context is not None else copy_context()
        # Where the middleware is around the whole application, that has not put itself there on a hit.
        here = {"app": middleware.app, **asgi, SCOPE_KEY: RequestCache(self._cache, None)}
        self._context.run(self._enter, here)

    def _enter(self, asgi: AsgiScope) -> None:
        """Have the context be that of windows for this request."""
        current_exchange.set(Aside(asgi))
        around = gathering_scope()
        if around is not None:  # a cached computation calls the application: what is one user's stays out of it
            if asgi["method"] != "HEAD":
                around.forbid_store()
            block, standing = around.transaction, None
            if block is not None:  # what the windows read is of the transaction still
                standing = scope_of_block(block, around.name, block.filler.backend, around.namespace, None)
            current_scope.set(standing)

    async def send(self, start: Message | None, segments: Segments, charset: str, *, more: bool = False) -> None:
        """Send the start, unless it is out, and the text with what the windows return.

        They run side by side. If none of them has to wait, the length of the body is known before it goes out; else
        the text before the first that does goes out at once. One that fails (and has no fallback) raises `WindowError`,
        before anything is out or in the middle of it: the server then cuts the connection.
        """
        if self._asgi["method"] == "HEAD":
            await self._begin(start, None)
            await self._body(b"", more=more)
            return
        places = {_key(place): place for place in segments.places}
        self._new = {key: index for index, key in enumerate(key for key in places if key not in self._done)}
        find = self._cache._filling().windows.find
        async with running([find(places[key]) for key in self._new], self._context) as self._windows:
            if await self._windows.first_round():
                await self._send_whole(start, segments, charset, more=more)
                return
            for key in self._new:
                self._has(key)  # raises what failed by now, while nothing is out
            # In HTTP/1.0 a body that is cut short looks whole.
            send = self._send_whole if self._asgi.get("http_version") == "1.0" else self._send_as_they_come
            sending = partial(send, start, segments, charset, more=more)
            if self._receive is None:
                await sending()
            else:
                await self._while_there(sending, self._receive)

    async def _while_there(self, sending: Callable[[], Awaitable[None]], receive: Receive) -> None:
        """Send until the client goes away."""
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._notice_leaving, receive, group)
            try:
                await sending()
            except Exception as error:  # which the group would put into one of its own
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _notice_leaving(self, receive: Receive, group: TaskGroup) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        group.cancel_scope.cancel()

    async def _send_whole(self, start: Message | None, segments: Segments, charset: str, *, more: bool) -> None:
        body = woven(segments.parts, [await self._text(place, charset) for place in segments.places])
        await self._begin(start, None if more else len(body))
        await self._body(body, more=more)

    async def _send_as_they_come(self, start: Message | None, segments: Segments, charset: str, *, more: bool) -> None:
        await self._begin(start, None)
        ready = [segments.parts[0]]
        for place, part in zip(segments.places, segments.parts[1:], strict=True):
            if ready and not self._has(_key(place)):
                await self._body(b"".join(ready), more=True)
                ready = []
            ready += (await self._text(place, charset), part)
        await self._body(b"".join(ready), more=more)

    async def _text(self, place: Place, charset: str) -> bytes:
        key = _key(place)
        if key not in self._done:
            try:
                self._done[key] = await self._windows.result(self._new[key])
            except Exception as error:
                raise self._failure(error) from error
        return as_bytes(self._done[key], place, charset)

    def _has(self, key: _Key) -> bool:
        try:
            return key in self._done or self._windows.is_done(self._new[key])
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> WindowError:
        """What a framework has a page for, as an HTTPException, has none in the middle of another."""
        what = f"{self._asgi['method']} {self._asgi['path']}"
        return WindowError(f"a window in the response to {what} failed, and has no fallback: {error!r}")

    async def _begin(self, start: Message | None, length: int | None) -> None:
        if start is None:
            return
        if length is not None:
            start = {**start, "headers": [*start["headers"], (b"content-length", b"%d" % length)]}
        self.begun = True
        await self._send(start)

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _key(place: Place) -> _Key:
    return place.name, place.params


class Filling:
    """What stands before the server as `send`, for a response with windows that goes out as the application sends it.

    `serving` makes what fills them. `start` is the response's, where it is out already: one that says that others may
    keep it cannot have windows.
    """

    __slots__ = ("_cut", "_out", "_rest", "_scope", "_send", "_serving", "_serving_to", "_start")

    def __init__(
        self, serving: Callable[[Send], Serving], scope: Scope, send: Send, start: Message | None = None
    ) -> None:
        self._serving_to = serving
        self._serving: Serving | None = None
        self._scope = scope
        self._send = send
        self._start = start
        self._out = start is not None  # whether the start went out
        self._rest = b""  # what may be the beginning of a placeholder
        self._cut: Exception | None = None

    async def send(self, message: Message) -> None:
        places, kind = self._scope.places, message["type"]
        if places is None:
            if kind == "http.response.start":
                self._start, self._out = message, True
            await self._send(message)
        elif kind == "http.response.body":
            await self._fill(places, message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.start":
            await self._let_go(places)
            refuse_in_headers(places, message.get("headers") or ())
            self._start, self._out = message, False
        else:
            if kind in _FILES:
                await self._let_go(places)
            await self._send(message)

    async def _let_go(self, places: Places) -> None:
        """Send what is held back: something else follows it."""
        if self._rest:
            await self._fill(places, b"", more=True, hold=False)
        elif self._start is not None and not self._out:
            await self._begin(self._start)

    async def _fill(self, places: Places, chunk: bytes, *, more: bool, hold: bool = True) -> None:
        if self._cut is not None:  # the application goes on: the page is not to look whole
            raise self._cut
        try:
            await self._send_filled(places, self._rest + chunk, more=more, hold=hold and more)
        except Exception as error:
            self._rest = b""
            if self._out or (self._serving is not None and self._serving.begun):
                self._cut = error
            self._start = None  # of nothing that is to come
            raise

    async def _send_filled(self, places: Places, body: bytes, *, more: bool, hold: bool) -> None:
        is_json, charset = body_of((self._start or {}).get("headers") or ())
        keep = places.unfinished(body) if hold else 0
        body, self._rest = body[: len(body) - keep], body[len(body) - keep :]
        segments = places.split(body, lambda: f"the body of {self._scope.name}", json=is_json)
        start = self._start if not self._out else None
        if start is not None:
            if segments is not None or more:  # one may come yet
                start = self._start = with_windows(start)
        elif segments is not None and not may_have_windows(self._start):
            raise WindowError(
                f"{self._scope.name}: a window stands in its body, and its headers are out, which let others keep it, "
                f"or tell its length. Place the first window before the response begins, or send it with "
                f"Cache-Control: private, no-store, and without Content-Length"
            )
        if segments is not None:
            if self._serving is None:
                self._serving = self._serving_to(self._send)
            await self._serving.send(start, segments, charset, more=more)
            self._out = True
            return
        if start is not None:
            await self._begin(start)
        if body or not more:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _begin(self, start: Message) -> None:
        self._out = True
        await self._send(start)


def with_windows(start: Message) -> Message:
    """The start of a response, as it is for one user at one moment. Raises `WindowError` for what is compressed."""
    return {**start, "headers": headers_with_windows(start.get("headers") or ())}


def headers_with_windows(headers: Headers) -> list[tuple[bytes, bytes]]:
    for name, value in headers:
        if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
            raise WindowError(
                f"a response with windows is encoded ({value.decode('latin-1')}) before they are filled: put what "
                f"compresses outside of CacheMiddleware, which is to be added first"
            )
    return for_nobody_else([pair for pair in headers if pair[0].lower() != b"content-length"])


def for_nobody_else(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers of a response whose windows are filled, without what others have said of it."""
    named = [(name.lower(), value) for name, value in headers]
    kept = [pair for pair in named if pair[0] not in _OF_THE_SKELETON and not pair[0].endswith(b"cache-control")]
    return [*kept, FOR_NOBODY_ELSE]


def refuse_in_headers(places: Places, headers: Headers) -> None:
    """Raise `WindowError` where a window stands in a header: those are out before it is filled."""
    for name, value in headers:
        if places.stands_in(value):
            raise WindowError(
                f"{places.name}: a window stands in its header {name.decode('latin-1')}: windows are for the body"
            )


def may_have_windows(start: Message | None) -> bool:
    """Whether the headers of a response say that nobody but its client may keep it, and nothing of its length."""
    said: set[bytes] = set()
    for sent, value in (start or {}).get("headers") or ():
        name = sent.lower()
        if name == b"cache-control":
            said |= {one.strip().lower() for one in value.split(b",")}
        elif name == b"content-length" or name in _TO_SOME or name.endswith(b"-cache-control"):
            return False
    return b"no-store" in said or b"private" in said


def body_of(headers: Headers) -> tuple[bool, str]:
    """Whether a body is JSON, and its charset. Raises `WindowError` where no text can be found in it."""
    for name, value in headers:
        if name.lower() == b"content-type":
            kind, *parameters = value.decode("latin-1").lower().split(";")
            named = (one.strip().removeprefix("charset=") for one in parameters if one.strip().startswith("charset="))
            return kind.strip().endswith(("/json", "+json")), _checked(next(named, "").strip("\"' ") or "utf-8")
    return False, "utf-8"


def _checked(charset: str) -> str:
    begins_as_ascii = is_written_as(charset)
    if begins_as_ascii is None:  # the application has encoded it itself
        return "utf-8"
    if not begins_as_ascii:
        raise WindowError(f"a window cannot be found in a body in {charset}: send it as UTF-8")
    return charset


def is_written_as(charset: str) -> bool | None:
    """Whether a charset begins with ASCII, so that windows stand in it as they are; None for none that Python has."""
    try:
        "\u2028".encode(charset, "replace")
        return "0&".encode(charset) == b"0&"
    except (LookupError, ValueError):
        return None


def segments_of(scope: Scope, headers: Headers, body: bytes) -> Segments | None:
    """A whole body as it is stored, if windows stand in it."""
    if scope.places is None:
        return None
    refuse_in_headers(scope.places, headers)
    is_json, _ = body_of(headers)
    segments = scope.places.split(body, lambda: f"the body of {scope.name}", json=is_json)
    if segments is not None:
        headers_with_windows(headers)  # raises for what is compressed
    return segments
