"""What an unsafe request makes stale besides its own URL (RFC 9111 §4.4), by the keys of later requests for it."""

from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctag.http.unsafe import ChangedUrl, changed_urls, is_safe
from asynctag.http.variants import url_base, url_path
from tests.http.serving import serve

LOCATION = b"location"


def changed(
    *values: bytes,
    status: int = 201,
    name: bytes = LOCATION,
    scheme: str = "http",
    host: bytes = b"shop",
    raw_path: bytes | None = b"/a/b",
    path: str = "/a/b",
    root_path: str = "",
) -> list[ChangedUrl]:
    headers = [(name, value) for value in values]
    return changed_urls(status, headers, scheme=scheme, host=host, raw_path=raw_path, path=path, root_path=root_path)


# --- RFC 9110 §9.2.1: safe methods


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_rfc9110_9_2_1_safe_methods(method: str) -> None:
    assert is_safe(method)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "PURGE", "FROB", "get", "Head", ""])
def test_rfc9111_4_4_a_method_that_is_not_known_to_be_safe_is_not(method: str) -> None:
    assert not is_safe(method)


# --- RFC 9111 §4.4: which responses


@pytest.mark.parametrize("status", [200, 201, 204, 206, 299, 301, 303, 308, 399])
def test_rfc9111_4_4_a_non_error_says_what_has_changed(status: int) -> None:
    assert changed(b"/x", status=status) == [(b"/x", "/x")]


@pytest.mark.parametrize("status", [100, 103, 199, 400, 404, 409, 500, 503])
def test_rfc9111_4_4_an_error_has_changed_nothing(status: int) -> None:
    assert changed(b"/x", status=status) == []


def test_rfc9111_4_4_location_and_content_location_count_and_nothing_else() -> None:
    headers = [(b"Location", b"/x"), (b"link", b"/l"), (b"content-location", b"/y"), (b"refresh", b"/r")]
    found = changed_urls(201, headers, scheme="http", host=b"shop", raw_path=b"/", path="/", root_path="")
    assert [url.path for url in found] == ["/x", "/y"]


def test_rfc9111_4_4_every_line_counts_and_each_url_once() -> None:
    assert changed(b"/x", b"/y", b"/x#1", b"http://shop/x?q") == [(b"/x", "/x"), (b"/y", "/y")]
    assert changed(b"/x, /y") == [(b"/x,%20/y", "/x, /y")]  # neither field is a list


@pytest.mark.parametrize("value", [b"", b" ", b"#part", b"?page=2", b"/a/b", b"b", b"./b", b"http://SHOP:80/a/b?x"])
def test_rfc9111_4_4_the_target_is_no_other_url(value: bytes) -> None:
    """It is made stale without being named, whatever its query."""
    assert changed(value) == []
    assert changed(value, raw_path=b"/a/b?page=1") == []
    assert changed(value, raw_path=None) == []


# --- RFC 9111 §4.4, RFC 9110 §4.3.1: only of the target's origin


@pytest.mark.parametrize(
    ("value", "scheme", "host"),
    [
        (b"http://shop/x", "http", b"shop"),
        (b"HTTP://Shop/x", "http", b"sHOP"),
        (b"http://shop:80/x", "http", b"shop"),
        (b"http://shop/x", "http", b"shop:80"),
        (b"http://shop:/x", "http", b"shop"),
        (b"https://shop:443/x", "https", b"shop"),
        (b"http://shop:8000/x", "http", b"shop:8000"),
        (b"//shop/x", "http", b"shop"),
        (b"//shop/x", "https", b"shop"),
        (b"http://user:word@shop/x", "http", b"shop"),
        (b"http://[::1]:8000/x", "http", b"[::1]:8000"),
        (b"http://[::1]/x", "http", b"[::1]:80"),
        (b"/x", "http", b""),
        (b"/x", "http", b"a:b:c"),
        (b"/x", "http", b"\xff"),
    ],
)
def test_rfc9111_4_4_a_url_of_the_same_origin_has_changed(value: bytes, scheme: str, host: bytes) -> None:
    assert changed(value, scheme=scheme, host=host) == [(b"/x", "/x")]


