"""The rules of HTTP caching: who is served, what is stored, and for how long."""

from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.errors import ConfigurationError
from asynctag.http.headers import CacheControl
from asynctag.http.rules import (
    Policy,
    RequestFacts,
    Storable,
    Store,
    may_be_stored,
    may_serve,
    not_modified,
    not_modified_headers,
    read_request,
    storable,
    stored_headers,
    telling_fields,
    why_bypass,
)

NOW = 1_700_000_000.0
GET = RequestFacts("GET")
Pairs = list[tuple[bytes, bytes]]


def wanting(**directives: Any) -> RequestFacts:
    return RequestFacts("GET", cache_control=CacheControl(**directives))


def date(seconds: float) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


# --- reading requests


def test_a_request_without_anything_of_interest_is_bare() -> None:
    assert read_request("GET", [(b"host", b"a"), (b"accept", b"*/*")]) == RequestFacts("GET")
    assert read_request("PROPFIND", []) == RequestFacts("PROPFIND")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"authorization", b"x")], RequestFacts("GET", authorization=True)),
        ([(b"cookie", b"a=1")], RequestFacts("GET", cookie=True)),
        ([(b"range", b"bytes=0-1")], RequestFacts("GET", range=b"bytes=0-1")),
        ([(b"if-range", b'"a"')], RequestFacts("GET", if_range=b'"a"')),
        ([(b"if-none-match", b'"a"'), (b"if-none-match", b'"b"')], RequestFacts("GET", if_none_match=b'"a", "b"')),
        ([(b"if-modified-since", b"x")], RequestFacts("GET", if_modified_since=b"x")),
        ([(b"cache-control", b"no-cache"), (b"cache-control", b"max-age=0")], wanting(no_cache=True, max_age=0)),
        ([(b"pragma", b"No-Cache")], wanting(no_cache=True)),
        ([(b"pragma", b"no-cache"), (b"cache-control", b"max-age=5")], wanting(max_age=5)),
        ([(b"pragma", b"x")], GET),
        ([(b"upgrade", b"websocket")], RequestFacts("GET", upgrade=True)),
        ([(b"upgrade", b"h2c")], GET),
        ([(b"content-length", b"0")], GET),
        ([(b"content-length", b"3")], RequestFacts("GET", body=True)),
        ([(b"content-length", b"x")], RequestFacts("GET", body=True)),
        ([(b"transfer-encoding", b"chunked")], RequestFacts("GET", body=True)),
        ([(b"if-match", b'"a"')], RequestFacts("GET", precondition=True)),
        ([(b"if-unmodified-since", b"x")], RequestFacts("GET", precondition=True)),
    ],
)
def test_the_facts_of_a_request_are_gathered(headers: Pairs, expected: RequestFacts) -> None:
    """Pragma counts only without Cache-Control: RFC 9111 §5.4."""
    assert read_request("GET", headers) == expected


@given(st.text(max_size=8), st.lists(st.tuples(st.sampled_from([b"cookie", b"pragma", b"range"]), st.binary())))
def test_reading_a_request_never_raises(method: str, headers: Pairs) -> None:
    read_request(method, headers)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (GET, None),
        (RequestFacts("HEAD"), None),
        (RequestFacts("POST"), "method"),
        (RequestFacts("get"), "method"),
        (RequestFacts("GET", authorization=True), "authorization"),
        (RequestFacts("GET", cookie=True), "cookie"),
        (RequestFacts("GET", range=b"bytes=0-1"), None),
        (wanting(no_store=True), "no-store"),
        (wanting(no_cache=True), None),
        (RequestFacts("GET", body=True), "body"),
        (RequestFacts("GET", upgrade=True), "upgrade"),
        (RequestFacts("GET", precondition=True), "precondition"),
    ],
)
def test_what_the_cache_must_not_touch_bypasses_it(request_: RequestFacts, reason: str | None) -> None:
    assert why_bypass(request_, vary=(), cookies=None) == reason


def test_credentials_that_the_key_holds_do_not_bypass() -> None:
    assert why_bypass(RequestFacts("GET", authorization=True), vary=(b"authorization",), cookies=None) is None
    assert why_bypass(RequestFacts("GET", cookie=True), vary=(b"cookie",), cookies=None) is None
    assert why_bypass(RequestFacts("GET", cookie=True), vary=(), cookies=("theme",)) is None
    assert why_bypass(RequestFacts("GET", cookie=True), vary=(), cookies=()) is None
    assert why_bypass(RequestFacts("GET", authorization=True), vary=(), cookies=()) == "authorization"


