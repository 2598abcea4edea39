"""Parts of stored responses (RFC 9110 §14, §13.1.5): a wrong part is worse than the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.headers import http_date, make_etag
from asynctag.http.ranges import Unsatisfiable, if_range_holds, parse_range, ranged
from asynctag.http.stored import StoredResponse, make_stored

NONE_OF_IT = Unsatisfiable.PAST_THE_END
MODIFIED = b"Tue, 15 Nov 1994 12:45:26 GMT"
AT = http_date(MODIFIED) or 0.0
BODY = b"0123456789"


def stored(*headers: tuple[bytes, bytes], status: int = 200, body: bytes = BODY, now: float = 1e9) -> StoredResponse:
    return make_stored(status, headers, body, now=now, age=0.0, public=True, with_cookies=False)


# --- RFC 9110 §14.1: ranges of bytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-4", (0, 4)),
        (b"bytes=0-0", (0, 0)),
        (b"bytes=9-9", (9, 9)),
        (b"bytes=3-", (3, 9)),
        (b"bytes=0-", (0, 9)),
        (b"bytes=5-10", (5, 9)),
        (b"bytes=5-99999999999999999999", (5, 9)),
        (b"bytes=-1", (9, 9)),
        (b"bytes=-10", (0, 9)),
        (b"bytes=-11", (0, 9)),
        (b"bytes=-99999999999999999999", (0, 9)),
        (b"bytes=007-08", (7, 8)),
        (b"BYTES=1-2", (1, 2)),
        (b" bytes=1-2\t", (1, 2)),
        (b"bytes= 1-2", (1, 2)),
        (b"bytes=1-2,", (1, 2)),
        (b"bytes=, ,1-2 ,", (1, 2)),
    ],
)
def test_rfc9110_14_1_2_one_range_of_ten_bytes(value: bytes, expected: tuple[int, int]) -> None:
    assert parse_range(value, 10) == expected


@pytest.mark.parametrize(
    "value", [b"bytes=10-", b"bytes=10-10", b"bytes=10-20", b"bytes=99999999999999999999-", b"bytes=-0", b"bytes=-000"]
)
def test_rfc9110_14_1_1_a_range_without_a_byte_is_unsatisfiable(value: bytes) -> None:
    assert parse_range(value, 10) is NONE_OF_IT


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"bytes",
        b"bytes=",
        b"bytes=,",
        b"bytes=-",
        b"bytes=--1",
        b"bytes=1",
        b"bytes=1-2-3",
        b"bytes=1 - 2",
        b"bytes=4-3",
        b"bytes=20-19",
        b"bytes=+1-2",
        b"bytes=1-x",
        b"bytes=0x1-2",
        b"bytes=1_0-20",
        b"bytes:1-2",
        b"bytes =1-2",
        b"bytes=1-2;x",
        b"items=0-4",
        b"0-4",
        "bytes=\u0661-\u0662".encode(),
        b"bytes=\xb2-3",
        b"bytes=1-2\n",
    ],
)
def test_rfc9110_14_2_what_cannot_be_read_gets_the_whole(value: bytes) -> None:
    assert parse_range(value, 10) is None


@pytest.mark.parametrize("value", [b"bytes=0-1,3-4", b"bytes=0-1, -1", b"bytes=0-1,0-1", b"bytes=0-1,bytes=2-3"])
def test_rfc9110_14_2_several_ranges_get_the_whole(value: bytes) -> None:
    assert parse_range(value, 10) is None


@pytest.mark.parametrize("value", [b"bytes=%b-", b"bytes=0-%b", b"bytes=-%b", b"bytes=%b-1"])
@pytest.mark.parametrize("digits", [b"9" * 21, b"9" * 10_000, b"0" * 10_000, b"9" * 100_000])
def test_rfc9110_14_2_positions_beyond_all_sizes_get_the_whole(value: bytes, digits: bytes) -> None:
    """No number of more digits than Python converts is made of them."""
    assert parse_range(value % digits, 10) is None


def test_rfc9110_14_1_2_of_an_empty_representation_there_is_no_part() -> None:
    assert parse_range(b"bytes=0-", 0) is NONE_OF_IT
    assert parse_range(b"bytes=0-0", 0) is NONE_OF_IT
    assert parse_range(b"bytes=-0", 0) is NONE_OF_IT
    assert parse_range(b"bytes=-5", 0) is None  # satisfiable, but without a byte that a 206 could name


@given(st.binary(max_size=50), st.integers(0, 9), st.integers(0, 12), st.integers(0, 12))
def test_rfc9110_14_1_2_a_range_is_the_slice_that_it_names(body: bytes, zeros: int, first: int, length: int) -> None:
    size, padding = len(body), b"0" * zeros
    asked = parse_range(b"bytes=%b%d-%d" % (padding, first, first + length), size)
    if first < size:
        assert asked == (first, min(first + length, size - 1))
    else:
        assert asked is NONE_OF_IT
    last = parse_range(b"bytes=-%b%d" % (padding, length), size)
    if isinstance(last, tuple):
        assert body[last[0] : last[1] + 1] == body[max(0, size - length) :]
    else:
        assert length == 0 or size == 0


@given(st.binary(max_size=60) | st.text("bytes=-,0123456789 \t", max_size=60).map(str.encode), st.integers(0, 100))
def test_rfc9110_14_2_nothing_that_is_sent_raises_or_leaves_the_body(value: bytes, size: int) -> None:
    for sent in (value, b"bytes=" + value):
        found = parse_range(sent, size)
        assert not isinstance(found, tuple) or 0 <= found[0] <= found[1] < size


# --- RFC 9110 §13.1.5: If-Range


@pytest.mark.parametrize(
    ("value", "etag", "holds"),
    [
        (None, None, True),
        (None, b'"a"', True),
        (b'"a"', b'"a"', True),
        (b' "a" ', b'"a"', True),
        (b'"a"', b'"b"', False),
        (b'"a"', b'W/"a"', False),
        (b'W/"a"', b'"a"', False),
        (b'W/"a"', b'W/"a"', False),
        (b'"a"', None, False),
        (b"a", b"a", False),
        (b"*", b"*", False),
        (b"*", b'"a"', False),
        (b"", b"", False),
        (b'"a", "b"', b'"a"', False),
    ],
)
def test_rfc9110_13_1_5_an_entity_tag_is_compared_strongly(
    value: bytes | None, etag: bytes | None, holds: bool
) -> None:
    assert if_range_holds(value, etag, None, None) is holds
    assert if_range_holds(value, etag, MODIFIED, AT + 60) is holds


@pytest.mark.parametrize(
    ("value", "last_modified", "after", "holds"),
    [
        (MODIFIED, MODIFIED, 1.0, True),
        (b" " + MODIFIED, MODIFIED, 60.0, True),
        (MODIFIED, MODIFIED, 0.99, False),
        (MODIFIED, MODIFIED, 0.0, False),
        (MODIFIED, MODIFIED, -60.0, False),
        (MODIFIED, MODIFIED, None, False),
        (MODIFIED, None, 60.0, False),
        (b"Tue, 15 Nov 1994 12:45:27 GMT", MODIFIED, 60.0, False),
        (b"Tue, 15 Nov 1994 12:45:25 GMT", MODIFIED, 60.0, False),
        (b"Tuesday, 15-Nov-94 12:45:26 GMT", MODIFIED, 60.0, False),
        (b"today", b"today", 60.0, False),
        (b"", b"", 60.0, False),
    ],
)
def test_rfc9110_13_1_5_a_date_is_last_modified_to_the_letter_and_strong(
    value: bytes, last_modified: bytes | None, after: float | None, holds: bool
) -> None:
    """Strong by §8.8.2.2: of a second or more before the response was made."""
    date = None if after is None else AT + after
    assert if_range_holds(value, b'"a"', last_modified, date) is holds


# --- RFC 9110 §15.3.7: 206


def test_rfc9110_15_3_7_a_206_has_the_part_and_the_headers_of_the_whole() -> None:
    response = stored(
        (b"content-type", b"text/plain"),
        (b"content-encoding", b"br"),
        (b"etag", b'"a"'),
        (b"last-modified", MODIFIED),
        (b"cache-control", b"max-age=60"),
        (b"vary", b"accept"),
        (b"repr-digest", b"sha-256=:AA==:"),
    )
    assert ranged(response, b"bytes=2-4", None) == (
        206,
        (
            (b"content-type", b"text/plain"),
            (b"content-encoding", b"br"),
            (b"etag", b'"a"'),
            (b"last-modified", MODIFIED),
            (b"cache-control", b"max-age=60"),
            (b"vary", b"accept"),
            (b"repr-digest", b"sha-256=:AA==:"),
            (b"content-range", b"bytes 2-4/10"),
            (b"content-length", b"3"),
        ),
        b"234",
    )


@pytest.mark.parametrize("name", [b"content-digest", b"content-md5"])
def test_rfc9110_15_3_7_a_digest_of_all_the_bytes_is_not_sent_with_a_part(name: bytes) -> None:
    found = ranged(stored((name, b"x")), b"bytes=0-1", None)
    assert found is not None
    assert name not in dict(found[1])


def test_rfc9110_15_3_7_all_the_bytes_are_a_part_too() -> None:
    assert ranged(stored(), b"bytes=0-", None) == (
        206,
        ((b"content-range", b"bytes 0-9/10"), (b"content-length", b"10")),
        BODY,
    )


def test_rfc9110_15_3_7_all_parts_together_are_the_whole() -> None:
    etag = make_etag(BODY)
    response, parts = stored((b"etag", etag)), []
    for first in range(0, 10, 3):
        found = ranged(response, b"bytes=%d-%d" % (first, first + 2), etag)
        assert found is not None
        parts.append(found[2])
    assert b"".join(parts) == BODY
    assert len(parts) == 4


# --- RFC 9110 §15.5.17: 416


def test_rfc9110_15_5_17_a_416_says_how_long_it_is_and_nothing_of_the_representation() -> None:
    response = stored(
        (b"content-type", b"text/plain"),
        (b"content-encoding", b"br"),
        (b"content-language", b"de"),
        (b"content-location", b"/x"),
        (b"content-disposition", b"inline"),
        (b"content-digest", b"x"),
        (b"repr-digest", b"x"),
        (b"etag", b'"a"'),
        (b"last-modified", MODIFIED),
        (b"date", MODIFIED),
        (b"vary", b"origin"),
        (b"access-control-allow-origin", b"*"),
    )
    assert ranged(response, b"bytes=10-", None) == (
        416,
        (
            (b"vary", b"origin"),
            (b"access-control-allow-origin", b"*"),
            (b"content-range", b"bytes */10"),
            (b"content-length", b"0"),
        ),
        b"",
    )


@pytest.mark.parametrize("name", [b"cache-control", b"cdn-cache-control", b"surrogate-control", b"expires", b"pragma"])
def test_rfc9110_15_5_17_no_other_cache_may_keep_a_416(name: bytes) -> None:
    """It would answer requests without `Range` with it."""
    found = ranged(stored((name, b"max-age=60")), b"bytes=10-", None)
    assert found is not None
    assert name not in dict(found[1])


# --- RFC 9110 §14.2, §13.2.2: when the whole is sent


@pytest.mark.parametrize("value", [b"items=0-1", b"bytes=0-1,3-4", b"bytes=4-3", b"", b"bytes=" + b"9" * 10_000 + b"-"])
def test_rfc9110_14_2_a_range_that_is_ignored_gets_the_whole(value: bytes) -> None:
    assert ranged(stored(), value, None) is None


@pytest.mark.parametrize("status", [203, 204, 301, 404, 500])
def test_rfc9110_14_2_only_a_200_has_parts(status: int) -> None:
    assert ranged(stored(status=status), b"bytes=0-1", None) is None
    assert ranged(stored(status=status), b"bytes=99-", None) is None


def test_rfc9110_13_1_5_what_has_changed_is_sent_whole() -> None:
    response = stored((b"etag", b'"a"'))
    for value in (b"bytes=0-1", b"bytes=99-"):
        assert ranged(response, value, b'"b"') is None
        assert ranged(response, value, b'W/"a"') is None
        assert ranged(response, value, MODIFIED) is None
        assert ranged(response, value, b'"a"') is not None


@pytest.mark.parametrize(
    ("date", "born", "partial"),
    [
        (None, AT + 1, True),
        (None, AT + 0.5, False),
        (b"Tue, 15 Nov 1994 12:45:27 GMT", AT, True),
        (MODIFIED, AT + 60, False),
        (b"soon", AT + 60, False),
    ],
)
def test_rfc9110_13_1_5_a_date_is_strong_by_the_date_of_the_response(
    date: bytes | None, born: float, partial: bool
) -> None:
    """By its `Date`; by when this cache took it, where it has none."""
    dated = [] if date is None else [(b"date", date)]
    response = stored((b"last-modified", MODIFIED), *dated, now=born)
    assert (ranged(response, b"bytes=0-1", MODIFIED) is not None) is partial
