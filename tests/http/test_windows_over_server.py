"""Responses with windows over the wire: what a client gets first, what it gets of one that fails, and whose it is."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response, current_request
from tests.http.serving import PATIENCE, Connection, Gate, Served, request_bytes, serve
from tests.http.windowed import visitor_of

#: Where a page comes from: stored and served before routing, at the endpoint, or nowhere.
PATHS = ("/public", "/endpoint", "/plain")


class Site:
    """Pages of a server, with windows that wait for the test."""

    def __init__(self, cache: Cache) -> None:
        self.gates: dict[str, Gate] = {}
        #: Set by a window that was ended before it was let through.
        self.cancelled = threading.Event()
        visitor = visitor_of(cache)

        @cache.window(name="gated", timeout=PATIENCE)
        async def gated() -> str:
            name = current_request().headers.get("x-gate")
            if name is None:
                return "open"
            try:
                await self.gates[name].wait()
            except anyio.get_cancelled_exc_class():
                self.cancelled.set()
                raise
            if "x-fail" in current_request().headers:
                raise LookupError("x")
            return "let through"

        @cache.window(name="fails")
        async def fails() -> str:
            if "x-fail-at-once" in current_request().headers:
                raise LookupError("x")
            return "fine"

        async def page(request: Request) -> Response:
            return HTMLResponse(f"<h1>Hello {visitor()}</h1>{gated()}{fails()}<p>{visitor()}</p>")

        async def stream(request: Request) -> Response:
            return StreamingResponse(iter([f"Hello {visitor()}, ", f"{visitor()}"]))

        routes = [
            Route("/public", cache_response(60, public=True)(page), methods=["GET", "HEAD"]),
            Route("/endpoint", cache_response(60, key=lambda request: "everybody's")(page), methods=["GET", "HEAD"]),
            Route("/plain", page, methods=["GET", "HEAD"]),
            Route("/stream", cache_response(60, public=True)(stream)),
        ]
        around = [Middleware(GZipMiddleware, minimum_size=1), Middleware(CacheMiddleware, cache=cache)]
        self.app = Starlette(routes=routes, middleware=around)

    def gate(self, name: str) -> Gate:
        return self.gates.setdefault(name, Gate())


@pytest.fixture
def site(cache: Cache) -> Site:
    return Site(cache)


@pytest.fixture(params=["h11", "httptools"])
def served(site: Site, request: pytest.FixtureRequest) -> Iterator[Served]:
    with serve(site.app, http=request.param) as where:
        for path in PATHS:  # from here on, what is stored is a hit
            with Connection(where) as connection:
                assert connection.ask(path, "x-user: nobody").status == 200
        yield where


def page_of(user: str, gated: str = "open") -> bytes:
    return f"<h1>Hello {user}</h1>{gated}fine<p>{user}</p>".encode()


@pytest.mark.parametrize("path", PATHS)
def test_a_page_whose_windows_need_not_wait_goes_out_with_its_length(served: Served, path: str) -> None:
    """On one connection, one after the other, each their own."""
    with Connection(served) as connection:
        for user in ("alice", "bob", "somebody with a long name", "alice"):
            answer = connection.ask(path, f"x-user: {user}")
            assert answer.body == page_of(user)
            assert answer.header("content-length") == str(len(answer.body))
            assert answer.header("cache-control") == "private, no-store"
            assert answer.header("etag") is None
            assert answer.hit is (path != "/plain")


@pytest.mark.parametrize("path", PATHS)
def test_the_first_bytes_do_not_wait_for_a_window(served: Served, site: Site, path: str) -> None:
    """They are with the client while the window still runs; the connection serves the next request as any."""
    gate = site.gate("a")
    with Connection(served) as connection:
        connection.send(request_bytes(path, "x-user: alice", "x-gate: a"))
        head = connection.head()
        assert (head.status, head.header("transfer-encoding")) == (200, "chunked")
        assert connection.chunk() == b"<h1>Hello alice</h1>"
        assert gate.entered.wait(PATIENCE)
        gate.opened.set()
        assert b"".join(iter(connection.chunk, b"")) == b"let throughfine<p>alice</p>"
        assert connection.ask(path, "x-user: bob").body == page_of("bob")


@pytest.mark.parametrize("path", PATHS)
def test_a_window_that_fails_at_once_is_a_500_without_anything_of_the_page(served: Served, path: str) -> None:
    with Connection(served) as connection:
        answer = connection.ask(path, "x-user: alice", "x-fail-at-once: 1")
        assert (answer.status, answer.body) == (500, b"Internal Server Error")


@pytest.mark.parametrize("path", PATHS)
def test_a_window_that_fails_later_cuts_the_connection(served: Served, site: Site, path: str) -> None:
    """The chunks have no end, by which every client knows that this is not the page."""
    site.gate("a").opened.set()
    with Connection(served) as connection:
        connection.send(request_bytes(path, "x-user: alice", "x-gate: a", "x-fail: 1"))
        received = connection.file.read()
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b"\r\n\r\n14\r\n<h1>Hello alice</h1>\r\n")
    site.gates.clear()
    site.gate("a").opened.set()
    with httpx.Client(base_url=served.url) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get(path, headers={"x-user": "alice", "x-gate": "a", "x-fail": "1"})


@pytest.mark.parametrize("path", PATHS)
def test_http_1_0_gets_a_length_or_an_error(served: Served, site: Site, path: str) -> None:
    """A body that ends with the connection looks whole wherever that is."""
    for fails in ([], ["x-fail: 1"]):
        site.gates.clear()
        site.gate("a").opened.set()
        with Connection(served) as connection:
            lines = ["GET " + path + " HTTP/1.0", "Host: shop", "x-user: alice", "x-gate: a", *fails, "", ""]
            connection.send("\r\n".join(lines).encode())
            head = connection.head()
            assert head.header("transfer-encoding") is None or fails
            body = connection.file.read()
        if fails:
            assert head.status == 500
            assert b"alice" not in body
        else:
            assert body == page_of("alice", "let through")
            assert head.header("content-length") == str(len(body))


@pytest.mark.parametrize("path", ["/public", "/endpoint"])
def test_a_client_that_goes_away_ends_the_windows(served: Served, site: Site, path: str) -> None:
    gate = site.gate("a")
    with Connection(served) as connection:
        connection.send(request_bytes(path, "x-user: alice", "x-gate: a"))
        assert connection.head().status == 200
        assert gate.entered.wait(PATIENCE)
    assert site.cancelled.wait(PATIENCE)
    with Connection(served) as connection:
        assert connection.ask(path, "x-user: bob").body == page_of("bob")


@pytest.mark.parametrize("path", PATHS)
def test_a_head_has_no_body_and_leaves_the_connection_to_the_next(served: Served, site: Site, path: str) -> None:
    """No window runs: that of the gate would wait for ever."""
    with Connection(served) as connection:
        for user in ("alice", "bob"):
            answer = connection.ask(path, f"x-user: {user}", "x-gate: never", method="HEAD")
            assert (answer.status, answer.body, answer.header("content-length")) == (200, b"", None)
            assert connection.ask(path, f"x-user: {user}").body == page_of(user)
    assert site.gates == {}


def test_compression_outside_has_the_whole_of_it(served: Served) -> None:
    """With its length, in chunks, and streamed by the application."""
    with httpx.Client(base_url=served.url, headers={"accept-encoding": "gzip"}) as client:
        for path in (*PATHS, "/stream", "/stream"):
            for user in ("alice", "bob"):
                answer = client.get(path, headers={"x-user": user})
                assert answer.headers["content-encoding"] == "gzip"
                assert answer.content == (page_of(user) if path != "/stream" else f"Hello {user}, {user}".encode())


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_server_that_shuts_down_ends_the_windows(site: Site, http: str) -> None:
    """It does not wait for them longer than it waits for other requests. What was sent does not look whole."""
    gate = site.gate("a")
    with serve(site.app, http=http, timeout_graceful_shutdown=0) as where:
        connection = Connection(where)
        connection.send(request_bytes("/public", "x-user: alice", "x-gate: a"))
        assert gate.entered.wait(PATIENCE)
        assert connection.head().status == 200
    assert site.cancelled.is_set()
    with connection:
        assert not connection.file.read().endswith(b"0\r\n\r\n")


def test_two_users_on_kept_connections(served: Served, site: Site) -> None:
    """Four clients at once, each with a connection of its own for both; some windows wait, and some pages fail."""
    for number in range(5):
        site.gate(str(number)).opened.set()

    def visit(seed: int) -> None:
        chance = Random(seed)
        with Connection(served) as connection:
            for serial in range(100):
                user, path = f"{chance.choice(['alice', 'bob'])} {seed} {serial}", chance.choice(PATHS)
                lines, gated = [f"x-user: {user}"], "open"
                if chance.random() < 0.3:
                    lines.append(f"x-gate: {chance.randrange(5)}")
                    gated = "let through"
                assert connection.ask(path, *lines).body == page_of(user, gated)
                if chance.random() < 0.1:
                    with Connection(served) as other:  # which the server closes
                        answer = other.ask(path, *lines, "x-fail-at-once: 1")
                    assert (answer.status, answer.body) == (500, b"Internal Server Error")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(visit, range(4)))