# --- serving


@pytest.mark.parametrize(
    ("request_", "age", "expected"),
    [
        (GET, 9.9, True),
        (GET, 10, False),
        (wanting(no_cache=True), 0, False),
        (wanting(max_age=5), 5, True),
        (wanting(max_age=5), 5.1, False),
        (wanting(max_age=0), 0.1, False),
        (wanting(min_fresh=3), 7, True),
        (wanting(min_fresh=3), 7.1, False),
        (wanting(max_stale=5), 15, True),
        (wanting(max_stale=5), 15.1, False),
        (wanting(max_age=12, max_stale=5), 13, False),
        (wanting(max_age=20, max_stale=5), 13, True),
        (wanting(only_if_cached=True), 1, True),
        (wanting(only_if_cached=True), 11, False),
    ],
)
def test_request_directives_rfc9111_5_2_1(request_: RequestFacts, age: float, expected: bool) -> None:
    assert may_serve(request_, age, 10) is expected


def test_stale_is_served_within_its_period_only_to_who_did_not_ask_for_fresh() -> None:
    assert may_serve(GET, 14, 10, stale=5)
    assert not may_serve(GET, 15, 10, stale=5)
    assert may_serve(wanting(only_if_cached=True), 14, 10, stale=5)
    assert not may_serve(wanting(max_age=100), 14, 10, stale=5)
    assert not may_serve(wanting(min_fresh=0), 14, 10, stale=5)


def test_max_stale_does_not_stretch_must_revalidate_rfc9111_5_2_2_2() -> None:
    assert not may_serve(wanting(max_stale=100), 11, 10, must_revalidate=True)


def test_only_if_cached_is_told() -> None:
    assert wanting(only_if_cached=True).only_if_cached
    assert not GET.only_if_cached


# --- policies


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ttl", 0),
        ("ttl", -1),
        ("ttl", float("inf")),
        ("ttl", float("nan")),
        ("ttl", True),
        ("ttl", "60"),
        ("stale_while_revalidate", -1),
        ("stale_if_error", float("inf")),
        ("jitter", 1),
        ("jitter", -0.1),
        ("vary", ("*",)),
        ("vary", ("accept language",)),
        ("vary", ("x-é",)),
        ("vary", ("",)),
        ("vary", "accept"),
        ("vary", (b"accept",)),
        ("cookies", ("a=b",)),
        ("cookies", "theme"),
        ("query", "page"),
        ("query", ("",)),
        ("statuses", {100}),
        ("statuses", {600}),
        ("statuses", {206}),
        ("statuses", {304}),
        ("statuses", ()),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        Policy(**{option: value})


def test_a_policy_is_normalised() -> None:
    policy = Policy(vary=("X-B", "accept", "x-b"), cookies=("b", "a"), query=("q", "a"))
    assert policy.vary == ("accept", "x-b")
    assert policy.vary_fields == (b"accept", b"x-b")
    assert policy.cookies == ("a", "b")
    assert policy.query == ("a", "q")
    assert replace(policy, ttl=5).ttl == 5


# --- storing


def stores(
    *headers: tuple[bytes, bytes],
    request: RequestFacts = GET,
    status: int = 200,
    policy: Policy | None = Policy(ttl=60),  # noqa: B008  frozen
    store: Store = "declared",
) -> Storable | str:
    return storable(request, status, headers, policy, store=store, now=NOW)


def cc(value: bytes) -> tuple[bytes, bytes]:
    return (b"cache-control", value)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([(b"set-cookie", b"a=1")], "set-cookie"),
        ([(b"Set-Cookie", b"a=1")], "set-cookie"),
        ([(b"vary", b"accept"), (b"vary", b"*")], "vary-*"),
        ([(b"vary", b"Cookie")], "vary-cookie"),
        ([(b"vary", b"Authorization")], "vary-authorization"),
        ([cc(b"no-store")], "no-store"),
        ([cc(b"private")], "private"),
        ([cc(b'private="x"')], "private"),
        ([cc(b"no-cache")], "no-cache"),
        ([cc(b"s-maxage=0")], "stale"),
        ([cc(b"s-maxage=x")], "stale"),
        ([(b"content-range", b"bytes 0-1/2")], "partial"),
        ([(b"content-type", b"text/event-stream; charset=utf-8")], "event-stream"),
        ([(b"trailer", b"etag")], "trailer"),
        ([(b"age", b"60")], "stale"),
    ],
)
def test_what_a_policy_never_stores_rfc9111_3(headers: Pairs, reason: str) -> None:
    assert stores(*headers) == reason
    public = [*headers, cc(b"public, max-age=50")]
    assert isinstance(stores(*public, policy=None), str)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_only_get_is_stored(method: str) -> None:
    assert stores(request=RequestFacts(method)) == "method"