@pytest.mark.parametrize(
    ("value", "scheme", "host"),
    [
        (b"http://evil.example/x", "http", b"shop"),
        (b"//evil.example/x", "http", b"shop"),
        (b"///evil.example/x", "http", b"shop"),
        (b"https://shop/x", "http", b"shop"),
        (b"http://shop/x", "https", b"shop"),
        (b"http://shop:443/x", "https", b"shop"),
        (b"http://shop:8000/x", "http", b"shop"),
        (b"http://shop/x", "http", b"shop:8000"),
        (b"//shop:443/x", "http", b"shop"),
        (b"http://shop:80:80/x", "http", b"shop"),
        (b"http://shop:port/x", "http", b"shop"),
        (b"http://shop:-80/x", "http", b"shop"),
        (b"http://shop.evil.example/x", "http", b"shop"),
        (b"http://shop@evil.example/x", "http", b"shop"),
        (b"http://evil.example\\@shop.example/x", "http", b"shop"),
        (b"http://shop\\@evil.example/x", "http", b"shop"),
        (b"http://[shop/x", "http", b"shop"),
        (b"http://[]/x", "http", b"shop"),
        (b"http:///x", "http", b""),
        (b"http://:80/x", "http", b""),
        (b"http:/x", "http", b"shop"),
        (b"http:x", "http", b"shop"),
        (b"javascript:alert(1)", "http", b"shop"),
        (b"data:text/html,x", "http", b"shop"),
        (b"mailto:x@shop", "http", b"shop"),
        (b"ftp://shop/x", "http", b"shop"),
        (b"ws://shop/x", "http", b"shop"),
    ],
)
def test_rfc9111_4_4_a_url_of_another_origin_is_left_alone(value: bytes, scheme: str, host: bytes) -> None:
    assert changed(value, scheme=scheme, host=host) == []


# --- RFC 3986 §5.4: the examples of resolution


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (b"g", "/b/c/g"),
        (b"./g", "/b/c/g"),
        (b"g/", "/b/c/g/"),
        (b"/g", "/g"),
        (b"//a", "/"),
        (b"g?y", "/b/c/g"),
        (b"g#s", "/b/c/g"),
        (b"g?y#s", "/b/c/g"),
        (b";x", "/b/c/;x"),
        (b"g;x", "/b/c/g;x"),
        (b"g;x?y#s", "/b/c/g;x"),
        (b".", "/b/c/"),
        (b"./", "/b/c/"),
        (b"..", "/b/"),
        (b"../", "/b/"),
        (b"../g", "/b/g"),
        (b"../..", "/"),
        (b"../../", "/"),
        (b"../../g", "/g"),
        (b"../../../g", "/g"),
        (b"../../../../g", "/g"),
        (b"/./g", "/g"),
        (b"/../g", "/g"),
        (b"g.", "/b/c/g."),
        (b".g", "/b/c/.g"),
        (b"g..", "/b/c/g.."),
        (b"..g", "/b/c/..g"),
        (b"./../g", "/b/g"),
        (b"./g/.", "/b/c/g/"),
        (b"g/./h", "/b/c/g/h"),
        (b"g/../h", "/b/c/h"),
        (b"g;x=1/./y", "/b/c/g;x=1/y"),
        (b"g;x=1/../y", "/b/c/y"),
        (b"g?y/../x", "/b/c/g"),
        (b"g#s/../x", "/b/c/g"),
        (b"http://a/b/./c/../x", "/b/x"),
        (b"http://a", "/"),
        (b"http://a?y", "/"),
        (b"/x//y", "/x//y"),
        (b"/x//../y", "/x/y"),
    ],
)
def test_rfc3986_5_4_references_are_resolved_against_the_target(value: bytes, path: str) -> None:
    expected = [(path.encode(), path)]
    assert changed(value, host=b"a", raw_path=b"/b/c/d;p", path="/b/c/d;p") == expected
    assert changed(value, host=b"a", raw_path=b"/b/c/d;p?q/r", path="/b/c/d;p") == expected
    assert changed(value, host=b"a", raw_path=None, path="/b/c/d;p") == [(None, path)]


