"""Asking the application whether a stored response still is good, and what its answer changes: without I/O or clocks.

A validator that cannot be read validates nothing: the response is then asked for anew.
"""

from asynctag.http.headers import entity_tag, http_date, make_etag
from asynctag.http.rules import Headers, stored_headers
from asynctag.http.stored import StoredResponse

#: The fields by which a response can be asked about (RFC 9110 §8.8).
VALIDATORS = frozenset({b"etag", b"last-modified"})

_OF_ONE_ANSWER = frozenset({b"age", b"set-cookie"})

#: What a client asks on conditions of its own, or in part (RFC 9110 §13.1, §14.2).
_OWN_CONDITIONS = frozenset(
    {b"if-match", b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"range"}
)

#: What says how the stored body is to be read, or what it is known by: it stays with the body.
_OF_THE_BODY = frozenset(
    {
        b"content-digest",
        b"content-encoding",
        b"content-length",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"digest",
        b"etag",
        b"repr-digest",
    }
)


def validators(response: StoredResponse) -> list[tuple[bytes, bytes]]:
    """The request headers that ask whether `response` still is good (RFC 9111 §4.3.1).

    `If-None-Match` with its `ETag`, `If-Modified-Since` with its `Last-Modified`. Empty where it has neither, or where
    its status is not 200: preconditions ask for nothing else (RFC 9110 §13.2.1). An `ETag` that this cache made is not
    sent, since the application does not know it. Nor is one that is no entity tag: `*` would match everything.
    """
    if response.status != 200:
        return []
    asked: list[tuple[bytes, bytes]] = []
    etag = response.etag
    if etag is not None and entity_tag(etag) is not None and etag != make_etag(response.body):
        asked.append((b"if-none-match", etag))
    if response.last_modified is not None:
        asked.append((b"if-modified-since", response.last_modified))
    return asked


def conditional(headers: Headers, response: StoredResponse) -> list[tuple[bytes, bytes]]:
    """A request's headers, asking for `response` to be validated instead of what they asked (RFC 9111 §4.3.1).

    The client's own preconditions and range would be answered for the client, and not for the stored response.
    """
    kept = [(name, value) for name, value in headers if name.lower() not in _OWN_CONDITIONS]
    return [*kept, *validators(response)]


def confirms(response: StoredResponse, headers: Headers) -> bool:
    """Whether a 304 with these headers says that `response` still is good (RFC 9111 §4.3.4).

    A strong `ETag` decides alone, by strong comparison. Without one, a weak `ETag` and `Last-Modified` both have to
    fit, as far as they are there. A 304 without validators answers the only question that was asked, by the validators
    of the only response that is stored: it is taken for a yes.
    """
    found = _joined(headers)
    etag, modified = found.get(b"etag"), found.get(b"last-modified")
    if etag is not None:
        own, theirs = entity_tag(response.etag), entity_tag(etag)
        if own is None or theirs is None or own.opaque != theirs.opaque:
            return False
        if not theirs.weak:
            return not own.weak
    return modified is None or _same_date(response.last_modified, modified)


def freshened(stored: Headers, headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a stored response, updated by those of a 304 or of a `HEAD`'s 200 (RFC 9111 §3.2).

    Each field replaces all lines of its name. What is never stored does not count, nor does `Content-Length`. As §3.2
    allows, the fields that the stored body is read by stay too (its type, coding and digests): a 304 often comes with
    the defaults of a framework, for the empty body that it has. So does `ETag`, which here is at most a weaker form of
    the stored one.
    """
    updates = [pair for pair in stored_headers(headers) if pair[0] not in _OF_THE_BODY]
    replaced = {name for name, _ in updates}
    return (*((name, value) for name, value in stored if name.lower() not in replaced), *updates)


def updated_by(response: StoredResponse, headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers of `response` as the application would send them now, by those of a 304 or of a `HEAD`'s 200."""
    kept = [pair for pair in response.headers if not (response.adds_cache_control and pair[0] == b"cache-control")]
    # What is of this answer alone is never stored, and still counts: how old it is, and whether it is one client's.
    return [*freshened(kept, headers), *(pair for pair in headers if pair[0] in _OF_ONE_ANSWER)]


def head_matches(response: StoredResponse, headers: Headers) -> bool:
    """Whether a `HEAD`'s 200 with these headers is of the representation that is stored (RFC 9111 §4.3.5).

    Each of `ETag`, `Last-Modified` and `Content-Length` that it has needs to be the stored one: a validator that the
    stored response lacks does not match. Where this is false, the stored response is to be taken for stale.
    """
    found = _joined(headers)
    etag, modified, length = found.get(b"etag"), found.get(b"last-modified"), found.get(b"content-length")
    if etag is not None and (entity_tag(etag) is None or entity_tag(etag) != entity_tag(response.etag)):
        return False
    if modified is not None and not _same_date(response.last_modified, modified):
        return False
    return length is None or length.strip(b" \t") == b"%d" % len(response.body)


def _same_date(stored: bytes | None, received: bytes) -> bool:
    own = http_date(stored) if stored is not None else None
    return own is not None and own == http_date(received)


def _joined(headers: Headers) -> dict[bytes, bytes]:
    # the lines of a field make one value (RFC 9110 §5.3), which for a validator sent twice is none that can be read
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        name = name.lower()
        found[name] = found[name] + b", " + value if name in found else value
    return found