@pytest.mark.parametrize("status", [201, 203, 206, 301, 304, 404, 500])
def test_only_the_statuses_of_the_policy_are_stored(status: int) -> None:
    assert stores(status=status) == "status"


@pytest.mark.parametrize("status", [200, 203, 204, 301, 302, 307, 308, 404, 410, 501])
def test_a_status_that_is_understood_is_stored_by_the_book_rfc9111_3(status: int) -> None:
    """Not otherwise: who says `public` of every answer seldom means those that a client can bring about."""
    said = cc(b"public, max-age=5")
    assert stores(said, status=status, policy=None, store="rfc9111") == Storable(5, public=True)
    assert (stores(said, status=status, policy=None) == "status") is (status != 200)


@pytest.mark.parametrize("status", [201, 206, 299, 304, 400, 429, 500, 503])
def test_others_are_not_whatever_they_say_rfc9111_3(status: int) -> None:
    """An error that says `public` by a framework's default would stay for everybody."""
    assert stores(cc(b"public, max-age=5"), status=status, policy=None, store="rfc9111") == "status"


def test_must_understand_stands_over_no_store_rfc9111_5_2_2_3() -> None:
    """Who understands the status stores it; who does not obeys `no-store`."""
    said = cc(b"public, max-age=5, must-understand, no-store")
    assert stores(said, policy=None) == Storable(5, public=True)
    odd = Policy(ttl=5, statuses=frozenset({200, 299}))
    assert stores(said, status=299, policy=odd) == "status"
    assert stores(status=299, policy=odd) == Storable(5)


TARGET, CDN = b"my-cache-control", b"cdn-cache-control"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([cc(b"no-store"), (CDN, b"max-age=9")], Storable(9, public=True)),
        ([cc(b"public, max-age=100"), (CDN, b"no-store")], "no-store"),
        ([cc(b"public, max-age=100"), (CDN, b"max-age=9"), (TARGET, b"max-age=7")], Storable(7, public=True)),
        ([cc(b"public, max-age=100"), (CDN, b"max-age=9, private"), (TARGET, b"")], "private"),
        ([cc(b"public, max-age=8"), (CDN, b"max-age=(")], Storable(8, public=True)),
        ([cc(b"public, max-age=8"), (CDN, b"public")], "no-freshness"),
        ([(b"expires", b"0"), (CDN, b"max-age=9")], Storable(9, public=True)),
    ],
)
def test_a_field_for_this_cache_stands_over_cache_control_rfc9213_2_2(headers: Pairs, expected: object) -> None:
    """And over `Expires`; the first of the names that is there and can be read. One that cannot counts as absent."""
    assert storable(GET, 200, headers, None, targets=(TARGET, CDN), now=NOW) == expected


SAYING = [
    (name, value)
    for name in (b"cache-control", b"Cache-Control", b"expires", CDN, CDN.title(), b"x-other", b"content-type")
    for value in (
        b"public, max-age=5",
        b"no-store",
        b"Private",
        b"no-store, must-understand, s-maxage=5",
        date(NOW + 9),
    )
]


@given(st.lists(st.sampled_from(SAYING), max_size=4), st.sampled_from(["declared", "rfc9111"]))
def test_a_glance_never_overlooks_what_may_be_stored(headers: Pairs, store: Store) -> None:
    """What it lets go by is not stored for any reason."""
    if not may_be_stored(headers, telling_fields((CDN,))):
        assert isinstance(storable(GET, 200, headers, None, store=store, targets=(CDN,), now=NOW), str)


@pytest.mark.parametrize("lines", [[b"pri vate, public, max-age=5"], [b'x="', b"no-store", b'", public, max-age=5']])
def test_a_glance_reads_directives_as_the_rules_do(lines: list[bytes]) -> None:
    """What is no directive forbids nothing: a name with a space in it, and what several lines quote together."""
    headers = [cc(line) for line in lines]
    assert not isinstance(storable(GET, 200, headers, None, now=NOW), str)
    assert may_be_stored(headers, telling_fields((CDN,)))


def test_a_usual_header_may_be_what_speaks_to_this_cache() -> None:
    for name in (b"server", b"Server"):
        assert may_be_stored([(name, b"max-age=5")], telling_fields((b"server", CDN)))
        assert not may_be_stored([(name, b"max-age=5")], telling_fields((CDN,)))


