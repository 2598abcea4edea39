"""Parts of a stored response: `Range` and `If-Range`, without I/O or clocks.

Whatever is not one plain range of bytes gets the whole response, as RFC 9110 §14.2 allows for every request.
"""

import re
from enum import Enum

import msgspec

from asynctag.http.headers import entity_tag, http_date
from asynctag.http.rules import RequestFacts, not_modified
from asynctag.http.stored import StoredResponse, field

#: One range of bytes; positions of more digits than any file has bytes are not read. Commas may stand around it, since
#: recipients parse empty members of a list (RFC 9110 §5.6.1).
_ONE_RANGE = re.compile(rb"bytes=[ \t,]*(?:([0-9]{1,20})-([0-9]{1,20})?|-([0-9]{1,20}))[ \t,]*", re.IGNORECASE)

#: What describes the stored body, or says how long it may be used: no part of an answer that has none of it.
_OF_THE_REPRESENTATION = frozenset(
    {
        b"cache-control",
        b"cdn-cache-control",
        b"content-digest",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-location",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"date",
        b"digest",
        b"etag",
        b"expires",
        b"last-modified",
        b"pragma",
        b"repr-digest",
        b"surrogate-control",
    }
)

#: What is said of all the bytes of one message: not true of a part (RFC 9530 §2). `Repr-Digest` is of the whole.
_OF_ALL_BYTES = frozenset({b"content-digest", b"content-length", b"content-md5", b"content-range"})


class Unsatisfiable(Enum):
    """A range that can be read, of which the representation has no byte (RFC 9110 §14.1.1): 416 answers it."""

    PAST_THE_END = "no byte of it is there"


def parse_range(value: bytes, size: int) -> tuple[int, int] | Unsatisfiable | None:
    """The first and the last of the bytes that `Range` asks for, where there are `size` (RFC 9110 §14.1.2).

    `None` where the field is ignored (§14.2), and the whole is sent: other units, what is malformed, a last position
    before the first, positions of more than 20 digits, and several ranges, since a body in parts (`multipart`) is
    rarely wanted and costs more than the whole. So is the end of an empty representation: no 206 can name its bytes.
    """
    found = _ONE_RANGE.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    if found[3] is not None:
        length = min(int(found[3]), size)
        if length > 0:
            return size - length, size - 1
        return None if int(found[3]) else Unsatisfiable.PAST_THE_END
    first = int(found[1])
    last = int(found[2]) if found[2] is not None else None
    if last is not None and last < first:
        return None
    if first >= size:
        return Unsatisfiable.PAST_THE_END
    return first, size - 1 if last is None else min(last, size - 1)


def if_range_holds(value: bytes | None, etag: bytes | None, last_modified: bytes | None, date: float | None) -> bool:
    """Whether `If-Range` lets `Range` count (RFC 9110 §13.1.5); `value` is `None` where there is no such field.

    An entity tag is compared strongly (§8.8.3.2). A date has to be `Last-Modified` to the letter, and that has to be
    strong: of a second or more before `date`, when the response was made, in seconds since the epoch (§8.8.2.2).
    """
    if value is None:
        return True
    asked = entity_tag(value)
    if asked is not None:
        return not asked.weak and asked == entity_tag(etag)
    if last_modified is None or date is None or value.strip(b" \t") != last_modified.strip(b" \t"):
        return False
    modified = http_date(last_modified)
    return modified is not None and date - modified >= 1


def ranged(
    response: StoredResponse, range_value: bytes, if_range: bytes | None
) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes] | None:
    """The status, headers and body that answer a `GET` with `Range` from `response`; `None`: the whole is to be sent.

    For `GET` only, and after the other preconditions: what is not modified is a 304 (RFC 9110 §13.2.2, §14.2). A 206
    (§15.3.7) has the headers that are stored, without a digest of all the bytes. A 416 (§15.5.17) says how long the
    representation is and keeps nothing that describes it. Nor does it keep its lifetime, with which another cache
    could store the 416 for every request of the URL.
    """
    if response.status != 200:
        return None
    if not if_range_holds(if_range, response.etag, response.last_modified, _made(response)):
        return None
    size = len(response.body)
    part = parse_range(range_value, size)
    if part is None:
        return None
    if isinstance(part, Unsatisfiable):
        kept = [pair for pair in response.headers if pair[0] not in _OF_THE_REPRESENTATION]
        return 416, (*kept, (b"content-range", b"bytes */%d" % size), (b"content-length", b"0")), b""
    first, last = part
    body = response.body[first : last + 1]
    kept = [pair for pair in response.headers if pair[0] not in _OF_ALL_BYTES]
    content_range = (b"content-range", b"bytes %d-%d/%d" % (first, last, size))
    return 206, (*kept, content_range, (b"content-length", b"%d" % len(body))), body


def part_of(response: StoredResponse, request: RequestFacts) -> StoredResponse:
    """What of `response` answers a `GET` with `Range`, as a response: a part, a 416, or the whole."""
    assert request.range is not None
    if not_modified(request, response.etag, response.last_modified):  # preconditions count first (RFC 9110 §13.2.2)
        return response
    part = ranged(response, request.range, request.if_range)
    if part is None:
        return response
    status, headers, body = part
    return msgspec.structs.replace(response, status=status, headers=headers, body=body)


def _made(response: StoredResponse) -> float | None:
    """Its `Date`; where the server adds that field after this cache, the time when the cache took the response."""
    date = field(response.headers, b"date")
    return response.born if date is None else http_date(date)
