"""The syntax of HTTP caching: what is read wrong here is served wrong everywhere."""

import subprocess
import sys
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.headers import (
    DELTA_MAX,
    CacheControl,
    cache_status,
    cookie_values,
    etag_matches,
    etag_matches_strongly,
    http_date,
    make_etag,
    parse_age,
    parse_cache_control,
    parse_targeted,
    parse_vary,
    sort_query,
    split_list,
)

lines = st.lists(st.binary(max_size=60) | st.text('max-ge=0"\\,; \tnostrpuvic19').map(str.encode), max_size=4)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([], CacheControl()),
        ([b"max-age=60, public"], CacheControl(max_age=60, public=True)),
        ([b"MAX-AGE=60", b"S-MaxAge = 5"], CacheControl(max_age=60, s_maxage=5)),
        ([b'max-age="60"'], CacheControl(max_age=60)),
        ([b"max-age=060"], CacheControl(max_age=60)),
        ([b"no-store,no-cache,private"], CacheControl(no_store=True, no_cache=True, private=True)),
        ([b'private="set-cookie, x", max-age=1'], CacheControl(private=True, max_age=1)),
        ([b'no-cache="a"'], CacheControl(no_cache=True)),
        ([b"no-store=1"], CacheControl(no_store=True)),
        ([b"public=1"], CacheControl()),
        ([b"max-stale, min-fresh=3"], CacheControl(max_stale=DELTA_MAX, min_fresh=3)),
        ([b"stale-while-revalidate=9, stale-if-error=8"], CacheControl(stale_while_revalidate=9, stale_if_error=8)),
        (
            [b"must-revalidate, proxy-revalidate, only-if-cached"],
            CacheControl(must_revalidate=True, proxy_revalidate=True, only_if_cached=True),
        ),
        ([b"no-transform, must-understand"], CacheControl(no_transform=True, must_understand=True)),
        ([b"no-transform=1, must-understand=1"], CacheControl(no_transform=True)),
        ([b"unknown=3, , x, immutable"], CacheControl()),
    ],
)
def test_cache_control_directives_are_read(field: list[bytes], expected: CacheControl) -> None:
    assert parse_cache_control(field) == expected


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+1", b"1.5", b"x", b"1 2", b'"', b'"1', b"'1'", "٣".encode(), b"1;2", b'""']
)
def test_freshness_that_cannot_be_read_is_stale_rfc9111_4_2_1(value: bytes) -> None:
    assert parse_cache_control([b"max-age=" + value]).max_age == 0
    assert parse_cache_control([b"s-maxage=" + value]).s_maxage == 0


def test_a_directive_without_its_argument_is_stale_rfc9111_4_2_1() -> None:
    assert parse_cache_control([b"max-age"]).max_age == 0


def test_of_conflicting_duplicates_the_stricter_counts_rfc9111_4_2_1() -> None:
    assert parse_cache_control([b"max-age=60, max-age=5"]).max_age == 5
    assert parse_cache_control([b"max-age=5", b"max-age=60"]).max_age == 5
    assert parse_cache_control([b"max-age=5, max-age=x"]).max_age == 0
    assert parse_cache_control([b"min-fresh=5, min-fresh=60"]).min_fresh == 60


@pytest.mark.parametrize("value", [b"2147483648", b"2147483649", b"9" * 20, b"9" * 10_000])
def test_huge_times_are_capped_rfc9111_1_2_2(value: bytes) -> None:
    assert parse_cache_control([b"max-age=" + value]).max_age == DELTA_MAX


def test_a_quoted_directive_is_no_directive() -> None:
    assert parse_cache_control([b'x="no-store, max-age=1"']) == CacheControl()
    assert parse_cache_control([rb'x="a\", no-store, ", public']) == CacheControl(public=True)


def test_no_directive_hides_behind_a_quote_that_is_never_closed() -> None:
    assert parse_cache_control([b'x="a, no-store']).no_store


def test_a_long_field_is_read_as_a_short_one() -> None:
    assert parse_cache_control([b"x=" + b"y" * 500 + b", max-age=7"]) == CacheControl(max_age=7)


@given(lines)
def test_cache_control_never_raises(field: list[bytes]) -> None:
    parse_cache_control(field)