def test_a_field_for_caches_is_no_leave_for_authenticated_answers_rfc9111_3_5() -> None:
    asked = RequestFacts("GET", authorization=True)
    assert storable(asked, 200, [(CDN, b"max-age=9")], None, targets=(CDN,), now=NOW) == "authorization"


@pytest.mark.parametrize(
    ("modified", "made", "expected"),
    [
        (NOW - 1000, None, Storable(100)),
        (NOW - 1000, NOW - 500, Storable(50)),
        (NOW - 10**8, None, Storable(86_400)),
        (NOW + 50, None, "stale"),
        (None, None, "no-freshness"),
    ],
)
def test_freshness_is_guessed_where_a_policy_says_so_alone_rfc9111_4_2_2(
    modified: int | None, made: int | None, expected: object
) -> None:
    headers = [] if modified is None else [(b"last-modified", date(modified))]
    headers += [] if made is None else [(b"date", date(made))]
    assert stores(*headers, policy=Policy(heuristic=0.1)) == expected
    assert stores(*headers, policy=Policy()) == "no-freshness"
    assert stores(*headers, policy=Policy(ttl=7, heuristic=0.1)) == Storable(7)


def test_a_policy_may_list_statuses() -> None:
    assert stores(status=404, policy=Policy(ttl=5, statuses=frozenset({200, 404}))) == Storable(5)


@pytest.mark.parametrize(
    "request_", [RequestFacts("GET", cookie=True), RequestFacts("GET", body=True), wanting(no_store=True)]
)
def test_what_bypassed_the_cache_is_not_stored(request_: RequestFacts) -> None:
    assert stores(request=request_) == why_bypass(request_, vary=(), cookies=None)


def test_answers_to_cookies_are_stored_where_the_route_named_its_cookies() -> None:
    sent = RequestFacts("GET", cookie=True)
    assert isinstance(stores(request=sent, policy=Policy(ttl=5, cookies=())), Storable)
    assert stores((b"vary", b"cookie"), request=sent, policy=Policy(ttl=5, cookies=("a",))) == "vary-cookie"
    assert isinstance(stores((b"vary", b"cookie"), request=sent, policy=Policy(ttl=5, vary=("Cookie",))), Storable)


@pytest.mark.parametrize("declared", [b"public", b"s-maxage=9"])
def test_answers_to_authorization_are_stored_only_where_they_say_so_rfc9111_3_5(declared: bytes) -> None:
    sent = RequestFacts("GET", authorization=True)
    assert stores(request=sent) == "authorization"
    assert stores(cc(b"max-age=60"), request=sent, policy=None, store="rfc9111") == "authorization"
    assert isinstance(stores(cc(declared), request=sent), Storable)
    assert isinstance(stores(request=sent, policy=Policy(ttl=5, vary=("authorization",))), Storable)
    assert stores(cc(declared), request=replace(sent, cookie=True)) == "cookie"


def test_without_a_policy_sharing_and_freshness_must_be_declared() -> None:
    assert stores(cc(b"public, max-age=9"), policy=None) == Storable(9, public=True)
    assert stores(cc(b"s-maxage=9"), policy=None) == Storable(9, public=True, must_revalidate=True)
    assert stores(cc(b"max-age=9"), policy=None) == "undeclared"
    assert stores(cc(b"public"), policy=None) == "no-freshness"
    assert stores(policy=None, store="rfc9111") == "no-freshness"


def test_rfc9111_takes_max_age_and_expires_alone() -> None:
    assert stores(cc(b"max-age=9"), policy=None, store="rfc9111") == Storable(9, public=True)
    made, expires = (b"date", date(NOW - 100)), (b"expires", date(NOW - 70))
    assert stores(made, expires, policy=None, store="rfc9111") == Storable(30, public=True)
    assert stores((b"expires", date(NOW + 7)), policy=None, store="rfc9111") == Storable(7, public=True)


def test_s_maxage_over_max_age_over_expires_rfc9111_4_2_1() -> None:
    expires = (b"expires", date(NOW + 100))
    both = stores(cc(b"public, max-age=9, s-maxage=4"), expires, policy=None)
    assert both == Storable(4, public=True, must_revalidate=True)
    assert stores(cc(b"public, max-age=9"), expires, policy=None) == Storable(9, public=True)


@pytest.mark.parametrize("expires", [b"0", b"", b"soon", date(NOW - 1)])
def test_expires_that_has_passed_or_is_no_date_is_stale_rfc9111_5_3(expires: bytes) -> None:
    assert stores(cc(b"public"), (b"expires", expires), policy=None) == "stale"


