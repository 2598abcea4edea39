"""The response cache behind a real server: what goes over the wire, for clients that do as they please."""

import threading
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
import wsproto
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from asynctag import Cache
from asynctag.http import CacheMiddleware, cache_response
from asynctag.testing import FakeClock
from tests.http import test_middleware
from tests.http.serving import PATIENCE, Connection, Gate, Served, request_bytes, serve

#: More than the default `max_body`, and than any socket's buffers together.
TWO_MEGABYTES = 2 * 1024 * 1024
SIXTEEN_MEGABYTES = 8 * TWO_MEGABYTES


wall = test_middleware.wall


class Shop:
    """The pages, their counts and what they wait for."""

    def __init__(self, cache: Cache, **options: Any) -> None:
        self.cache = cache
        self.runs = 0
        self.gate = Gate()
        #: Set once a streamed body is over, by whatever end.
        self.over = threading.Event()
        #: How many entries the cache held as bytes of a body were handed to the server.
        self.entries: list[int] = []
        #: `all_arrived` is set once as many requests as are `wanted` came.
        self.arrived = 0
        self.all_arrived = threading.Event()
        self.wanted = 0
        self.app = CacheMiddleware(Starlette(routes=self.routes()), cache=cache, **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.arrived += 1
            if self.arrived == self.wanted:
                self.all_arrived.set()

        async def send_on(message: Any) -> None:
            if message.get("body"):
                self.entries.append(len(self.cache._filling().backend))  # type: ignore[arg-type]
            await send(message)

        await self.app(scope, receive, send_on)

    def count(self) -> str:
        self.runs += 1
        return f"run {self.runs}"

    def routes(self) -> list[Any]:
        public = cache_response(60, public=True, tags=["page"])
        return [
            Route("/page", public(self.page), methods=["GET", "HEAD"]),
            Route("/guarded", cache_response(60)(self.page)),
            Route("/same", public(self.same)),
            Route("/held", public(self.held)),
            Route("/stream", public(self.stream)),
            Route("/steps", public(self.steps)),
            Route("/known-length", public(self.known_length)),
            Route("/large/{size:int}", public(self.large)),
            Route("/none", cache_response(60, public=True, statuses=[204])(self.none)),
            Route("/missing", cache_response(60, public=True, statuses=[404])(self.missing)),
            Route("/fails", public(self.fails)),
            Route("/echo", public(self.echo), methods=["GET", "POST"]),
            WebSocketRoute("/socket", self.socket),
        ]

    async def page(self, request: Request) -> Response:
        return PlainTextResponse(self.count(), headers={"x-query": request.url.query})

    async def same(self, request: Request) -> Response:
        self.count()
        return PlainTextResponse("same")

    async def held(self, request: Request) -> Response:
        text = self.count()
        await self.gate.wait()
        return PlainTextResponse(text)

    async def stream(self, request: Request) -> Response:
        return StreamingResponse(iter(["one ", "two ", self.count()]))

    async def steps(self, request: Request) -> Response:
        text = self.count()

        async def body() -> AsyncIterator[str]:
            try:
                yield f"{text}, "
                await self.gate.wait()
                yield "end"
            finally:
                self.over.set()

        return StreamingResponse(body())

    async def known_length(self, request: Request) -> Response:
        text = self.count()
        return StreamingResponse(iter([text]), headers={"content-length": str(len(text))})

    async def large(self, request: Request) -> Response:
        self.count()
        size: int = request.path_params["size"]

        async def body() -> AsyncIterator[bytes]:
            try:
                for _ in range(size // 65_536):
                    yield b"x" * 65_536
            finally:
                self.over.set()

        return StreamingResponse(body())

    async def none(self, request: Request) -> Response:
        self.count()
        return Response(status_code=204)

    async def missing(self, request: Request) -> Response:
        return PlainTextResponse(self.count(), status_code=404)

    async def fails(self, request: Request) -> Response:
        raise RuntimeError(self.count())

    async def echo(self, request: Request) -> Response:
        return PlainTextResponse(b"%s: " % self.count().encode() + await request.body())

    async def socket(self, websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"echo {text}")


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


@pytest.fixture(params=["h11", "httptools"])
def served(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Served]:
    with serve(shop, http=request.param, ws="wsproto") as served:
        yield served
        shop.gate.opened.set()


@pytest.fixture
def connection(served: Served) -> Iterator[Connection]:
    with Connection(served) as connection:
        yield connection


# --- misses and hits ------------------------------------------------------------------------------------


def test_a_miss_and_a_hit_as_they_stand_on_the_wire(connection: Connection) -> None:
    miss, hit = connection.ask("/page"), connection.ask("/page")
    for answer in (miss, hit):
        assert (answer.status, answer.body) == (200, b"run 1")
        assert answer.header("content-length") == "5"
        assert answer.header("transfer-encoding") is None
        assert answer.header("date") is not None
        assert answer.header("server") == "uvicorn"
        assert answer.header("content-type") == "text/plain; charset=utf-8"
        assert answer.header("cache-control") == "no-cache"
        assert answer.header("connection") is None
    assert miss.header("etag") == hit.header("etag") is not None
    assert miss.header("age") is None
    assert int(hit.header("age") or -1) >= 0
    assert miss.cache_status == "asynctag; fwd=uri-miss; stored"
    assert hit.cache_status.startswith("asynctag; hit; ttl=")
    assert {name for name, _ in hit.headers} == {*(name for name, _ in miss.headers), "age"}


def test_age_and_ttl_tell_the_time_that_has_passed(
    connection: Connection, clock: FakeClock, wall: SimpleNamespace
) -> None:
    connection.ask("/page")
    for seconds in (0, 10, 20):
        hit = connection.ask("/page")
        assert hit.header("age") == str(seconds)
        assert hit.cache_status == f"asynctag; hit; ttl={60 - seconds}"
        clock.advance(10)
        wall.now += 10
    clock.advance(31)
    assert connection.ask("/page").body == b"run 2"


def test_a_streamed_body_is_chunked_on_a_miss_and_whole_on_a_hit(connection: Connection) -> None:
    miss, hit = connection.ask("/stream"), connection.ask("/stream")
    assert miss.header("transfer-encoding") == "chunked"
    assert hit.header("transfer-encoding") is None
    assert hit.header("content-length") == str(len(hit.body))
    assert hit.body == miss.body == b"one two run 1"
    assert hit.hit


@pytest.mark.parametrize(("path", "status", "length"), [("/none", 204, None), ("/missing", 404, "5")])
def test_stored_statuses_come_as_they_were(connection: Connection, path: str, status: int, length: str | None) -> None:
    miss, hit = connection.ask(path), connection.ask(path)
    assert hit.hit
    for answer in (miss, hit):
        assert answer.status == status
        assert answer.header("content-length") == length
        assert answer.header("transfer-encoding") is None
    assert miss.body == hit.body
    assert connection.ask("/page").status == 200


def test_an_endpoint_that_fails_is_asked_again(served: Served, shop: Shop) -> None:
    for run in (1, 2):
        with Connection(served) as connection:  # the server closes it
            assert connection.ask("/fails").status == 500
        assert shop.runs == run


def test_an_ordinary_client_sees_hits_until_an_invalidation(served: Served, shop: Shop) -> None:
    with httpx.Client(base_url=served.url) as client:
        first, second = client.get("/page"), client.get("/page")
        assert "; hit" in second.headers["cache-status"]
        assert first.text == second.text == "run 1"
        assert client.get("/page", params={"a": "1"}).headers["x-query"] == "a=1"
        anyio.run(shop.cache.invalidate, "page")
        third = client.get("/page")
        assert third.text == "run 3"
        assert third.headers["cache-status"] == 'asynctag; fwd=stale; stored; detail="tag page"'


def test_hosts_and_queries_tell_pages_apart_on_one_connection(connection: Connection) -> None:
    targets = [("/page", "one"), ("/page", "two"), ("/page?a=1", "one"), ("/page?a=2", "one"), ("/p%61ge", "one")]
    first = [connection.ask(path, host=host) for path, host in targets]
    again = [connection.ask(path, host=host) for path, host in targets]
    assert [answer.body for answer in first] == [b"run %d" % run for run in range(1, 6)]
    assert [answer.body for answer in again] == [answer.body for answer in first]
    assert all(answer.hit for answer in again)


@pytest.mark.parametrize("path", ["/page", "/stream"])
def test_a_client_of_http_1_0_gets_a_hit_and_the_end_of_the_connection(
    served: Served, connection: Connection, path: str
) -> None:
    page = connection.ask(path)
    with Connection(served) as old:
        old.send(f"GET {path} HTTP/1.0\r\nHost: shop\r\n\r\n".encode())
        answer = old.answer()
        assert answer.hit
        assert answer.body == page.body
        assert old.ended()


def test_the_root_path_of_the_server_keeps_pages_apart(cache: Cache) -> None:
    """Two servers behind one proxy, on one cache: their links begin with what each is served under."""

    async def where(request: Request) -> Response:
        return PlainTextResponse(str(request.url_for("where")), headers={"cache-control": "public, s-maxage=60"})

    app = CacheMiddleware(Starlette(routes=[Route("/where", where)]), cache=cache)
    with serve(app, root_path="/one", lifespan="off") as one, serve(app, root_path="/two", lifespan="off") as two:
        for hit in (False, True):
            for served, name in ((one, "one"), (two, "two")):
                with Connection(served) as connection:
                    answer = connection.ask("/where")
                    assert answer.body.decode() == f"http://shop/{name}/where"
                    assert answer.hit == hit


# --- conditions, HEAD, one request after the other -------------------------------------------------------


@pytest.mark.parametrize("path", ["/page", "/guarded"])
def test_304_has_no_body_and_leaves_the_connection_usable(connection: Connection, path: str) -> None:
    page = connection.ask(path)
    etag = page.header("etag")
    for _ in range(2):
        answer = connection.ask(path, f"If-None-Match: {etag}")
        assert (answer.status, answer.header("etag")) == (304, etag)
        assert answer.header("transfer-encoding") is None
        assert answer.header("content-length") in (None, str(len(page.body)))
        assert answer.header("content-type") is None
        assert answer.hit
    assert connection.ask(path, 'If-None-Match: "other"').body == page.body


def test_a_miss_that_its_client_has_already_is_304_too(connection: Connection, shop: Shop) -> None:
    etag = connection.ask("/same").header("etag")
    anyio.run(shop.cache.invalidate, "page")
    for hit in (False, True):
        answer = connection.ask("/same", f"If-None-Match: {etag}")
        assert (answer.status, answer.header("etag"), answer.hit) == (304, etag, hit)
    assert connection.ask("/same").body == b"same"
    assert shop.runs == 2


def test_head_has_the_headers_of_get_and_no_body(connection: Connection, shop: Shop) -> None:
    first = connection.ask("/page", method="HEAD")
    assert (first.status, first.header("content-length")) == (200, "5")
    page = connection.ask("/page")
    connection.ask("/page", method="HEAD")
    runs = shop.runs
    head = connection.ask("/page", method="HEAD")
    assert head.hit
    assert shop.runs == runs
    for name in ("content-length", "content-type", "etag", "cache-control"):
        assert head.header(name) == page.header(name), name
    assert connection.ask("/page").body == page.body


def test_head_of_a_stream_is_no_page(connection: Connection) -> None:
    for method in ("HEAD", "GET", "HEAD", "HEAD", "GET"):
        answer = connection.ask("/stream", method=method)
        assert answer.status == 200
    assert answer.hit
    assert answer.body.startswith(b"one two run ")


def test_pipelined_requests_are_answered_in_their_order(connection: Connection) -> None:
    etag = connection.ask("/page").header("etag")
    sent = [
        ("GET", "/page", ()),
        ("HEAD", "/page", ()),
        ("GET", "/page", (f"If-None-Match: {etag}",)),
        ("GET", "/stream", ()),
        ("GET", "/stream", ()),
        ("GET", "/none", ()),
        ("GET", "/page?a=1", ()),
        ("GET", "/page", ()),
    ]
    connection.send(b"".join(request_bytes(path, *lines, method=method) for method, path, lines in sent))
    answers = [connection.answer(method) for method, _, _ in sent]
    assert [answer.status for answer in answers] == [200, 200, 304, 200, 200, 204, 200, 200]
    assert answers[0].body == answers[-1].body == b"run 1"
    assert answers[3].body == answers[4].body
    assert [answer.hit for answer in answers] == [True, True, True, False, True, False, False, True]


# --- clients that go away, and slow ones -------------------------------------------------------------------


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(served: Served, shop: Shop) -> None:
    with Connection(served) as gone:
        gone.send(request_bytes("/steps"))
        assert gone.head().status == 200
        assert gone.chunk() == b"run 1, "
        assert shop.gate.entered.wait(PATIENCE)
    assert shop.over.wait(PATIENCE)  # the server has seen it
    shop.gate.opened.set()
    with Connection(served) as connection:
        answer = connection.ask("/steps")
        assert answer.body == b"run 2, end"
        assert not answer.hit
        again = connection.ask("/steps")
        assert again.hit
        assert again.body == answer.body


def test_a_client_that_goes_away_while_it_waits_for_another_leaves_the_other(served: Served, shop: Shop) -> None:
    shop.wanted = 2
    with Connection(served) as first:
        first.send(request_bytes("/held"))
        assert shop.gate.entered.wait(PATIENCE)
        with Connection(served) as second:
            second.send(request_bytes("/held"))
            assert shop.all_arrived.wait(PATIENCE)
        shop.gate.opened.set()
        assert first.answer().body == b"run 1"
        assert first.ask("/held").hit


def test_a_client_that_goes_away_lets_those_who_wait_for_its_page_have_it(served: Served, shop: Shop) -> None:
    shop.wanted = 2
    with Connection(served) as second:
        with Connection(served) as first:
            first.send(request_bytes("/held"))
            assert shop.gate.entered.wait(PATIENCE)
            second.send(request_bytes("/held"))
            assert shop.all_arrived.wait(PATIENCE)
        shop.gate.opened.set()
        answer = second.answer()
        assert (answer.status, answer.body) == (200, b"run %d" % shop.runs)
        assert second.ask("/held").body == answer.body


def test_a_slow_client_keeps_nobody_waiting(cache: Cache) -> None:
    """It takes the first bytes of a body that no buffer holds; another has the whole of it meanwhile."""
    shop = Shop(cache, max_body=SIXTEEN_MEGABYTES)
    path = f"/large/{SIXTEEN_MEGABYTES}"
    with serve(shop) as served, Connection(served, receive_buffer=4096) as slow, Connection(served) as quick:
        slow.send(request_bytes(path))
        assert slow.head().status == 200
        assert len(slow.chunk()) == 65_536
        assert not shop.over.is_set()
        assert len(quick.ask(path).body) == SIXTEEN_MEGABYTES
        hit = quick.ask(path)
        assert hit.hit
        assert hit.header("content-length") == str(SIXTEEN_MEGABYTES) == str(len(hit.body))
        assert sum(len(chunk) for chunk in iter(slow.chunk, b"")) == SIXTEEN_MEGABYTES - 65_536
        assert shop.runs == 2


# --- bodies ------------------------------------------------------------------------------------------------


def test_a_body_above_the_limit_passes_whole_and_is_not_stored(connection: Connection, shop: Shop) -> None:
    for run in (1, 2):
        answer = connection.ask(f"/large/{TWO_MEGABYTES}")
        assert len(answer.body) == TWO_MEGABYTES
        assert not answer.hit
        assert shop.runs == run


def test_a_request_right_after_the_last_byte_is_a_hit(served: Served, connection: Connection) -> None:
    with Connection(served) as other:
        for number in range(20):
            for path in ("/page", "/stream"):
                first = connection.ask(f"{path}?{number}")
                assert not first.hit
                second = other.ask(f"{path}?{number}")
                assert second.hit
                assert second.body == first.body


def test_the_last_byte_of_a_body_of_known_length_goes_to_the_server_after_it_is_stored(
    connection: Connection, shop: Shop
) -> None:
    """Its client has the whole of it then, while the application has not yet said that it is over."""
    assert connection.ask("/known-length").body == b"run 1"
    assert connection.ask("/known-length").hit
    assert shop.entries[0] == 2  # the URL's record and the response


@pytest.mark.parametrize("stored", [True, False])
def test_a_get_with_a_body_goes_to_the_application_and_is_not_stored(connection: Connection, stored: bool) -> None:
    """The body may say what is asked for, and no key holds it. The next request begins after it."""
    if stored:
        connection.ask("/echo")
    sized = request_bytes("/echo", "Content-Length: 5", body=b"first")
    chunked = request_bytes("/echo", "Transfer-Encoding: chunked", body=b"3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n")
    for sent, body in ((sized, b"first"), (chunked, b"second"), (sized, b"first")):
        connection.send(sent)
        answer = connection.answer()
        assert answer.body.endswith(b": " + body)
        assert answer.cache_status == 'asynctag; fwd=bypass; detail="body"'
    plain = connection.ask("/echo")
    assert plain.hit == stored
    assert plain.body.endswith(b": ")
    assert connection.ask("/echo").hit


def test_an_empty_body_is_none(connection: Connection) -> None:
    connection.ask("/echo")
    connection.send(request_bytes("/echo", "Content-Length: 0"))
    assert connection.answer().hit


def test_a_get_with_a_body_that_the_application_never_reads_leaves_no_request_behind(connection: Connection) -> None:
    """What looks like a request in it is none."""
    inner = request_bytes("/missing")
    connection.send(request_bytes("/page", f"Content-Length: {len(inner)}", body=inner) + request_bytes("/echo"))
    assert connection.answer().body == b"run 1"
    assert connection.answer().body == b"run 2: "


def test_a_chunked_body_of_a_post_arrives_and_its_answer_is_not_stored(connection: Connection) -> None:
    body = b"3\r\none\r\n4\r\n two\r\n0\r\n\r\n"
    for run in (1, 2):
        connection.send(request_bytes("/echo", "Transfer-Encoding: chunked", method="POST", body=body))
        assert connection.answer().body == b"run %d: one two" % run
    assert not connection.ask("/echo").hit


def test_a_client_that_waits_for_100_gets_it(connection: Connection) -> None:
    connection.send(request_bytes("/echo", "Content-Length: 4", "Expect: 100-continue", method="POST"))
    assert connection.head().status == 100
    connection.send(b"body")
    assert connection.answer().body == b"run 1: body"


# --- many at once -------------------------------------------------------------------------------------------


def test_twenty_clients_of_one_url_run_its_endpoint_once(served: Served, shop: Shop) -> None:
    shop.wanted = 20
    connections = [Connection(served) for _ in range(20)]
    try:
        for connection in connections:
            connection.send(request_bytes("/held"))
        assert shop.all_arrived.wait(PATIENCE)
        shop.gate.opened.set()
        answers = [connection.answer() for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert {answer.body for answer in answers} == {b"run 1"}
    assert sum("; collapsed" in answer.cache_status for answer in answers) == 19
    assert shop.runs == 1


# --- upgrades ------------------------------------------------------------------------------------------------


def test_an_offer_of_http_2_gets_the_page_by_http_1(connection: Connection) -> None:
    """As curl sends it. The offer is not taken, and the request is an ordinary one."""
    connection.ask("/page")
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    answer = connection.ask("/page", *offer)
    assert (answer.status, answer.body) == (200, b"run 1")
    assert answer.hit


def test_a_websocket_is_opened_and_talks_through_the_cache(served: Served, connection: Connection) -> None:
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    connection.send(client.send(wsproto.events.Request(host="shop", target="/socket")))

    def event() -> Any:
        while True:
            for one in client.events():
                return one
            client.receive_data(connection.socket.recv(65_536))

    assert isinstance(event(), wsproto.events.AcceptConnection)
    for text in ("one", "two"):
        connection.send(client.send(wsproto.events.TextMessage(text)))
        assert event().data == f"echo {text}"
    connection.send(client.send(wsproto.events.CloseConnection(1000)))
    assert isinstance(event(), wsproto.events.CloseConnection)
    with Connection(served) as other:  # and pages are served as before
        assert other.ask("/page").body == b"run 1"
        assert other.ask("/page").hit


def test_an_upgrade_to_what_the_server_does_not_know_is_not_answered_from_the_cache(connection: Connection) -> None:
    connection.ask("/page")
    answer = connection.ask("/page", "Connection: Upgrade", "Upgrade: other/1")
    assert answer.status == 200
    assert not answer.hit
    assert connection.ask("/page").body == b"run 1"