@given(st.text('a,"\\ ').map(str.encode))
def test_splitting_a_list_loses_nothing(line: bytes) -> None:
    assert b",".join(split_list(line)) == line


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ([b"max-age=60"], CacheControl(max_age=60)),
        (
            [b"max-age=60, must-revalidate", b"stale-if-error=5"],
            CacheControl(60, must_revalidate=True, stale_if_error=5),
        ),
        ([b"no-store, no-cache, private"], CacheControl(no_store=True, no_cache=True, private=True)),
        ([b'no-cache="a, b", private="c"'], CacheControl(no_cache=True, private=True)),
        ([b"public, must-understand"], CacheControl(public=True, must_understand=True)),
        ([b"max-age=2147483649"], CacheControl(max_age=DELTA_MAX)),
        ([b"none"], CacheControl()),
        ([b'max-age=5;unit=minutes, foo=bar, list=(1 "a");q=1, bytes=:YQ==:'], CacheControl(max_age=5)),
    ],
)
def test_a_targeted_field_is_a_dictionary_of_directives_rfc9213_2_1(field: list[bytes], expected: CacheControl) -> None:
    assert parse_targeted(field) == expected


def test_of_a_directive_that_comes_twice_the_last_counts_rfc9651_4_2_2() -> None:
    """A dictionary says so itself: the rule of `Cache-Control` for conflicts is not needed, nor its to decide."""
    assert parse_targeted([b"max-age=5, max-age=60"]) == CacheControl(max_age=60)


@pytest.mark.parametrize(
    "field",
    [
        [],
        [b""],
        [b"  "],
        [b"max-age=10000, &&&&&"],
        [b"MaX-aGe=3600"],
        [b"max-age =100"],
        [b"max-age= 100"],
        [b"max-age=60,"],
        [b"max-age=60, , no-store"],
        [b"max-age=060x"],
        [b'max-age="60'],
        ["max-age=60, x=é".encode()],
    ],
)
def test_a_targeted_field_that_is_empty_or_does_not_parse_is_not_there_rfc9213_2_2(field: list[bytes]) -> None:
    assert parse_targeted(field) is None


@pytest.mark.parametrize("value", [b'"10000"', b"10.5", b"-1", b"soon", b"?1", b"(60)", b":YQ==:", b"@60"])
def test_a_targeted_time_of_another_type_is_stale_rfc9213_2_1(value: bytes) -> None:
    """It is never taken for the time that it resembles, and never for no time at all."""
    assert parse_targeted([b"max-age=" + value]) == CacheControl(max_age=0)
    assert parse_targeted([b"s-maxage=" + value]) == CacheControl(s_maxage=0)


def test_a_targeted_time_without_a_value_is_stale_rfc9213_2_1() -> None:
    assert parse_targeted([b"max-age"]) == CacheControl(max_age=0)


def test_a_targeted_flag_of_another_type_never_allows_more_rfc9213_2_1() -> None:
    assert parse_targeted([b"no-store=?0, private=1"]) == CacheControl(no_store=True, private=True)
    assert parse_targeted([b"public=?0, must-understand=1"]) == CacheControl()


@given(lines)
def test_a_targeted_field_never_raises(field: list[bytes]) -> None:
    parse_targeted(field)


def test_vary_is_sorted_lower_case_and_unique() -> None:
    assert parse_vary([b"Accept, cookie", b"accept ,, X-A"]) == (b"accept", b"cookie", b"x-a")
    assert parse_vary([]) == ()


@pytest.mark.parametrize("value", [b"*", b"accept, *", b"a b", b'"accept"', b"a\0"])
def test_vary_that_no_request_matches_is_none_rfc9111_4_1(value: bytes) -> None:
    assert parse_vary([value]) is None


@given(lines)
def test_vary_and_age_never_raise(field: list[bytes]) -> None:
    parse_vary(field)
    parse_age(field)


def test_age_is_its_first_member_rfc9111_5_1() -> None:
    assert parse_age([b"7, 100"]) == 7
    assert parse_age([b"7", b"x"]) == 7
    assert parse_age([]) is None
    assert parse_age([b"-1"]) is None
    assert parse_age([b"x, 7"]) is None


@pytest.mark.parametrize(
    ("field", "etag", "expected"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', True),
        (b'"a"', b'W/"a"', True),
        (b'"b", "a"', b'"a"', True),
        (b' ,, "b" ,, W/"a" , ', b'"a"', True),
        (b'"x,y", "a"', b'"a"', True),
        (b'"x, \\", "a"', b'"a"', False),
        (b'"a,b"', b'"a"', False),
        (b"*", b'"a"', True),
        (b'*, "b"', b'"a"', False),
        (b"a", b'"a"', False),
        (b'w/"a"', b'"a"', False),
        (b'"a" "b"', b'"a"', False),
        (b'"b"; "a"', b'"a"', False),
        (b'"a", junk', b'"a"', False),
        (b'"a", ,', b'"a"', True),
        (b'"a', b'"a"', False),
        (b'""', b'""', True),
        (b"", b'"a"', False),
        (b'"A"', b'"a"', False),
        (b'"a"', b"a", False),
    ],
)
def test_if_none_match_compares_weakly_rfc9110_13_1_2(field: bytes, etag: bytes, expected: bool) -> None:
    assert etag_matches(field, etag) is expected


