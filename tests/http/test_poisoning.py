"""What one request leaves behind does no harm to the next: cache poisoning, cache deception, and their relatives."""

from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from asynctag.http import CacheMiddleware, cache_response
from tests.http.driver import Call, ask, request

pytestmark = pytest.mark.anyio

FOR_ALL = {"cache-control": "public, max-age=60"}
Endpoint = Callable[[Request], Awaitable[Response]]


def site(cache: Cache, endpoint: Endpoint, **policy: Any) -> Any:
    """An application with one page, for every path, that says that it is for all; `policy` goes to `cache_response`."""
    page = cache_response(60, public=True, **policy)(endpoint) if policy else endpoint
    methods = ["GET", "HEAD", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", page, methods=methods)])
    app.add_middleware(CacheMiddleware, cache=cache)
    return app


def shows(name: str) -> Endpoint:
    """A page made with a header of the request, as links are with `X-Forwarded-Host`."""

    async def page(request: Request) -> Response:
        return PlainTextResponse(request.headers.get(name, "clean"), headers=FOR_ALL)

    return page


async def shows_body(request: Request) -> Response:
    return PlainTextResponse(await request.body() or b"clean", headers=FOR_ALL)


# --- headers that change the response and are in no key ------------------------------------------------------

UNKEYED = (
    "Forwarded",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Host",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "X-Rewrite-URL",
)


@pytest.mark.parametrize("name", UNKEYED)
async def test_a_header_that_the_application_reads_and_nobody_names_poisons(cache: Cache, name: str) -> None:
    """Only the application can know that it reads it: `docs/security.md` says so, and that is what happens."""
    app = site(cache, shows(name))
    await ask(app, headers={name: "evil"})
    assert (await ask(app)).text == "evil"


@pytest.mark.parametrize("name", UNKEYED)
async def test_a_header_that_vary_names_poisons_nobody(cache: Cache, name: str) -> None:
    app = site(cache, shows(name), vary=[name])
    for _ in range(2):
        assert (await ask(app, headers={name: "evil"})).text == "evil"
        assert (await ask(app)).text == "clean"
    assert (await ask(app)).hit


@pytest.mark.parametrize("name", UNKEYED)
async def test_a_header_that_the_response_names_poisons_nobody(cache: Cache, name: str) -> None:
    """By the response's own `Vary`, without which no cache on the way could tell either."""

    async def page(request: Request) -> Response:
        return PlainTextResponse(request.headers.get(name, "clean"), headers={**FOR_ALL, "vary": name})

    app = site(cache, page)
    for _ in range(3):
        assert (await ask(app, headers={name: "evil"})).text == "evil"
        assert (await ask(app)).text == "clean"
    assert (await ask(app)).hit


async def shows_url(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {request.url} {request.scope['root_path']}", headers=FOR_ALL)


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_scheme_from_a_proxy_counts_and_one_from_a_client_does_not(cache: Cache, trusted: bool) -> None:
    """With the middleware that judges proxies outside, what it took for true is in the key."""
    app = ProxyHeadersMiddleware(site(cache, shows_url), trusted_hosts=["127.0.0.1"] if trusted else ["10.0.0.1"])
    secure = await ask(app, headers={"x-forwarded-proto": "https"})
    assert secure.text.startswith("GET https:" if trusted else "GET http:")
    assert (await ask(app)).text.startswith("GET http:")


class FromHeaders:
    """What some frameworks do outside of the cache: believe what a client says of its URL and its method."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = sent.get("x-original-url", scope["path"])
        root, method = sent.get("x-forwarded-prefix", ""), sent.get("x-http-method-override", scope["method"])
        await self.app({**scope, "path": path, "root_path": root, "method": method}, receive, send)


@pytest.mark.parametrize(
    "sent",
    [{"x-original-url": "/admin"}, {"x-forwarded-prefix": "/evil"}, {"x-http-method-override": "DELETE"}],
    ids=lambda sent: next(iter(sent)),
)
async def test_what_is_rewritten_outside_is_in_the_key(cache: Cache, sent: dict[str, str]) -> None:
    """Path, root and method count as they reach the cache."""
    app = FromHeaders(site(cache, shows_url))
    clean = (await ask(app, "/page", host="clean")).text.replace("clean", "shop")
    for _ in range(2):
        assert (await ask(app, "/page", headers=sent)).text != clean
        assert (await ask(app, "/page")).text == clean


@pytest.mark.parametrize("around", [True, False], ids=["cache around", "cache inside"])
async def test_hosts_that_are_not_trusted_leave_nothing(cache: Cache, around: bool) -> None:
    app: Any = Starlette(routes=[Route("/", shows_url)])
    if around:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["shop"])
        app = CacheMiddleware(app, cache=cache)
    else:
        app.add_middleware(CacheMiddleware, cache=cache)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["shop"])
    assert (await ask(app, host="evil")).status == 400
    assert len(cache._filling().backend) == 0  # type: ignore[arg-type]
    assert (await ask(app)).status == 200


async def test_an_origin_is_named_or_its_first_visitor_decides(cache: Cache) -> None:
    """A page that allows an origin only where one was sent: a visit without one would lock the others out."""

    async def page(request: Request) -> Response:
        allowed = {"access-control-allow-origin": "https://a"} if "origin" in request.headers else {}
        return PlainTextResponse("page", headers=FOR_ALL | allowed)

    for policy, allowed in ({"cookies": ()}, None), ({"vary": ["Origin"]}, "https://a"):
        app = site(cache, page, **policy)
        host = "named" if allowed else "unnamed"
        await ask(app, host=host)
        call = await ask(app, host=host, headers={"origin": "https://a"})
        assert call.header("access-control-allow-origin") == allowed


# --- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": "4"},
        {"content-length": "+4"},
        {"content-length": "04"},
        {"content-length": "0, 4"},
        {"transfer-encoding": "chunked"},
        {"content-length": "0", "transfer-encoding": "chunked"},
        {"transfer-encoding": "xchunked", "content-length": "4"},
    ],
    ids=str,
)
async def test_a_get_with_a_body_leaves_nothing(cache: Cache, headers: dict[str, str]) -> None:
    """Also where length and encoding contradict each other, as they do in smuggled requests."""
    app = site(cache, shows_body)
    assert (await ask(app, headers=headers, chunks=[b"evil"])).text == "evil"
    assert (await ask(app)).text == "clean"
    assert (await ask(app, headers=headers, chunks=[b"evil"])).text == "evil"


@pytest.mark.parametrize("chunks", [[b"evil"], [b"", b"evil"]], ids=["at once", "later"])
async def test_a_get_of_http_2_with_a_body_leaves_nothing(cache: Cache, chunks: list[bytes]) -> None:
    """There a body needs neither of the headers (RFC 9113 §8.1)."""
    app = site(cache, shows_body)
    assert (await ask(app, chunks=chunks, http_version="2")).text == "evil"
    assert (await ask(app)).text == "clean"


# --- queries --------------------------------------------------------------------------------------------

QUERIES = (
    "",
    "page=1",
    "page=evil",
    "page=1;page=evil",
    "utm=1;page=evil",
    "page=1&utm_content=x;callback=evil",
    "page=1&callback=evil",
    "page=1&page=evil",
    "page=evil&page=1",
    "page=1%26page=evil",
    "page=1%00",
    "page=1%00evil",
    "page%00=evil",
    "%70age=evil",
    "page=1&%70%61ge=evil",
    "page[]=evil",
    "+page=evil",
    "page+=evil",
    "PAGE=evil",
    "page",
    "page=&page=evil",
    "&page=1&",
    "page=1#page=evil",
    "page=1?page=evil",
    "page=%C3%28",
    "page=\xff",
    "utm=" + "x" * 10_000 + "&page=evil",
)


@pytest.mark.parametrize("policy", [{}, {"query": ["page"]}, {"query": ["page", "callback"]}], ids=str)
async def test_no_spelling_of_a_query_is_taken_for_another(cache: Cache, policy: dict[str, Any]) -> None:
    """What the application reads of a query by the names in `query=` is what its key holds."""
    names = policy.get("query", ["page", "callback", "utm"])

    async def page(request: Request) -> Response:
        return PlainTextResponse(repr([request.query_params.getlist(name) for name in names]), headers=FOR_ALL)

    app, bare = site(cache, page, **policy), Starlette(routes=[Route("/", page)])
    for query in (*QUERIES, *reversed(QUERIES)):
        raw = query.encode("latin-1")
        assert (await ask(app, query_string=raw)).text == (await ask(bare, query_string=raw)).text


# --- what cannot be read -----------------------------------------------------------------------------------

MALFORMED: tuple[dict[str, str], ...] = (
    {"x-long": "x" * 100_000},
    {"cookie": "s=" + "x" * 100_000},
    {"cookie": ";;==;=;s;" * 1000},
    {"cookie": '"s=1; s="2; \xff=\x00'},
    {"accept-language": "de" * 50_000},
    {"accept-language": "\xff\x00\x7f,;="},
    {"cache-control": "max-age=" + "9" * 10_000},
    {"cache-control": 'no-store="' + "\\" * 10_001},
    {"cache-control": "only-if-cached, max-stale=\xff"},
    {"pragma": '"' * 10_001},
    {"range": "bytes=0-" + "9" * 10_000},
    {"range": "bytes=" + "0-1," * 10_000},
    {"if-none-match": '"' + "x" * 100_000},
    {"if-none-match": "*"},
    {"if-none-match": 'W/"' * 10_000},
    {"if-modified-since": "Sun, 99 Nov 99999999999999999999 99:99:99 GMT"},
    {"if-modified-since": "Sun, 06 Nov 2050 08:49:37 GMT"},
    {"if-range": '"x"'},
    {"expect": "100-continue"},
    {"upgrade": "evil"},
    {"upgrade": "h2c"},
    {"te": "trailers, evil"},
    {"content-length": "evil"},
    {"content-length": "9" * 10_000},
    {"authorization": "\xff" * 10_000},
    {"x y": "1"},
    {"": "1"},
    {"\xff": "1"},
)


@pytest.mark.parametrize("policy", [{}, {"cookies": ["s"], "vary": ["accept-language"]}], ids=["undecorated", "keyed"])
async def test_what_cannot_be_read_does_no_harm(cache: Cache, policy: dict[str, Any]) -> None:
    """Nothing raises, nothing else is served to the next, whether a response was there before or not."""

    async def page(request: Request) -> Response:
        return PlainTextResponse("clean", headers=FOR_ALL)

    app = site(cache, page, **policy)
    for number, headers in enumerate(MALFORMED):
        for path in (f"/{number}", "/same"):
            pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            call = request(path)
            call.scope["headers"] += pairs
            await call.run(app)
            assert call.error is None
            assert call.status in (200, 304, 504)  # the last to who wants nothing but what is stored
            clean = await ask(app, path)
            assert (clean.status, clean.text) == (200, "clean")


@pytest.mark.parametrize("long", ["path", "query", "host", "header", "cookie"])
async def test_what_is_long_is_kept_under_a_short_key(long: str) -> None:
    """And told apart by its last letter all the same."""
    backend, text = MemoryBackend(), "x" * 100_000

    async def page(request: Request) -> Response:
        sent = [request.headers.get("host"), request.headers.get("x"), request.cookies.get("s")]
        return PlainTextResponse(f"{request.url} {sent}", headers=FOR_ALL)

    app = site(Cache(backend), page, vary=["x"], cookies=["s"])
    seen: set[str] = set()
    for last in "abab":
        asked: dict[str, dict[str, Any]] = {
            "path": {"path": "/" + text + last},
            "query": {"path": "/?" + text + last},
            "host": {"path": "/", "host": text + last},
            "header": {"path": "/", "headers": {"x": text + last}},
            "cookie": {"path": "/", "headers": {"cookie": f"s={text}{last}"}},
        }
        seen.add((await ask(app, **asked[long])).text)
    assert len(seen) == 2
    assert all(len(key) < 1024 for key in backend._entries)


# --- where a request goes ------------------------------------------------------------------------------------

HOSTS: tuple[list[str], ...] = (
    ["shop"],
    ["evil"],
    ["shop", "evil"],
    ["evil", "shop"],
    ["shop", "shop"],
    ["shop:80"],
    ["shop:evil"],
    ["shop@evil"],
    ["evil/shop"],
    ["shop?evil"],
    ["shop#evil"],
    ["shop."],
    ["sh\xf6p"],
)
TARGETS = (
    "/account",
    "/account/",
    "/account/x.css",
    "/account;x.css",
    "/account%3Bx.css",
    "/account.",
    "/account%00.css",
    "/account%0A.css",
    "/account%2Fx.css",
    "/account%252Fx.css",
    "/account%23.css",
    "/account%3F.css",
    "/account?x.css",
    "//account",
    "/./account",
    "/x/../account",
    "/x/%2e%2e/account",
    "/x/..%2faccount",
    "/x%5c..%5caccount",
    "/%61ccount",
    "/ACCOUNT",
    "http://evil/account",
    "http://shop/account",
    "*",
    "",
)


async def test_no_target_and_no_host_is_taken_for_another(cache: Cache) -> None:
    """As they were sent: what a server, a proxy and the application make of them may differ."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(shown(scope), headers=FOR_ALL)(scope, receive, send)

    def shown(scope: Any) -> str:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return f"{hosts} {scope['raw_path']} {scope['query_string']}"

    wrapped = CacheMiddleware(app, cache=cache)
    for _ in range(2):
        for hosts, target in product(HOSTS, TARGETS):
            path, _, query = target.partition("?")
            call = request(unquote(path), raw_path=path.encode(), query_string=query.encode())
            call.scope["headers"] = [(b"host", host.encode("latin-1")) for host in hosts]
            await call.run(wrapped)
            assert call.text == shown(call.scope)
    assert call.hit


@pytest.mark.parametrize("store", ["declared", "rfc9111"])
@pytest.mark.parametrize("path", [target for target in TARGETS if target.startswith("/")])
async def test_a_name_of_a_static_file_makes_nothing_static(cache: Cache, store: Any, path: str) -> None:
    """Web cache deception: extensions and folders decide nothing here, and a page that says nothing is not stored."""

    async def account(request: Request) -> Response:
        return PlainTextResponse(request.headers.get("x-forwarded-user", "nobody"))

    app = Starlette(routes=[Route("/{path:path}", account)])
    wrapped = CacheMiddleware(app, cache=cache, store=store)
    assert (await ask(wrapped, path, headers={"x-forwarded-user": "alice"})).text == "alice"
    assert (await ask(wrapped, path)).text == "nobody"


NASTY = ("", "a", "1:a", "a\x00", "a1:b", "h1:x", "c1;", "q1;", "0:", "-", "?", "|k|http ", "http://shop/")


async def test_no_text_in_one_part_of_a_key_is_taken_for_another_part(cache: Cache) -> None:
    """Hosts, paths, queries, lines of a header and cookies that hold what stands between them in a key."""

    def shown(call: Call) -> str:
        scope = call.scope
        sent = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
        cookies = [value for name, value in scope["headers"] if name == b"cookie"]
        return f"{scope['raw_path']} {scope['query_string']} {sent} {cookies}"

    async def page(request: Request) -> Response:
        return PlainTextResponse(shown(Call(dict(request.scope))), headers=FOR_ALL)

    app = site(cache, page, vary=["x", "y"], cookies=["s", "t"])
    for _ in range(2):
        for one, other in product(NASTY, NASTY):
            for path, host, headers in (
                (f"/{one}/{other}", "shop", []),
                (f"/{one}", f"shop{other}", []),
                ("/", "shop", [("x", one), ("x", other)]),
                ("/", "shop", [("x", one), ("y", other)]),
                ("/", "shop", [("y", one), ("cookie", f"s={other}")]),
                ("/", "shop", [("cookie", f"s={one}"), ("cookie", f"t={other}")]),
            ):
                plain, _, query = path.partition("?")
                call = request("/", host=host, headers=headers, raw_path=plain.encode(), query_string=query.encode())
                call.scope["path"] = plain
                await call.run(app)
                assert call.text == shown(call)


# --- credentials that are to be taken away ----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["authorization", "cookie", "Authorization, Cookie", "close, x-user, vary"])
async def test_a_connection_header_takes_nothing_from_the_key(cache: Cache, option: str) -> None:
    """Fails where the cache drops what `Connection` names before it looks at it, and the application does not."""

    async def page(request: Request) -> Response:
        who = [request.headers.get(name) for name in ("authorization", "cookie", "x-user")]
        return PlainTextResponse(str(who), headers=FOR_ALL)

    app = site(cache, page, vary=["x-user"])
    for _ in range(2):
        for name in ("authorization", "cookie", "x-user"):
            mine = await ask(app, headers={"connection": option, name: "alice"})
            assert "alice" in mine.text
            assert "alice" not in (await ask(app, headers={"connection": option})).text
            assert "alice" not in (await ask(app)).text


# --- what is not the whole response -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers"),
    [(206, {"content-range": "bytes 0-3/100"}), (206, {}), (200, {"content-range": "bytes 0-3/100"}), (416, {})],
    ids=str,
)
@pytest.mark.parametrize("policy", [{}, {"cookies": ()}], ids=["undecorated", "cache_response"])
async def test_a_part_is_never_the_whole(
    cache: Cache, status: int, headers: dict[str, str], policy: dict[str, Any]
) -> None:
    """Also where the application sends one that nobody asked for."""

    async def page(request: Request) -> Response:
        if "range" in request.headers or "x-part" in request.headers:
            return PlainTextResponse("part", status, headers=FOR_ALL | headers)
        return PlainTextResponse("the whole", headers=FOR_ALL)

    app = site(cache, page, **policy)
    for sent in ({"range": "bytes=0-3"}, {"x-part": "1"}, {"range": "evil=0-3", "if-range": "x"}):
        assert (await ask(app, headers=sent)).text == "part"
    for _ in range(2):
        assert (await ask(app)).text == "the whole"
    cut = await ask(app, headers={"range": "bytes=0-3"})
    assert (cut.status, cut.text, cut.header("content-range")) == (206, "the ", "bytes 0-3/9")


async def test_a_head_leaves_no_empty_page_and_no_headers(cache: Cache) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("" if request.method == "HEAD" else "page", headers={**FOR_ALL, "x-m": request.method})

    app = site(cache, page)
    for path in ("/a", "/b"):
        if path == "/b":
            assert (await ask(app, path)).text == "page"
        for _ in range(3):
            await ask(app, path, method="HEAD")
        got = await ask(app, path)
        assert (got.text, got.header("x-m"), got.header("content-length")) == ("page", "GET", "4")


@pytest.mark.parametrize("method", ["DELETE", "POST", "get", "GET ", "PRI", ""])
async def test_other_methods_leave_nothing(cache: Cache, method: str) -> None:
    """Methods are told apart by every letter (RFC 9110 §9.1)."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse(f"by {scope['method']}", headers=FOR_ALL)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    for _ in range(2):
        assert (await ask(wrapped, method=method)).text == f"by {method}"
        assert (await ask(wrapped)).text == "by GET"


@pytest.mark.parametrize("status", [301, 304, 400, 403, 404, 405, 410, 413, 414, 431, 500, 501, 503])
@pytest.mark.parametrize("policy", [{}, {"cookies": ()}], ids=["undecorated", "cache_response"])
async def test_an_error_that_a_request_brings_about_is_its_own(
    cache: Cache, status: int, policy: dict[str, Any]
) -> None:
    """Denial of service by a cached error: the others get the page, though the error says that it is for all."""

    async def page(request: Request) -> Response:
        if len(request.headers.get("x-evil", "")) > 10:
            return PlainTextResponse("error", status, headers=FOR_ALL)
        return PlainTextResponse("page", headers=FOR_ALL)

    app = site(cache, page, **policy)
    assert (await ask(app, headers={"x-evil": "x" * 10_000})).status == status
    for _ in range(2):
        assert (await ask(app)).text == "page"


# --- what the application lets into its headers --------------------------------------------------------------------

SPLIT = {
    "CR LF": (b"x-next", b"/\r\nset-cookie: session=evil"),
    "LF": (b"x-next", b"/\nset-cookie: session=evil"),
    "NUL": (b"x-next", b"/\x00"),
    "CR LF in a name": (b"x\r\nset-cookie", b"session=evil"),
    "a space in a name": (b"x next", b"/"),
    "no name": (b"", b"/"),
}


@pytest.mark.parametrize("kind", SPLIT)
async def test_a_response_with_headers_that_are_none_is_not_served_again(cache: Cache, kind: str) -> None:
    """The server refuses to send it, or splits it: either way it is the harm of this one request."""

    async def page(request: Request) -> Response:
        response = PlainTextResponse("page", headers=FOR_ALL)
        if "x-evil" in request.headers:
            response.raw_headers.append(SPLIT[kind])
        return response

    app = site(cache, page)
    await ask(app, headers={"x-evil": "1"})
    assert SPLIT[kind] not in (await ask(app)).start["headers"]


async def test_the_headers_of_one_connection_are_not_replayed(cache: Cache) -> None:
    async def page(request: Request) -> Response:
        named = {"connection": "x-mine, close", "x-mine": "1", "keep-alive": "timeout=5", "proxy-authenticate": "Basic"}
        return PlainTextResponse("page", headers=FOR_ALL | named)

    app = site(cache, page)
    await ask(app)
    hit = await ask(app)
    assert hit.hit
    assert not {b"connection", b"x-mine", b"keep-alive", b"proxy-authenticate"} & {n for n, _ in hit.start["headers"]}


# --- how much -------------------------------------------------------------------------------------------------------


async def test_urls_that_are_not_there_leave_nothing() -> None:
    """Neither in the backend, nor in what the middleware remembers, nor in flights."""
    backend = MemoryBackend()
    app = CacheMiddleware(Starlette(routes=[Route("/there", shows_url)]), cache=Cache(backend))
    for number in range(1500):
        assert (await ask(app, f"/{number}?{number}")).status == 404
    assert len(backend) == 0
    assert len(app._known) <= 1024
    assert app.cache._filling().flights._open == {}


@pytest.mark.parametrize("by", ["path", "query", "Host", "Accept-Language", "cookie"])
async def test_what_clients_make_up_is_bounded_by_the_backend(by: str) -> None:
    """Any number of URLs and of variants: the oldest go, and what is asked for again and again stays."""
    backend = MemoryBackend(max_entries=50)
    runs: list[str] = []

    async def page(request: Request) -> Response:
        runs.append(request.url.path)
        return PlainTextResponse("page", headers=FOR_ALL)

    app = site(Cache(backend), page, vary=["accept-language"], cookies=["theme"])
    for number in range(500):
        asked: dict[str, dict[str, Any]] = {
            "path": {"path": f"/{number}"},
            "query": {"path": f"/?{number}"},
            "Host": {"host": f"h{number}"},
            "Accept-Language": {"headers": {by: f"x-{number}"}},
            "cookie": {"headers": {by: f"theme={number}"}},
        }
        await ask(app, **{"path": "/", **asked[by]})
        await ask(app, "/hot")
    assert len(backend) <= 50
    assert runs.count("/hot") < 20


# --- through a real server ------------------------------------------------------------------------------------------

RAW: tuple[bytes, ...] = (
    b"GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\nevil",
    b"GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nevil",
    b"GET / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding : chunked\r\n\r\n4\r\nevil\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\nGET /evil HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nHost: evil\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nX: 1\r\n evil\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"GET http://shop/?evil HTTP/1.1\r\nHost: evil\r\n\r\n",
    b"GET /?evil#/ HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"GET /evil\xff HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: shop\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n",
)


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_server_makes_of_smuggled_requests_does_no_harm(cache: Cache, http: Any) -> None:
    """After each of them, on a connection of its own, the next user gets the page."""

    async def page(request: Request) -> Response:
        body = await request.body()
        text = f"{request.headers.getlist('host')} {request.url.path} {request.url.query} {body!r}"
        return PlainTextResponse(text, headers=FOR_ALL)

    server = uvicorn.Server(uvicorn.Config(site(cache, page), port=0, log_level="critical", http=http, lifespan="off"))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            while not server.started:
                await anyio.lowlevel.checkpoint()
            port = server.servers[0].sockets[0].getsockname()[1]
            plain = b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
            for attack in RAW:
                await cache.clear()
                await sent_raw(port, attack)
                answer = await sent_raw(port, plain)
                assert b"['shop'] /  b''" in answer, attack
            server.should_exit = True


async def sent_raw(port: int, data: bytes) -> bytes:
    """Send bytes and half-close; what came back until the server closed."""
    answer = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        try:
            await stream.send(data)
            await stream.send_eof()
            while True:
                answer += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return answer
