"""Which responses of a URL are told apart, and that no two requests that differ share a key."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.rules import Policy
from asynctag.http.variants import Dimensions, dimensions, url_base, variant_key

Pairs = list[tuple[bytes, bytes]]


def test_dimensions_are_those_of_the_policy_and_of_vary() -> None:
    vary = [(b"Vary", b"Accept, Cookie")]
    assert dimensions(None, vary, public=True) == Dimensions((b"accept", b"cookie"), public=True)
    policy = Policy(vary=("x-a",), cookies=("t",), query=("q",))
    assert dimensions(policy, vary, public=False) == Dimensions((b"accept", b"x-a"), ("t",), ("q",))
    whole = Policy(vary=("cookie",), cookies=("t",))
    assert dimensions(whole, vary, public=False) == Dimensions((b"accept", b"cookie"), ("t",))
    assert dimensions(policy, [(b"vary", b"*")], public=False) is None


def key(
    headers: Pairs | None = None,
    dims: Dimensions = Dimensions(),  # noqa: B008  frozen
    *,
    host: str = "h",
    path: str = "/p",
    query: bytes = b"",
) -> str:
    return variant_key(url_base("https", host.encode("latin-1"), path.encode()), query, headers or [], dims)


def test_a_host_cannot_be_written_to_meet_another_url() -> None:
    assert key(host="h/a", path="/b") != key(host="h", path="/a/b")
    assert key(path="/p?a=1") != key(path="/p", query=b"a=1")
    assert key(path="/p") != key(path="/p", query=b"a")
    assert key(query=b"a") != key(query=b"a=")
    assert key(query=b"a=1&b=2") == key(query=b"b=2&a=1")


def test_an_absent_header_differs_from_an_empty_one_and_lines_are_kept_apart() -> None:
    dims = Dimensions((b"a",))
    found = [
        key([], dims),
        key([(b"a", b"")], dims),
        key([(b"a", b""), (b"a", b"")], dims),
        key([(b"a", b"x, y")], dims),
        key([(b"a", b"x"), (b"a", b"y")], dims),
        key([(b"a", b"y"), (b"a", b"x")], dims),
        key([(b"a", b"xy"), (b"a", b"z")], dims),
        key([(b"a", b"x"), (b"a", b"yz")], dims),
        key([(b"a", b"1:x1:y")], dims),
    ]
    assert len(set(found)) == len(found)
    assert key([(b"a", b" x\t"), (b"b", b"1")], dims) == key([(b"a", b"x"), (b"b", b"2")], dims)


def test_only_named_cookies_and_parameters_count() -> None:
    dims = Dimensions(cookies=("t",), query=("q",))
    one = key([(b"cookie", b"t=1; s=9")], dims, query=b"q=1&utm=2")
    assert one == key([(b"cookie", b"s=8;t=1")], dims, query=b"utm=3&q=1")
    assert one != key([(b"cookie", b"t=2")], dims, query=b"q=1")
    assert one != key([], dims, query=b"q=1")
    assert key([], dims) != key([(b"cookie", b"t=")], dims)


def test_entries_of_other_dimensions_are_never_met() -> None:
    found = [
        key([], dims, query=b"q=1")
        for dims in (
            Dimensions(),
            Dimensions((b"a",)),
            Dimensions((b"b",)),
            Dimensions(cookies=("a",)),
            Dimensions(query=("q",)),
            Dimensions(query=("p", "q")),
        )
    ]
    assert len(set(found)) == len(found)


def test_where_no_cookie_matters_the_url_is_the_whole_key() -> None:
    """Whether a request with cookies may have the response, the response itself says."""
    assert key([], Dimensions(cookies=())) == key([], Dimensions())


def test_long_keys_are_hashed_and_stay_apart() -> None:
    long = key(query=b"a=" + b"x" * 600)
    assert len(long) == 65
    assert long != key(query=b"a=" + b"x" * 601)
    assert len(key(path="/é" * 300).encode()) <= 512


DIMS = Dimensions((b"a", b"cookie"), ("c", "d"), ("q", "r"))
hostile = st.text('0123:;,hcq-/?=& "a', max_size=8)
requests = st.tuples(
    hostile,
    hostile,
    st.lists(st.tuples(st.sampled_from(["q", "r"]), hostile.map(lambda text: text.replace("&", ""))), max_size=2),
    st.lists(hostile.map(lambda text: text.strip(" \t")), max_size=2),
    st.lists(hostile.map(lambda text: text.strip(" \t")), max_size=2),
)


@given(requests, requests)
def test_no_two_requests_share_a_key_by_clever_contents(a: Any, b: Any) -> None:
    def made(parts: Any) -> tuple[str, Any]:
        host, path, pairs, values, cookies = parts
        headers = [(b"a", v.encode()) for v in values] + [(b"cookie", v.encode()) for v in cookies]
        query = "&".join(f"{name}={value}" for name, value in pairs).encode()
        identity = (host, path, tuple(sorted(pairs, key=lambda pair: pair[0])), tuple(values), tuple(cookies))
        return variant_key(url_base("http", host.encode("latin-1"), path.encode()), query, headers, DIMS), identity

    (key_a, identity_a), (key_b, identity_b) = made(a), made(b)
    assert (key_a == key_b) is (identity_a == identity_b)
