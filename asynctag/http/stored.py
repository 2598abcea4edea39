"""A response as it is kept, and how it is answered from."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgspec

from asynctag.codec import Kept
from asynctag.errors import CorruptEntryError
from asynctag.http.asgi import Message
from asynctag.http.headers import http_date, is_field
from asynctag.http.packed import PackedCodec
from asynctag.http.rules import Headers, RequestFacts, not_modified, not_modified_headers, stored_headers
from asynctag.http.serving import body_of, headers_with_windows, is_written_as
from asynctag.placeholders import Place, Segments
from asynctag.skeleton import check_parts

#: What an object of a stored response takes beyond its bytes: itself, its headers' tuples and objects.
_OVERHEAD, _PER_HEADER = 200, 150


class StoredWindows(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a response with windows: the text in parts, and the windows between them."""

    parts: tuple[bytes, ...]
    places: tuple[Place, ...]
    charset: str

    @property
    def segments(self) -> Segments:
        return Segments(self.parts, self.places)


class StoredResponse(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A whole response. `born` is when it was (seconds since the epoch, less the `Age` that it came with).

    For `stale_if_error` seconds past its freshness it may take the place of an error. With `must_revalidate` no request
    gets it past its freshness.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    born: float
    public: bool  # its hits may be served before routing
    with_cookies: bool  # a request with cookies may have it too
    etag: bytes | None
    last_modified: bytes | None
    stale_if_error: float
    must_revalidate: bool
    adds_cache_control: bool  # the application said nothing of caching: what stands there was added for clients
    windows: StoredWindows | None = None  # instead of the body

    def answer(self, request: RequestFacts, now: float, extra: Headers) -> tuple[Message, Message]:
        """The messages that answer `request` at `now`, in seconds since the epoch: a 304 where the client has it.

        To a `HEAD` they have the body too, as those of applications do: servers leave it out, and what stands in
        between may need it to tell its length.
        """
        status, headers, body = self.status, self.headers, self.body
        if self.windows is not None:
            start = {"type": "http.response.start", "status": status, "headers": [*headers, *extra]}
            return start, {"type": "http.response.body", "windows": self.windows}
        conditional = request.if_none_match is not None or request.if_modified_since is not None
        if conditional and status == 200 and not_modified(request, self.etag, self.last_modified):
            status, headers, body = 304, not_modified_headers(headers), b""
        age = int(now - self.born)
        return (
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"age", b"%d" % age if age > 0 else b"0"), *extra],
            },
            {"type": "http.response.body", "body": body, "more_body": False},
        )


def make_stored(
    status: int,
    headers: Headers,
    body: bytes,
    *,
    now: float,
    age: float,
    public: bool = False,
    with_cookies: bool = False,
    stale_if_error: float = 0.0,
    must_revalidate: bool = False,
    adds_cache_control: bool = False,
    segments: Segments | None = None,
) -> StoredResponse:
    """`headers` as they are sent, those of one connection or one answer among them; `segments` where it has windows."""
    kept, windows = stored_headers(headers), None
    if segments is not None:
        kept, body = tuple(headers_with_windows(kept)), b""
        windows = StoredWindows(*segments, body_of(headers)[1])
    elif status != 204:  # RFC 9110 §8.6
        kept = (*kept, (b"content-length", b"%d" % len(body)))
    fields = dict(kept)
    modified = fields.get(b"last-modified")
    return StoredResponse(
        status=status,
        headers=kept,
        body=body,
        born=now - age,
        public=public,
        with_cookies=with_cookies,
        etag=fields.get(b"etag"),
        last_modified=modified if modified is not None and http_date(modified) is not None else None,
        stale_if_error=stale_if_error,
        must_revalidate=must_revalidate,
        adds_cache_control=adds_cache_control,
        windows=windows,
    )


def field(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header, if it is there."""
    for found, value in headers:
        if found.lower() == name:
            return value
    return None


def first_values(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The first value of each header. Names are lower-case."""
    return dict(reversed(headers))


class _ResponseCodec(PackedCodec):
    def decode(self, data: bytes) -> Any:
        response = super().decode(data)
        if not (200 <= response.status <= 599 and isfinite(response.born) and isfinite(response.stale_if_error)):
            raise CorruptEntryError("a response that was never stored")
        for name, value in response.headers:
            if not is_field(name, value):
                raise CorruptEntryError("a response with headers that are none")
        if response.windows is not None:
            check_parts(response.windows.parts, response.windows.places)
            if not is_written_as(response.windows.charset):
                raise CorruptEntryError("a response in characters in which no window stands")
        return response

    def keep(self, value: Any) -> Kept:
        size = _OVERHEAD + len(value.body)
        if value.windows is not None:
            size += sum(map(len, value.windows.parts)) + sum(200 + len(one.params) for one in value.windows.places)
        for name, text in value.headers:
            size += _PER_HEADER + len(name) + len(text)
        return Kept(value, None, size)


RESPONSES = _ResponseCodec(StoredResponse, "a stored response")