@given(st.binary(max_size=80), st.binary(max_size=20))
def test_if_none_match_never_raises_and_matches_only_what_it_holds(field: bytes, etag: bytes) -> None:
    assert not etag_matches(field, etag) or field.strip(b" \t") == b"*" or etag.removeprefix(b"W/") in field


@pytest.mark.parametrize(
    ("field", "etag", "expected"),
    [
        (b'"a"', b'"a"', True),
        (b'W/"a"', b'"a"', False),
        (b'"a"', b'W/"a"', False),
        (b'W/"a"', b'W/"a"', False),
        (b'W/"a", "a"', b'"a"', True),
        (b'"b", "a"', b'"a"', True),
        (b'"b"', b'"a"', False),
        (b"*", b'"a"', True),
        (b'"a", junk', b'"a"', False),
        (b"a", b"a", False),
    ],
)
def test_if_match_compares_strongly_rfc9110_8_8_3_2(field: bytes, etag: bytes, expected: bool) -> None:
    assert etag_matches_strongly(field, etag) is expected


@given(st.binary(max_size=80), st.binary(max_size=20))
def test_what_matches_strongly_matches_weakly_rfc9110_8_8_3_2(field: bytes, etag: bytes) -> None:
    assert etag_matches(field, etag) or not etag_matches_strongly(field, etag)


def test_an_etag_is_strong_and_matches_itself() -> None:
    etag = make_etag(b"body")
    assert etag.startswith(b'"')
    assert etag.endswith(b'"')
    assert etag_matches(etag, etag)
    assert etag != make_etag(b"other")


def test_an_etag_is_the_same_in_every_process() -> None:
    code = "from asynctag.http.headers import make_etag; print(make_etag(b'body').decode())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip().encode() == make_etag(b"body")


@pytest.mark.parametrize(
    "text", [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_a_date_are_read_rfc9110_5_6_7(text: bytes) -> None:
    assert http_date(text) == 784111777.0


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b"-1",
        b"soon",
        b"Sun, 99 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 +0200",
        b"6 Nov 1994 08:49:37 +0200",
        b"GMT",
    ],
)
def test_what_is_no_http_date_is_none(text: bytes) -> None:
    assert http_date(text) is None


@given(st.binary(max_size=50) | st.text("SunNov 0123456789:,-GMT", max_size=40).map(str.encode))
def test_reading_a_date_never_raises(text: bytes) -> None:
    http_date(text)


@given(st.integers(0, 4_000_000_000))
def test_a_date_written_is_read_back(seconds: int) -> None:
    assert http_date(formatdate(seconds, usegmt=True).encode()) == seconds


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", b""),
        (b"b=1&a=2", b"a=2&b=1"),
        (b"a=2&a=1", b"a=2&a=1"),
        (b"b=1&a=2&b=0&a=1", b"a=2&a=1&b=1&b=0"),
        (b"a", b"a"),
        (b"a=", b"a="),
        (b"b=1;a=2", b"b=1;a=2"),
        (b"a=%7e&A=%7E", b"A=%7E&a=%7e"),
    ],
)
def test_a_query_is_sorted_by_name_alone(query: bytes, expected: bytes) -> None:
    assert sort_query(query, None) == expected


def test_values_of_one_name_keep_their_order_however_the_name_is_spelled() -> None:
    assert sort_query(b"a=1&%61=2", None) != sort_query(b"%61=2&a=1", None)
    assert sort_query(b"a+b=1&a%20b=2", None) != sort_query(b"a%20b=2&a+b=1", None)


def test_only_allowed_names_stay() -> None:
    assert sort_query(b"utm=x&b=1&a=2&utm=y", ("a", "b")) == b"a=2&b=1"
    assert sort_query(b"a", ("b",)) == b""
    assert sort_query(b"b=1", ()) == b""


def test_an_allowed_name_is_kept_however_it_is_spelled() -> None:
    assert sort_query(b"%61=1&x=2", ("a",)) == b"%61=1"


