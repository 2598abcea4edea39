"""Windows in responses: what they see, and how the response goes out around them."""

from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from asynctag.cache import Cache
from asynctag.errors import ConfigurationError, WindowError
from asynctag.http.asgi import AsgiScope, Message, Send
from asynctag.http.request import SCOPE_KEY, RequestCache
from asynctag.http.rules import Headers
from asynctag.placeholders import Place, Places, Segments, as_bytes
from asynctag.running import Running, running
from asynctag.scope import Scope, gathering_scope
from asynctag.skeleton import woven

if TYPE_CHECKING:
    from asynctag.http.exchange import Exchange, Silence

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
        b"content-length",
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


class Aside:
    """Stands where an exchange would, where no response is stored: for an unsafe request, and while windows run."""

    __slots__ = ("routed",)

    def __init__(self, asgi: AsgiScope) -> None:
        self.routed = asgi


#: The exchange that runs here, or what stands where one would; None without the middleware.
current_exchange: ContextVar["Exchange | Silence | Aside | None"] = ContextVar("asynctag_exchange", default=None)


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


class Serving:
    """A request to which a response with windows goes out. They run in `context`: that of the middleware."""

    __slots__ = ("_asgi", "_cache", "_context", "_done", "_send")

    def __init__(self, cache: Cache, asgi: AsgiScope, send: Send, context: Context | None = None) -> None:
        self._cache = cache
        self._asgi = asgi
        self._send = send
        self._context = context
        self._done: dict[tuple[str, bytes], Any] = {}

    async def send(self, start: Message | None, segments: Segments, charset: str, *, more: bool = False) -> None:
        """Send the start, unless it is out, and the text with what the windows return.

        They run side by side. If none of them has to wait, the length of the body is known before it goes out; else
        the text before the first that does goes out at once. One that fails (and has no fallback) raises: before
        anything is out, or in the middle of it, and the server then cuts the connection.
        """
        if self._asgi["method"] == "HEAD":
            await self._begin(start, None)
            await self._body(b"", more=more)
            return
        places = {(place.name, place.params): place for place in segments.places}
        new = {key: index for index, key in enumerate(key for key in places if key not in self._done)}
        find = self._cache._filling().windows.find
        async with running([find(places[key]) for key in new], self._context_of_windows()) as windows:
            if await windows.first_round() or self._asgi.get("http_version") == "1.0":
                texts = [await self._text(place, charset, windows, new) for place in segments.places]
                body = woven(segments.parts, texts)
                await self._begin(start, None if more else len(body))
                await self._body(body, more=more)
                return
            for index in new.values():
                windows.is_done(index)  # raises what failed by now, while nothing is out
            await self._begin(start, None)
            ready = [segments.parts[0]]
            for place, part in zip(segments.places, segments.parts[1:], strict=True):
                if ready and not self._is_done(place, windows, new):
                    await self._body(b"".join(ready), more=True)
                    ready = []
                ready += (await self._text(place, charset, windows, new), part)
            await self._body(b"".join(ready), more=more)

    def _context_of_windows(self) -> Context:
        context = copy_context() if self._context is None else self._context.copy()
        around = context.run(gathering_scope)
        if around is not None:  # a computation calls the application: what is one user's is not to be cached with it
            around.forbid_store()
        here = {**self._asgi, SCOPE_KEY: RequestCache(self._cache, None)}
        context.run(current_exchange.set, Aside(here))
        return context

    def _is_done(self, place: Place, windows: Running, new: dict[tuple[str, bytes], int]) -> bool:
        key = (place.name, place.params)
        return key in self._done or windows.is_done(new[key])

    async def _text(self, place: Place, charset: str, windows: Running, new: dict[tuple[str, bytes], int]) -> bytes:
        key = (place.name, place.params)
        if key not in self._done:
            self._done[key] = await windows.result(new[key])
        return as_bytes(self._done[key], place, charset)

    async def _begin(self, start: Message | None, length: int | None) -> None:
        if start is None:
            return
        if length is not None:
            start = {**start, "headers": [*start["headers"], (b"content-length", b"%d" % length)]}
        await self._send(start)

    async def _body(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class Filling:
    """What stands before the server as `send`, for a response with windows that goes out as the application sends it.

    `sent` is its start, if that is out. A response whose start is out, and says that others may keep it, cannot have
    windows.
    """

    __slots__ = ("_held", "_rest", "_scope", "_send", "_sent", "_serving")

    def __init__(self, serving: Serving, scope: Scope, send: Send, sent: Message | None = None) -> None:
        self._serving = serving
        self._scope = scope
        self._send = send
        self._sent = sent
        self._held: Message | None = None
        self._rest = b""  # what may be the beginning of a placeholder

    async def send(self, message: Message) -> None:
        places, kind = self._scope.places, message["type"]
        if places is None or kind not in ("http.response.start", "http.response.body"):
            await self._let_go()
            if kind == "http.response.start":
                self._sent = message
            await self._send(message)
        elif kind == "http.response.start":
            self._held = message
        else:
            await self._fill(places, self._rest + message.get("body", b""), more=message.get("more_body", False))

    async def _let_go(self) -> None:
        if self._held is not None:
            self._sent, self._held = self._held, None
            await self._send(self._sent)
        if self._rest:
            rest, self._rest = self._rest, b""
            await self._send({"type": "http.response.body", "body": rest, "more_body": True})

    async def _fill(self, places: Places, body: bytes, *, more: bool) -> None:
        held = self._held
        is_json, charset = body_of((held or self._sent or {}).get("headers") or ())
        if more:
            keep = places.unfinished(body)
            body, self._rest = body[: len(body) - keep], body[len(body) - keep :]
        else:
            self._rest = b""
        segments = places.split(body, lambda: f"the body of {self._scope.name}", json=is_json)
        if segments is None and not more and held is not None:  # none of what was placed stands in it
            await self._let_go()
        elif held is not None:
            self._held = None
            self._sent = held = with_windows(held)
            if segments is None:
                await self._send(held)
        elif segments is not None and not is_private(self._sent):
            raise WindowError(
                f"{self._scope.name}: a window stands in its body, and its headers are out, which let others keep it. "
                f"Place the first window before the response begins, or send it with Cache-Control: private, no-store"
            )
        if segments is None:
            if body or not more:
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
            return
        await self._serving.send(held, segments, charset, more=more)


def with_windows(start: Message) -> Message:
    """The start of a response, as it is for one user at one moment. Raises `WindowError` for what is compressed."""
    return {**start, "headers": headers_with_windows(start.get("headers") or ())}


def headers_with_windows(headers: Headers) -> list[tuple[bytes, bytes]]:
    kept = []
    for name, value in headers:
        name = name.lower()
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise WindowError(
                f"a response with windows is encoded ({value.decode('latin-1')}) before they are filled: put what "
                f"compresses outside of CacheMiddleware, which is to be added first"
            )
        if name not in _OF_THE_SKELETON and not name.endswith(b"cache-control"):
            kept.append((name, value))
    return [*kept, FOR_NOBODY_ELSE]


def is_private(start: Message | None) -> bool:
    """Whether a response says that nobody but its client may keep it."""
    said: set[bytes] = set()
    for name, value in (start or {}).get("headers") or ():
        if name.lower() == b"cache-control":
            said |= {one.strip().lower() for one in value.split(b",")}
        elif name.lower().endswith(b"-cache-control"):  # which speaks to some caches before that
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
    try:
        plain = "0".encode(charset) == b"0"
    except (LookupError, ValueError):  # one that Python does not know: the application has encoded it itself
        return "utf-8"
    if not plain:
        raise WindowError(f"a window cannot be found in a body in {charset}: send it as UTF-8")
    return charset


def segments_of(scope: Scope, headers: Headers, body: bytes) -> Segments | None:
    """A whole body as it is stored, if windows stand in it."""
    if scope.places is None:
        return None
    is_json, _ = body_of(headers)
    segments = scope.places.split(body, lambda: f"the body of {scope.name}", json=is_json)
    if segments is not None:
        headers_with_windows(headers)  # raises for what is compressed
    return segments