def test_the_policys_ttl_is_cut_by_s_maxage_and_age_but_not_by_max_age() -> None:
    assert stores() == Storable(60)
    assert stores(cc(b"s-maxage=20")) == Storable(20, public=True, must_revalidate=True)
    assert stores(cc(b"s-maxage=90")) == Storable(60, public=True, must_revalidate=True)
    assert stores(cc(b"max-age=0")) == Storable(60)
    assert stores((b"expires", b"0")) == Storable(60)
    assert stores((b"age", b"20")) == Storable(40)


def test_a_policy_without_ttl_takes_the_responses_own() -> None:
    assert stores(policy=Policy()) == "no-freshness"
    assert stores(cc(b"max-age=9"), policy=Policy()) == Storable(9)


def test_stale_periods_come_from_the_policy_or_else_from_the_response_rfc5861() -> None:
    field = cc(b"public, max-age=9, stale-while-revalidate=5, stale-if-error=6")
    assert stores(field, policy=None) == Storable(9, 5, 6, public=True)
    assert stores(field, policy=Policy(ttl=9, stale_while_revalidate=1, stale_if_error=0)) == Storable(9, 1, 0, True)
    assert stores(policy=Policy(ttl=9, stale_while_revalidate=1)) == Storable(9, 1, 0)


@pytest.mark.parametrize("directive", [b"must-revalidate", b"proxy-revalidate", b"s-maxage=9"])
def test_stale_periods_give_way_to_directives_against_them_rfc9111_4_2_4(directive: bytes) -> None:
    field = cc(b"stale-while-revalidate=5, stale-if-error=6, " + directive)
    found = stores(field, policy=Policy(ttl=9, stale_while_revalidate=7))
    assert isinstance(found, Storable)
    assert (found.stale_while_revalidate, found.stale_if_error) == (0, 0)


def test_hits_before_routing_need_a_declaration() -> None:
    def public(*headers: tuple[bytes, bytes], policy: Policy | None = None, store: Store = "declared") -> bool:
        found = stores(*headers, policy=policy or Policy(ttl=5), store=store)
        assert isinstance(found, Storable)
        return found.public

    assert not public()
    assert not public(cc(b"max-age=5"))
    assert public(policy=Policy(ttl=5, public=True))
    assert public(cc(b"public"))
    assert public(cc(b"s-maxage=5"))
    assert public(cc(b"max-age=5"), store="rfc9111")
    assert not public(store="rfc9111")


def test_fields_of_one_connection_are_not_stored_rfc9111_3_1() -> None:
    kept = [(b"content-type", b"text/plain"), (b"etag", b'"a"'), (b"x-a", b"1"), (b"x-a", b"2")]
    dropped = [
        (b"connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"keep-alive", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"proxy-authenticate", b"x"),
        (b"Age", b"3"),
        (b"cache-status", b"x"),
        (b"set-cookie", b"a=1"),
        (b"content-length", b"5"),
        (b"upgrade", b"x"),
        (b"te", b"x"),
        (b"trailer", b"x"),
    ]
    assert stored_headers([*dropped, *kept]) == tuple(kept)


# --- validation


def test_if_none_match_goes_before_if_modified_since_rfc9110_13_2_2() -> None:
    modified = date(NOW)
    both = RequestFacts("GET", if_none_match=b'"b"', if_modified_since=modified)
    assert not not_modified(both, b'"a"', modified)
    assert not_modified(both, b'"b"', None)
    since = RequestFacts("GET", if_modified_since=modified)
    assert not_modified(since, None, modified)
    assert not_modified(since, b'"a"', date(NOW - 1))
    assert not not_modified(since, b'"a"', date(NOW + 1))
    assert not not_modified(replace(since, if_modified_since=b"x"), None, modified)
    assert not not_modified(since, None, None)
    assert not not_modified(GET, b'"a"', modified)
    assert not not_modified(replace(both, method="POST"), b'"b"', None)
    assert not_modified(RequestFacts("HEAD", if_none_match=b"*"), None, None)


def test_a_304_keeps_only_what_updates_a_stored_response_rfc9110_15_4_5() -> None:
    etag, modified, rest = (b"etag", b'"a"'), (b"last-modified", b"x"), (b"content-type", b"y")
    assert not_modified_headers([etag, modified, rest, (b"vary", b"a")]) == (etag, (b"vary", b"a"))
    assert not_modified_headers([modified, rest]) == (modified,)
