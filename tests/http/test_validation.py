"""What the application is asked of a stored response, and what its answer changes (RFC 9111 §4.3, §3.2)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.headers import entity_tag, make_etag
from asynctag.http.rules import PLAIN_GET, Headers, not_modified, read_request
from asynctag.http.stored import StoredResponse, make_stored
from asynctag.http.validation import conditional, confirms, freshened, head_matches, validators

DATE = b"Tue, 15 Nov 1994 12:45:26 GMT"
SAME_DATE = b"Tuesday, 15-Nov-94 12:45:26 GMT"
LATER = b"Wed, 16 Nov 1994 12:45:26 GMT"
BODY = b"body"

fields = st.lists(
    st.tuples(
        st.sampled_from([b"etag", b"ETag", b"last-modified", b"content-length", b"connection", b"x"]),
        st.binary(max_size=30) | st.sampled_from([b'"a"', b'W/"a"', DATE, b"4", b"x", b"9" * 6_000]),
    ),
    max_size=6,
)


def stored(*headers: tuple[bytes, bytes], status: int = 200, body: bytes = BODY) -> StoredResponse:
    return make_stored(status, headers, body, now=1e9, age=0.0, public=True, with_cookies=False)


def etagged(etag: bytes) -> StoredResponse:
    return stored((b"etag", etag))


# --- RFC 9110 §8.8.3: entity tags


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"a"', (b'"a"', False)),
        (b'W/"a"', (b'"a"', True)),
        (b' "a"\t', (b'"a"', False)),
        (b'""', (b'""', False)),
        (b'"\xe9,\\"', (b'"\xe9,\\"', False)),
        (None, None),
        (b"", None),
        (b"a", None),
        (b"*", None),
        (b'w/"a"', None),
        (b'W/ "a"', None),
        (b'"a', None),
        (b'"a b"', None),
        (b'"a"b"', None),
        (b'"a", "b"', None),
    ],
)
def test_rfc9110_8_8_3_exactly_one_entity_tag_is_read(value: bytes | None, expected: tuple[bytes, bool] | None) -> None:
    assert entity_tag(value) == expected


# --- RFC 9111 §4.3.1: sending a validation request


def test_4_3_1_the_application_is_asked_with_the_validators_it_gave() -> None:
    both = stored((b"etag", b'W/"a"'), (b"last-modified", DATE))
    assert validators(both) == [(b"if-none-match", b'W/"a"'), (b"if-modified-since", DATE)]
    assert validators(etagged(b'"a"')) == [(b"if-none-match", b'"a"')]
    assert validators(stored((b"last-modified", DATE))) == [(b"if-modified-since", DATE)]
    assert validators(stored()) == []


def test_4_3_1_an_etag_that_this_cache_made_is_not_sent() -> None:
    assert validators(etagged(make_etag(BODY))) == []
    assert validators(stored((b"etag", make_etag(BODY)), (b"last-modified", DATE))) == [(b"if-modified-since", DATE)]
    assert validators(etagged(make_etag(b"another"))) == [(b"if-none-match", make_etag(b"another"))]


@pytest.mark.parametrize("etag", [b"*", b"a", b'"a", "b"', b""])
def test_4_3_1_what_is_no_entity_tag_is_not_sent(etag: bytes) -> None:
    """`If-None-Match: *` is true of every representation, and a list of others than the stored one."""
    assert validators(etagged(etag)) == []


@pytest.mark.parametrize("value", [b"yesterday", b"", b"0"])
def test_4_3_1_what_is_no_date_is_not_sent(value: bytes) -> None:
    assert validators(stored((b"last-modified", value))) == []


@pytest.mark.parametrize("status", [203, 204, 301, 404, 410])
def test_4_3_1_only_a_200_is_validated(status: int) -> None:
    assert validators(stored((b"etag", b'"a"'), (b"last-modified", DATE), status=status)) == []


def test_4_3_1_the_clients_own_preconditions_and_ranges_are_replaced() -> None:
    own = [b"If-Match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"Range"]
    request = [(b"host", b"h"), *((name, b'"z"') for name in own), (b"cache-control", b"no-cache"), (b"accept", b"a")]
    kept = [(b"host", b"h"), (b"cache-control", b"no-cache"), (b"accept", b"a")]
    assert conditional(request, etagged(b'"a"')) == [*kept, (b"if-none-match", b'"a"')]
    assert conditional(request, stored()) == kept


@pytest.mark.parametrize("etag", [b'"a"', b'W/"a"'])
def test_4_3_1_an_application_that_compares_as_this_cache_does_answers_304(etag: bytes) -> None:
    response = stored((b"etag", etag), (b"last-modified", DATE))
    asked = read_request("GET", conditional([(b"if-none-match", b'"z"')], response))
    assert not_modified(asked, etag, DATE)
    assert not not_modified(asked, b'"b"', DATE)
    assert not not_modified(PLAIN_GET, etag, DATE)


# --- RFC 9111 §4.3.4: freshening stored responses upon validation


@pytest.mark.parametrize(
    ("own", "received", "confirmed"),
    [
        (b'"a"', b'"a"', True),
        (b'"a"', b'"b"', False),
        (b'W/"a"', b'"a"', False),
        (b'"a"', b'W/"a"', True),
        (b'W/"a"', b'W/"a"', True),
        (b'W/"a"', b'W/"b"', False),
        (b'"a"', b"a", False),
        (b"a", b"a", False),
        (b'"a"', b'"A"', False),
        (b'"a"', b"*", False),
    ],
)
def test_4_3_4_an_etag_selects_the_stored_response(own: bytes, received: bytes, confirmed: bool) -> None:
    assert confirms(etagged(own), [(b"ETag", received)]) is confirmed


def test_4_3_4_a_304_with_an_etag_is_not_about_a_response_without_one() -> None:
    assert not confirms(stored((b"last-modified", DATE)), [(b"etag", b'"a"'), (b"last-modified", DATE)])


def test_4_3_4_a_strong_etag_decides_alone() -> None:
    response = stored((b"etag", b'"a"'), (b"last-modified", DATE))
    assert confirms(response, [(b"etag", b'"a"'), (b"last-modified", LATER)])
    assert not confirms(response, [(b"etag", b'"b"'), (b"last-modified", DATE)])


def test_4_3_4_weak_validators_all_have_to_fit() -> None:
    response = stored((b"etag", b'W/"a"'), (b"last-modified", DATE))
    assert confirms(response, [(b"etag", b'W/"a"'), (b"last-modified", SAME_DATE)])
    assert not confirms(response, [(b"etag", b'W/"a"'), (b"last-modified", LATER)])
    assert not confirms(etagged(b'W/"a"'), [(b"etag", b'W/"a"'), (b"last-modified", DATE)])


@pytest.mark.parametrize(
    ("received", "confirmed"), [(DATE, True), (SAME_DATE, True), (LATER, False), (b"", False), (b"0", False)]
)
def test_4_3_4_last_modified_selects_the_stored_response(received: bytes, confirmed: bool) -> None:
    response = stored((b"etag", b'"a"'), (b"last-modified", DATE))
    assert confirms(response, [(b"last-modified", received)]) is confirmed
    assert not confirms(etagged(b'"a"'), [(b"last-modified", received)])


def test_4_3_4_a_304_without_validators_answers_the_question_that_was_asked() -> None:
    assert confirms(etagged(b'"a"'), [(b"date", LATER)])
    assert confirms(stored((b"last-modified", DATE)), [])


def test_4_3_4_a_validator_that_is_sent_twice_is_none_that_can_be_read() -> None:
    assert not confirms(etagged(b'"a"'), [(b"etag", b'"a"'), (b"etag", b'"b"')])
    assert not confirms(etagged(b'"a"'), [(b"etag", b'"b"'), (b"etag", b'"a"')])
    twice = [(b"last-modified", DATE), (b"last-modified", LATER)]
    assert not confirms(stored((b"last-modified", DATE)), twice)


# --- RFC 9111 §3.2: updating stored header fields


def test_3_2_each_field_replaces_all_lines_of_its_name() -> None:
    old = ((b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3"), (b"content-length", b"4"))
    new = [(b"X-A", b"8"), (b"x-c", b"9"), (b"x-a", b"7")]
    assert freshened(old, new) == (
        (b"x-b", b"2"),
        (b"content-length", b"4"),
        (b"x-a", b"8"),
        (b"x-c", b"9"),
        (b"x-a", b"7"),
    )
    assert freshened(old, []) == old


@pytest.mark.parametrize(
    "name",
    [
        b"cache-control",
        b"cdn-cache-control",
        b"date",
        b"expires",
        b"last-modified",
        b"vary",
        b"content-disposition",
        b"content-language",
        b"content-location",
        b"content-security-policy",
        b"content-foo",
        b"x-frame-options",
    ],
)
def test_3_2_what_is_said_of_the_response_is_updated(name: bytes) -> None:
    assert freshened(((name, b"old"),), [(name.title(), b"new")]) == ((name, b"new"),)
    assert freshened((), [(name, b"new")]) == ((name, b"new"),)


@pytest.mark.parametrize(
    "name",
    [
        b"content-length",
        b"content-encoding",
        b"content-type",
        b"content-range",
        b"content-md5",
        b"content-digest",
        b"digest",
        b"repr-digest",
        b"etag",
    ],
)
def test_3_2_what_the_stored_body_is_read_by_stays(name: bytes) -> None:
    assert freshened(((name, b"old"),), [(name.title(), b"new")]) == ((name, b"old"),)
    assert freshened((), [(name, b"new")]) == ()


@pytest.mark.parametrize(
    "name",
    [
        b"age",
        b"cache-status",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ],
)
def test_3_2_what_is_never_stored_is_not_added(name: bytes) -> None:
    assert freshened(((b"x", b"1"),), [(name.title(), b"new")]) == ((b"x", b"1"),)


def test_3_2_what_connection_lists_is_of_one_connection() -> None:
    update = [
        (b"Connection", b"X-A, close"),
        (b"x-a", b"new"),
        (b"x-b", b"new"),
        (b"connection", b"x-c"),
        (b"x-c", b""),
    ]
    assert freshened(((b"x-a", b"old"), (b"x-b", b"old")), update) == ((b"x-a", b"old"), (b"x-b", b"new"))


def test_3_2_the_defaults_of_a_framework_on_a_304_do_not_change_how_the_body_is_read() -> None:
    response = stored((b"content-type", b"text/html"), (b"content-encoding", b"gzip"), (b"etag", b'"a"'))
    bare = [(b"content-length", b"0"), (b"content-type", b"application/json"), (b"etag", b'W/"a"')]
    assert freshened(response.headers, bare) == response.headers


# --- RFC 9111 §4.3.5: freshening responses with HEAD


@pytest.mark.parametrize(
    ("received", "matched"),
    [
        ([], True),
        ([(b"x", b"1")], True),
        ([(b"ETag", b'"a"')], True),
        ([(b"etag", b'"b"')], False),
        ([(b"etag", b'W/"a"')], False),
        ([(b"etag", b"a")], False),
        ([(b"etag", b'"a"'), (b"etag", b'"b"')], False),
        ([(b"last-modified", DATE)], True),
        ([(b"last-modified", SAME_DATE)], True),
        ([(b"last-modified", LATER)], False),
        ([(b"last-modified", b"0")], False),
        ([(b"Content-Length", b" 4 ")], True),
        ([(b"content-length", b"5")], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"")], False),
        ([(b"content-length", b"4, 4")], False),
        ([(b"content-length", b"9" * 6_000)], False),
        ([(b"etag", b'"a"'), (b"last-modified", DATE), (b"content-length", b"4")], True),
        ([(b"etag", b'"a"'), (b"last-modified", DATE), (b"content-length", b"5")], False),
        ([(b"etag", b'"a"'), (b"last-modified", LATER), (b"content-length", b"4")], False),
        ([(b"etag", b'"b"'), (b"last-modified", DATE), (b"content-length", b"4")], False),
    ],
)
def test_4_3_5_a_head_matches_if_all_it_has_is_as_stored(received: Headers, matched: bool) -> None:
    assert head_matches(stored((b"etag", b'"a"'), (b"last-modified", DATE)), received) is matched


def test_4_3_5_a_validator_that_the_stored_response_lacks_does_not_match() -> None:
    assert not head_matches(stored(), [(b"etag", b'"a"')])
    assert not head_matches(etagged(make_etag(BODY)), [(b"etag", b'"a"')])
    assert not head_matches(etagged(b"a"), [(b"etag", b"a")])
    assert not head_matches(stored(), [(b"last-modified", DATE)])
    assert head_matches(etagged(b'W/"a"'), [(b"etag", b'W/"a"')])


# --- whatever is sent


@given(fields, fields)
def test_nothing_that_is_sent_raises(own: list[tuple[bytes, bytes]], received: list[tuple[bytes, bytes]]) -> None:
    response = stored(*own)
    assert conditional(received, response)[len(received) :] == validators(response)
    assert isinstance(confirms(response, received), bool)
    assert isinstance(head_matches(response, received), bool)
    updated = freshened(response.headers, received)
    assert dict(updated)[b"content-length"] == b"4"
    assert freshened(updated, received) == updated