def test_rfc3986_5_2_3_a_path_that_is_no_path_resolves_to_something() -> None:
    assert changed(b"g", raw_path=b"", path="") == [(b"/g", "/g")]
    assert changed(b"g", raw_path=b"*", path="*") == [(b"/g", "/g")]
    assert changed(b"g", raw_path=b"/x//y", path="/x//y") == [(b"/x//g", "/x//g")]
    assert changed(b"../g", raw_path=b"/%2F%c3%A9/y", path="//é/y") == [(b"/g", "/g")]
    assert changed(b"g", raw_path=b"/%2F%c3%A9/y", path="//é/y") == [(b"/%2F%c3%A9/g", "//é/g")]


# --- RFC 3986 §2: the spelling that clients send


@pytest.mark.parametrize(
    ("value", "raw", "path"),
    [
        (b"/caf%C3%A9", b"/caf%C3%A9", "/café"),
        (b"/caf%c3%a9", b"/caf%c3%a9", "/café"),
        ("/café".encode(), b"/caf%C3%A9", "/café"),
        ("/café".encode("latin-1"), b"/caf%C3%A9", "/café"),
        (b"/caf%E9", b"/caf%E9", "/caf\ufffd"),
        (b"/a b", b"/a%20b", "/a b"),
        (b"/a%20b", b"/a%20b", "/a b"),
        (b"/a+b", b"/a+b", "/a+b"),
        (b"/x%2Fy", b"/x%2Fy", "/x/y"),
        (b"/a%3Fb", b"/a%3Fb", "/a?b"),
        (b"/a%2e%2e/b", b"/a%2e%2e/b", "/a../b"),
        (b"/a/%2e%2e/b", b"/a/%2e%2e/b", "/a/../b"),
        (b"/100%", b"/100%", "/100%"),
        (b"/%zz", b"/%zz", "/%zz"),
        (b"/~a!$&'()*+,;=:@|", b"/~a!$&'()*+,;=:@|", "/~a!$&'()*+,;=:@|"),
        (b'/<">`{}^', b"/%3C%22%3E%60%7B%7D%5E", '/<">`{}^'),
        (b"/\x00\x1f\x7f", b"/%00%1F%7F", "/\x00\x1f\x7f"),
        (b"\t/x ", b"/x", "/x"),
        (b"/\\evil.example", b"/\\evil.example", "/\\evil.example"),
        (b":x", b"/a/:x", "/a/:x"),
        (b"1:x", b"/a/1:x", "/a/1:x"),
    ],
)
def test_rfc3986_2_what_no_url_holds_is_encoded_and_the_rest_stands(value: bytes, raw: bytes, path: str) -> None:
    assert changed(value) == [(raw, path)]
    assert changed(value, raw_path=None) == [(None, path)]


def test_rfc3986_2_a_long_url_is_a_url() -> None:
    long = b"/x" * 100_000
    assert changed(long) == [(long, long.decode())]
    assert changed(b"/" + b"../" * 100_000 + b"x") == [(b"/x", "/x")]
    assert changed(b"http://" + b"a" * 100_000 + b"/x") == []


@given(
    st.lists(st.binary(max_size=40) | st.text("htp:/shop.@[]%?#\\0aé", max_size=40).map(str.encode), max_size=3),
    st.binary(max_size=12),
    st.none() | st.binary(max_size=12),
    st.text(st.characters(), max_size=12),
    st.sampled_from(["", "/", "/api", "/é", "x"]),
)
def test_whatever_is_sent_gives_paths(
    values: list[bytes], host: bytes, raw_path: bytes | None, path: str, root_path: str
) -> None:
    for raw, decoded in changed(*values, host=host, raw_path=raw_path, path=path, root_path=root_path):
        assert (raw is None) is (raw_path is None)
        assert url_base("http", host, url_path(raw, decoded, root_path))


# --- the keys of later requests