def test_a_semicolon_separates_nothing() -> None:
    assert sort_query(b"a=1;utm=2", ("a",)) == b"a=1;utm=2"
    assert sort_query(b"utm=1;a=2", ("a",)) == b""


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.binary(max_size=3)), max_size=6), st.randoms())
def test_the_order_between_names_does_not_matter(pairs: list[tuple[bytes, bytes]], random: object) -> None:
    pairs = [(name, value.replace(b"&", b"")) for name, value in pairs]
    regrouped = sorted(pairs, key=lambda pair: pair[0], reverse=True)
    join = b"&".join
    one, other = (join(name + b"=" + value for name, value in some) for some in (pairs, regrouped))
    assert sort_query(one, None) == sort_query(other, None)


@given(st.binary(max_size=60))
def test_sorting_a_query_never_raises_and_loses_nothing(query: bytes) -> None:
    once = sort_query(query, None)
    assert sorted(once.split(b"&")) == sorted(query.split(b"&"))
    assert sort_query(once, None) == once
    sort_query(query, ("a", "\ufffd"))


def test_cookies_are_picked_by_name_in_the_order_asked_rfc6265_4_2() -> None:
    assert cookie_values([b"a=1; b=2;c = 3"], ["c", "a", "x"]) == (("c", "3"), ("a", "1"), ("x", None))
    assert cookie_values([b"a=; b"], ["a", "b"]) == (("a", ""), ("b", None))
    assert cookie_values([b"a=x=y"], ["a"]) == (("a", "x=y"),)


def test_a_cookie_sent_twice_gives_all_its_values() -> None:
    """Starlette takes the last, others the first: a key that held one could be poisoned with the other."""
    assert cookie_values([b"a=1; a=2"], ["a"]) == (("a", "1; 2"),)
    assert cookie_values([b"a=1", b"a=2"], ["a"]) == (("a", "1; 2"),)
    assert cookie_values([b"a=1; a\xa0=2"], ["a"]) == (("a", "1; 2"),)


@given(st.lists(st.binary(max_size=40), max_size=3))
def test_reading_cookies_never_raises(field: list[bytes]) -> None:
    assert [name for name, _ in cookie_values(field, ["a", "b"])] == ["a", "b"]


def test_cache_status_members_rfc9211() -> None:
    assert cache_status(hit=True, ttl=57.9) == b"asynctag; hit; ttl=57"
    assert cache_status(hit=True, ttl=-0.5) == b"asynctag; hit; ttl=-1"
    assert cache_status(fwd="uri-miss", stored=True) == b"asynctag; fwd=uri-miss; stored"
    assert (
        cache_status(fwd="stale", stored=True, detail="tag product:635")
        == b'asynctag; fwd=stale; stored; detail="tag product:635"'
    )
    assert cache_status(hit=True, name="my cache") == b'"my cache"; hit'


def test_the_parameters_of_cache_status_keep_one_order_rfc9211_2() -> None:
    assert (
        cache_status(detail="d", key="GET /a", collapsed=True, stored=True, ttl=3, fwd_status=304, fwd="stale")
        == b'asynctag; fwd=stale; fwd-status=304; ttl=3; stored; collapsed; key="GET /a"; detail="d"'
    )


def test_what_means_nothing_without_fwd_is_left_out_rfc9211_2_3() -> None:
    assert cache_status(hit=True, fwd_status=304, collapsed=True) == b"asynctag; hit"


def test_a_key_is_a_structured_string_rfc9211_2_7() -> None:
    assert cache_status(hit=True, key='a"b\r\né') == b'asynctag; hit; key="a\\"b%0D%0A%C3%A9"'


def test_a_response_is_not_both_hit_and_forwarded_rfc9211_2_2() -> None:
    with pytest.raises(ValueError, match="not both"):
        cache_status(hit=True, fwd="miss")


def test_detail_is_a_structured_string_rfc9651_3_3_3() -> None:
    assert cache_status(detail='a"b\\c').endswith(rb'detail="a\"b\\c"')
    assert cache_status(detail="a\r\nSet-Cookie: x").endswith(b'"a%0D%0ASet-Cookie: x"')
    assert cache_status(detail="é100%").endswith(b'"%C3%A9100%25"')


@given(st.text(), st.text(min_size=1), st.floats(allow_nan=False))
def test_cache_status_is_always_safe_in_a_header(detail: str, name: str, ttl: float) -> None:
    member = cache_status(detail=detail, name=name, ttl=ttl)
    assert all(0x20 <= byte < 0x7F for byte in member)