def test_a_root_path_that_the_path_holds() -> None:
    """As uvicorn, and a `Mount` of Starlette, give it. The application writes it, or a proxy does."""
    asked: dict[str, Any] = {"raw_path": b"/api/items", "path": "/api/items", "root_path": "/api"}
    assert changed(b"/api/items/1", **asked) == [(b"/api/items/1", "/api/items/1"), (b"/items/1", "/items/1")]
    assert changed(b"/items/1", **asked) == [(b"/items/1", "/items/1"), (b"/api/items/1", "/api/items/1")]
    assert (b"/api/1", "/api/1") in changed(b"1", **asked)
    assert changed(b"/api", **asked) == [(b"/api", "/api"), (b"/", "/")]
    assert (b"/api/apix", "/api/apix") in changed(b"/apix", **asked)


def test_a_root_path_that_the_path_does_not_hold() -> None:
    """As `FastAPI(root_path=...)` behind a proxy, `httpx.ASGITransport` and Starlette's `TestClient` give it."""
    asked: dict[str, Any] = {"raw_path": b"/items", "path": "/items", "root_path": "/api"}
    assert (b"/items/1", "/items/1") in changed(b"/api/items/1", **asked)
    assert (b"/items/1", "/items/1") in changed(b"http://shop/api/items/1", **asked)
    assert (b"/items/1", "/items/1") in changed(b"/items/1", **asked)
    assert (b"/items/1", "/items/1") in changed(b"items/1", **asked)


def test_a_root_path_that_is_not_ascii() -> None:
    """A `Mount` gives it decoded, while the raw path is as it was sent."""
    found = changed(b"/caf%C3%A9/x", raw_path=b"/caf%C3%A9", path="/café", root_path="/café")
    assert (b"/caf%C3%A9/x", "/café/x") in found


class Recorder:
    """An application that answers a POST with the `Location` it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        status, headers = 200, [(b"content-length", b"0")]
        if scope["method"] == "POST":
            status = 303
            headers.append((LOCATION, (await receive())["body"]))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def base_of(scope: dict[str, Any]) -> str:
    host = dict(scope["headers"])[b"host"]
    return url_base(scope["scheme"], host, url_path(scope["raw_path"], scope["path"], scope["root_path"]))


def changed_by(scope: dict[str, Any], value: bytes) -> set[str]:
    host, root = dict(scope["headers"])[b"host"], scope["root_path"]
    found = changed_urls(
        303,
        [(LOCATION, value)],
        scheme=scope["scheme"],
        host=host,
        raw_path=scope["raw_path"],
        path=scope["path"],
        root_path=root,
    )
    return {url_base(scope["scheme"], host, url_path(raw, path, root)) for raw, path in found}


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("root_path", ["", "/api"])
def test_a_client_that_follows_a_location_meets_the_key_that_was_made_stale(root_path: str, http: str) -> None:
    app = Recorder()
    values = [
        b"/x",
        b"y?z=1#f",
        b"../z",
        b"/a/./b/../c",
        b"/a%20b",
        b"/a b",
        b"/caf%C3%A9",
        "/café".encode(),
        "/café".encode("latin-1"),
    ]
    values += [b"/caf%c3%a9", b"/a//b", b"/a%2Fb", b"/a+b;c=d,e", b"/%E9", b"/100%25", b"/~x!$&'()*"]
    options = {"root_path": root_path, "http": http, "lifespan": "off"}
    with serve(app, **options) as on, closing(httpx.Client(base_url=on.url, follow_redirects=True)) as client:
        url = on.url.encode()
        for value in [*values, url + b"/absolute", url, url.replace(b"http:", b"") + b"/q"]:
            app.scopes.clear()
            assert client.post("/shelf/items", content=value).status_code == 200
            asked, followed = app.scopes
            assert followed["method"] == "GET"
            assert base_of(followed) in changed_by(asked, value), value


def test_a_client_behind_a_proxy_that_strips_the_root_path_meets_it_too() -> None:
    app = Recorder()
    options = {"root_path": "/api", "http": "h11", "lifespan": "off"}
    with serve(app, **options) as on, closing(httpx.Client(base_url=on.url)) as client:
        client.post("/items", content=b"/api/items/1")  # the proxy was asked for /api/items
        client.get("/items/1")  # and for /api/items/1
        asked, later = app.scopes
        assert base_of(later) in changed_by(asked, b"/api/items/1")
