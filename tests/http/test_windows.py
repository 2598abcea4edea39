"""Windows in responses: filled for whoever asks, on misses and hits, stored and not, and kept by nobody else."""

import html
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import litestar
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse as FastApiPage
from jinja2.utils import htmlsafe_json_dumps
from litestar import MediaType
from litestar.params import FromPath
from markupsafe import Markup
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from asynctag import Cache, no_store
from asynctag.backends.memory import MemoryBackend
from asynctag.errors import WindowError
from asynctag.http import CacheMiddleware, Policy, Surrogates, cache_of, cache_response, current_request
from asynctag.http import serving as serving_module
from asynctag.placeholders import Places
from asynctag.testing import FakeClock
from asynctag.windows import Window
from tests.http.driver import BrokenBackend, Call, all_blocked, ask, begin
from tests.http.windowed import ALICE, BOB, Endpoint, is_for_one, page_app, visitor_of

pytestmark = pytest.mark.anyio

#: What an application says of a body, or of keeping it, that is not so once its windows are filled.
OF_THE_SKELETON = {
    "accept-ranges": "bytes",
    "age": "1",
    "cache-groups": '"group"',
    "cache-tag": "tag",
    "content-digest": "sha-256=:AA==:",
    "content-md5": "AA==",
    "digest": "sha-256=AA==",
    "edge-cache-tag": "tag",
    "edge-control": "max-age=60",
    "etag": '"skeleton"',
    "expires": "Thu, 01 Jan 2099 00:00:00 GMT",
    "last-modified": "Thu, 01 Jan 2015 00:00:00 GMT",
    "repr-digest": "sha-256=:AA==:",
    "surrogate-control": "max-age=60",
    "surrogate-key": "tag",
    "x-accel-expires": "60",
    "xkey": "tag",
}


@dataclass(frozen=True)
class Way:
    """How a page comes to be stored, or not to be."""

    policy: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    status: int = 200
    method: str = "GET"
    inside: Callable[[], None] = lambda: None


STORED = {
    "before routing": Way({"public": True}),
    "at the endpoint": Way({}),
    "by whose it is": Way({"key": lambda request: "everybody's"}),
    "varying": Way({"public": True, "vary": ["accept"]}),
    "varying by its own word": Way({"public": True}, {"vary": "accept"}),
    "whatever the cookies": Way({"public": True, "cookies": ()}, sent={"cookie": "a=b"}),
    "by its own word": Way(None, {"cache-control": "public, max-age=60"}),
    "by a word to this cache": Way(None, {"x-target": "max-age=60"}, {"target": "x-target"}),
    "by a word to CDNs": Way(None, {"cdn-cache-control": "max-age=60"}),
    "as RFC 9111 lets a cache": Way(None, {"cache-control": "max-age=60"}, {"store": "rfc9111"}),
    "by its path": Way(None, options={"paths": {"/": Policy(ttl=60, public=True)}}),
    "as a 404": Way({"public": True, "statuses": [404]}, status=404),
    "held till it is whole": Way({"public": True}, options={"buffer_tags": True}),
    "with its tags": Way({"public": True}, options={"groups": True, "surrogates": Surrogates.fastly()}),
}
NOT_STORED = {
    "without a policy": Way(),
    "for Authorization": Way({"public": True}, sent={"authorization": "x"}),
    "for a cookie": Way({"public": True}, sent={"cookie": "a=b"}),
    "for a cookie, at the endpoint": Way({}, sent={"cookie": "a=b"}),
    "since no_store() says so": Way({"public": True}, inside=no_store),
    "since the response says no-store": Way({"public": True}, {"cache-control": "no-store"}),
    "since it says private, and a word to CDNs": Way(
        None, {"cache-control": "private", "cdn-cache-control": "no-store"}
    ),
    "since it sets a cookie": Way({"public": True}, {"set-cookie": "a=b"}),
    "as a 404": Way({"public": True}, status=404),
    "as a 500": Way({"public": True}, status=500),
    "as too large": Way({"public": True}, options={"max_body": 10}),
    "as the answer to a POST": Way({"public": True}, method="POST"),
    "with a group that is invalidated": Way(None, {"cache-group-invalidation": '"x"'}, {"groups": True}, method="POST"),
}


class Page:
    """A page that greets whoever asks, and how often it was made."""

    def __init__(self, cache: Cache, way: Way) -> None:
        self.runs = 0
        self._visitor = visitor_of(cache)
        self._way = way
        self.app = page_app(cache, self.endpoint, way.policy, **way.options)

    async def endpoint(self, request: Request) -> Response:
        self.runs += 1
        self._way.inside()
        headers = {**OF_THE_SKELETON, "x-kept": "1", **self._way.headers}
        return PlainTextResponse(f"Hello {self._visitor()}!", self._way.status, headers)

    async def ask(self, user: dict[str, str]) -> Call:
        return await ask(self.app, method=self._way.method, headers=user | self._way.sent)


def check(call: Call, way: Way, user: str) -> None:
    """What holds of every response with windows, whether it was stored or not."""
    assert call.status == way.status
    assert call.text == f"Hello {user}!"
    assert call.header("content-length") == str(len(call.body))
    assert is_for_one(call)
    assert call.header("x-kept") == "1"
    gone = {*OF_THE_SKELETON, "cdn-cache-control", "x-target", "pragma"}
    assert [name for name, _ in call.start["headers"] if name.decode() in gone] == []


@pytest.mark.parametrize("name", STORED)
async def test_what_is_stored_is_filled_for_each_who_asks(cache: Cache, name: str) -> None:
    """One run of the application, each their own window, and nothing that lets another cache keep it."""
    way = STORED[name]
    page = Page(cache, way)
    calls = [(user["x-user"], await page.ask(user)) for user in (ALICE, BOB, BOB, ALICE)]
    for user, call in calls:
        check(call, way, user)
    assert page.runs == 1
    assert [call.hit for _, call in calls] == [False, True, True, True]
    assert "; stored" in calls[0][1].cache_status
    assert [call.header("vary") for _, call in calls] == [calls[0][1].header("vary")] * 4


@pytest.mark.parametrize("name", NOT_STORED)
async def test_what_is_not_stored_is_filled_for_each_who_asks(cache: Cache, name: str) -> None:
    way = NOT_STORED[name]
    page = Page(cache, way)
    for user in (ALICE, BOB, ALICE):
        call = await page.ask(user)
        check(call, way, user["x-user"])
        assert not call.hit
        assert "; stored" not in call.cache_status
    assert page.runs == 3


async def test_a_page_is_filled_while_the_cache_is_disabled_and_while_it_does_not_answer() -> None:
    broken = Cache(BrokenBackend())
    page = Page(broken, STORED["before routing"])
    check(await page.ask(ALICE), Way(), "alice")
    disabled = Cache()
    page = Page(disabled, STORED["before routing"])
    with disabled.disabled():
        check(await page.ask(ALICE), Way(), "alice")
        check(await page.ask(BOB), Way(), "bob")
    assert page.runs == 2


@pytest.mark.parametrize("name", STORED)
async def test_where_no_window_stands_nothing_is_taken_away(cache: Cache, name: str) -> None:
    """One that was placed, and whose text went nowhere, leaves the response what it is without it."""
    way = STORED[name]
    visitor = visitor_of(cache)

    def page(*, placed: bool) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            if placed:
                visitor()
            return PlainTextResponse("Hello!", way.status, OF_THE_SKELETON | way.headers)

        return endpoint

    placed = page_app(cache, page(placed=True), way.policy, **way.options)
    without = page_app(Cache(MemoryBackend(clock=cache._filling().backend.clock)), page(placed=False), way.policy,
                       **way.options)  # fmt: skip
    for _ in range(2):
        messages = [
            [one for one in (await ask(app, headers=way.sent)).messages if one["type"] != "http.response.debug"]
            for app in (placed, without)
        ]
        for one in messages:
            one[0]["headers"] = [pair for pair in one[0]["headers"] if pair[0] not in (b"surrogate-key", b"date")]
        assert messages[0] == messages[1]
    assert (await ask(placed, headers=way.sent)).hit


async def test_the_tags_of_a_page_drop_it_and_those_of_its_windows_do_not(cache: Cache) -> None:
    runs = {"page": 0, "cart": 0}

    @cache.cached(ttl=60, tags=["cart:{user}"], name="cart_of")
    async def cart_of(user: str) -> str:
        runs["cart"] += 1
        return f"{user}'s cart, {runs['cart']}"

    @cache.window(name="cart")
    async def cart() -> str:
        tagged = cache_of(current_request())
        tagged.add_tags("by the window")
        tagged.no_store()
        return await cart_of(current_request().headers["x-user"])

    async def page(request: Request) -> Response:
        runs["page"] += 1
        return PlainTextResponse(f"{runs['page']} {cart()}")

    app = page_app(cache, page, {"public": True, "tags": ["page"]}, expose_tags="x-tags")
    assert (await ask(app, headers=ALICE)).text == "1 alice's cart, 1"
    assert (await ask(app, headers=BOB)).text == "1 bob's cart, 2"
    await cache.invalidate("cart:alice", "by the window")
    call = await ask(app, headers=ALICE)
    assert (call.text, call.hit, call.header("x-tags")) == ("1 alice's cart, 3", True, "page")
    assert (await ask(app, headers=BOB)).text == "1 bob's cart, 2"
    await cache.invalidate("page")
    call = await ask(app, headers=BOB)
    assert (call.text, call.hit, call.header("x-tags")) == ("2 bob's cart, 2", False, "page")


async def test_a_hit_is_not_searched_for_windows(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way before routing and at the endpoint: the text was cut when it was stored."""
    pages = [Page(cache, STORED["before routing"])]
    other = Cache()
    pages.append(Page(other, STORED["at the endpoint"]))
    for page in pages:
        await page.ask(ALICE)

    def split(*_: Any, **__: Any) -> Any:
        raise AssertionError("a hit was searched")

    monkeypatch.setattr(Places, "split", split)
    monkeypatch.setattr(Places, "stands_in", split)
    for page in pages:
        call = await page.ask(BOB)
        assert (call.text, call.hit) == ("Hello bob!", True)


# --- what stands where -----------------------------------------------------------------------------------

#: What a window may return that means something to a page around it.
AWKWARD = '"it\'s" \\ </script><!-- & \u2028 \U0001f600 \x00 {{ x }}'


def returning(cache: Cache, value: Any) -> Any:
    @cache.window(name="returns")
    async def returns() -> Any:
        return value

    return returns


def json_page(content: Any) -> Response:
    return JSONResponse(content)


#: Texts of a page, given the window; what is to be found in it, given what the window returned.
PLACED: dict[str, tuple[Callable[[Any], Response], Callable[[Call, str], bool]]] = {
    "as text": (lambda w: PlainTextResponse(f"a{w()}z"), lambda call, text: call.text == f"a{text}z"),
    "as bytes": (lambda w: Response(b"a" + w().encode() + b"z"), lambda call, text: call.text == f"a{text}z"),
    "twice, and at both ends": (
        lambda w: PlainTextResponse(f"{w()}-{w()}"),
        lambda call, text: call.text == f"{text}-{text}",
    ),
    "as all of a page": (lambda w: HTMLResponse(w()), lambda call, text: call.text == text),
    "escaped as HTML": (
        lambda w: HTMLResponse(Markup("<p>") + w() + Markup("</p>")),
        lambda call, text: "<" not in call.text[3:-4] and html.unescape(call.text[3:-4]) == text,
    ),
    "as a value of JSON": (
        lambda w: json_page({"a": w(), "b": [w()]}),
        lambda call, text: json.loads(call.body) == {"a": text, "b": [text]},
    ),
    "within a string of JSON": (
        lambda w: json_page({"a": f"Hello {w()}!"}),
        lambda call, text: json.loads(call.body) == {"a": f"Hello {text}!"},
    ),
    "within escaped quotes in JSON": (
        lambda w: json_page({"a": f'"{w()}"', "b": f'\\"{w()}\\"'}),
        lambda call, text: json.loads(call.body) == {"a": f'"{text}"', "b": f'\\"{text}\\"'},
    ),
    "as JSON within JSON": (
        lambda w: json_page({"a": json.dumps({"b": f"Hello {w()}"})}),
        lambda call, text: True,
    ),
    "as a value in a script": (
        lambda w: HTMLResponse(f"<script>x = {htmlsafe_json_dumps({'a': w()})}</script>"),
        lambda call, text: call.text.count("</script>") == 1 and json.loads(call.text[12:-9]) == {"a": text},
    ),
    "within a string in a script": (
        lambda w: HTMLResponse(f"<script>x = {htmlsafe_json_dumps(f'Hello {w()}!')}</script>"),
        lambda call, text: call.text.count("</script>") == 1 and json.loads(call.text[12:-9]) == f"Hello {text}!",
    ),
    "as problem+json": (
        lambda w: Response(json.dumps({"detail": w()}), media_type="application/problem+json; charset=utf-8"),
        lambda call, text: json.loads(call.body) == {"detail": text},
    ),
    "in XML": (lambda w: Response(f"<a>{w()}</a>", media_type="application/xml"), lambda call, text: text in call.text),
    "without a type": (lambda w: Response(f"<a>{w()}</a>"), lambda call, text: text in call.text),
    "in JSON that does not say so": (
        lambda w: PlainTextResponse(json.dumps({"a": w()})),
        lambda call, text: call.text == '{"a": "' + text + '"}',
    ),
}


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("name", PLACED)
async def test_what_a_window_returns_stands_there_as_the_page_needs_it(cache: Cache, name: str, public: bool) -> None:
    """The same on the miss, on the hit, and where nothing is stored."""
    make, stands = PLACED[name]
    window = returning(cache, AWKWARD)

    async def page(request: Request) -> Response:
        return make(window)

    app = page_app(cache, page, {"public": public})
    first, second = await ask(app), await ask(app)
    third = await ask(app, headers={"authorization": "x"})
    assert (first.hit, second.hit, third.hit) == (False, True, False)
    assert first.body == second.body == third.body
    assert stands(first, AWKWARD), first.text
    assert is_for_one(first)


@pytest.mark.parametrize("value", [0, 1.5, None, True, [1, "two"], {"a": {"b": None}}, "text", Markup("<b>")])
async def test_a_value_of_json_takes_the_place_of_the_string(cache: Cache, value: Any) -> None:
    window = returning(cache, value)

    class Shown(BaseModel):
        name: str
        value: Any

    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/model")
    @cache_response(60, public=True)
    async def model() -> Shown:
        return Shown(name="x", value=window())

    @app.get("/dict")
    @cache_response(60, public=True)
    async def plain() -> dict[str, Any]:
        return {"name": "x", "value": window()}

    for path in ("/model", "/model", "/dict", "/dict"):
        assert json.loads((await ask(app, path)).body) == {"name": "x", "value": value}


async def test_a_window_that_returns_what_is_no_text_cannot_stand_in_text(cache: Cache) -> None:
    """Nothing of the page is out: the server can still say 500."""
    window = returning(cache, 5)

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"a{window()}z")

    app = page_app(cache, page, {"public": True})
    for _ in range(2):
        call = await ask(app)
        assert (call.status, b"a" in call.body) == (500, False) or call.text == "Internal Server Error"
        assert "returns returned what cannot stand where it was placed" in str(call.error)


@pytest.mark.parametrize(
    ("charset", "sent", "found"),
    [
        ("latin-1", "é …", b"\xe9 ?"),
        ('"ISO-8859-15"', "é €", b"\xe9 \xa4"),
        ("shift_jis", "日", b"\x93\xfa"),
        ("utf8", "é", "é".encode()),
        ("no-such-thing", "é", "é".encode()),
        ("idna", "é", "é".encode()),
        ("hex", "é", "é".encode()),
        ("", "é", "é".encode()),
    ],
)
async def test_a_window_is_written_in_the_charset_of_the_page(
    cache: Cache, charset: str, sent: str, found: bytes
) -> None:
    """What cannot be said in it is a question mark; of one that nobody knows, the application has written UTF-8."""
    window = returning(cache, sent)

    async def page(request: Request) -> Response:
        headers = {"content-type": f"text/plain; Charset={charset}"}
        return Response(b"a " + window().encode() + b" z", headers=headers)

    app = page_app(cache, page, {"public": True})
    for _ in range(2):
        assert (await ask(app)).body == b"a " + found + b" z"


@pytest.mark.parametrize("charset", ["utf-16", "UTF-32", "cp037"])
@pytest.mark.parametrize("policy", [None, {"public": True}])
async def test_a_charset_in_which_no_window_can_be_found_is_an_error(
    cache: Cache, charset: str, policy: dict[str, Any] | None
) -> None:
    """A page with the number of a placeholder in it would be worse."""
    window = returning(cache, "x")

    async def page(request: Request) -> Response:
        return Response(f"a {window()} z".encode(charset), media_type=f"text/plain; charset={charset}")

    call = await ask(page_app(cache, page, policy))
    assert isinstance(call.error, WindowError)
    assert call.status == 500
    assert f"a window cannot be found in a body in {charset.lower()}: send it as UTF-8" in str(call.error)


@pytest.mark.parametrize("policy", [None, {}, {"public": True}])
async def test_a_placeholder_that_was_cut_is_an_error_that_says_where(
    cache: Cache, policy: dict[str, Any] | None
) -> None:
    window = returning(cache, "x")

    async def page(request: Request) -> Response:
        return PlainTextResponse("before " + str(window())[:-3])

    call = await ask(page_app(cache, page, policy))
    assert call.text == "Internal Server Error"
    assert str(call.error).startswith("the body of the response to GET /: the placeholder of a window was cut")
    assert "before" in str(call.error)


@pytest.mark.parametrize("policy", [None, {}, {"public": True}])
async def test_compression_inside_is_an_error_that_says_where_it_belongs(
    cache: Cache, policy: dict[str, Any] | None
) -> None:
    """What compresses has the placeholders, and not what is to stand there. An encoding that is none is none."""
    window = returning(cache, "x")

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{window()}", headers={"content-encoding": request.headers["x-encoding"]})

    app = page_app(cache, page, policy)
    call = await ask(app, headers={"x-encoding": "br"})
    assert call.text == "Internal Server Error"
    assert "put what compresses outside of CacheMiddleware" in str(call.error)
    assert (await ask(app, headers={"x-encoding": "Identity"})).text == "x"


# --- frameworks ------------------------------------------------------------------------------------------


class Greeting(BaseModel):
    id: int
    text: str
    visitor: str


def fastapi_app(cache: Cache, visitor: Window[[], str], runs: list[str]) -> Any:
    app = FastAPI()
    app.add_middleware(CacheMiddleware, cache=cache)

    @app.get("/html/{number}", response_class=FastApiPage)
    @cache_response(60, tags=["page:{number}"], public=True)
    async def html(number: int) -> str:
        runs.append("html")
        return f"<p>{number} {visitor()}</p>"

    @app.get("/sync/{number}", response_class=FastApiPage)
    @cache_response(60, tags=["page:{number}"])
    def sync(number: int) -> str:
        runs.append("sync")
        return f"<p>{number} {visitor()}</p>"

    @app.get("/json/{number}")
    @cache_response(60, tags=["page:{number}"])
    async def model(number: int) -> Greeting:
        runs.append("json")
        return Greeting(id=number, text=f"Hello {visitor()}", visitor=visitor())

    return app


def starlette_app(cache: Cache, visitor: Window[[], str], runs: list[str]) -> Any:
    async def html(request: Request) -> Response:
        runs.append("html")
        return HTMLResponse(f"<p>{request.path_params['number']} {visitor()}</p>")

    async def sync(request: Request) -> Response:
        return HTMLResponse((await html(request)).body)

    async def model(request: Request) -> Response:
        runs.append("json")
        return JSONResponse({"id": request.path_params["number"], "text": f"Hello {visitor()}", "visitor": visitor()})

    policy, public = cache_response(60, tags=["page:{number}"]), cache_response(60, tags=["page:{number}"], public=True)
    inner = Starlette(routes=[Route("/{number:int}", policy(sync))])
    app = Starlette(
        routes=[
            Route("/html/{number:int}", public(html)),
            Mount("/sync", app=inner),
            Route("/json/{number:int}", policy(model)),
        ]
    )
    return CacheMiddleware(app, cache=cache)


def litestar_app(cache: Cache, visitor: Window[[], str], runs: list[str]) -> Any:
    @litestar.get("/html/{number:int}", media_type=MediaType.HTML)
    async def html(number: FromPath[int]) -> str:
        runs.append("html")
        return f"<p>{number} {visitor()}</p>"

    @litestar.get("/sync/{number:int}", media_type=MediaType.HTML, sync_to_thread=True)
    def sync(number: FromPath[int]) -> str:
        runs.append("sync")
        return f"<p>{number} {visitor()}</p>"

    @litestar.get("/json/{number:int}")
    async def model(number: FromPath[int]) -> dict[str, Any]:
        runs.append("json")
        return {"id": number, "text": f"Hello {visitor()}", "visitor": visitor()}

    app = litestar.Litestar([html, sync, model], openapi_config=None)
    policy = Policy(ttl=60, public=True)
    return CacheMiddleware(app, cache=cache, policy=lambda request: policy)


def bare_app(cache: Cache, visitor: Window[[], str], runs: list[str]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind, number = scope["path"].strip("/").split("/")
        runs.append(kind)
        if kind == "json":
            values = {"id": int(number), "text": f"Hello {visitor()}", "visitor": visitor()}
            headers, body = [(b"Content-Type", b"application/json")], json.dumps(values).encode()
        else:
            headers, body = [(b"Content-Type", b"text/html")], f"<p>{number} {visitor()}</p>".encode()
        headers += [(b"Cache-Control", b"public, max-age=60"), (b"Content-Length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return CacheMiddleware(app, cache=cache)


@pytest.mark.parametrize("make", [fastapi_app, starlette_app, litestar_app, bare_app])
async def test_windows_stand_in_the_pages_of_every_framework(cache: Cache, make: Any) -> None:
    """In async endpoints, in threads, in models and dicts; mounted, and with templates of tags."""
    runs: list[str] = []
    app = make(cache, visitor_of(cache), runs)
    for kind in ("html", "sync", "json"):
        runs.clear()
        for user in (ALICE, BOB, ALICE):
            call = await ask(app, f"/{kind}/7", headers=user)
            name = user["x-user"]
            if kind == "json":
                assert json.loads(call.body) == {"id": 7, "text": f"Hello {name}", "visitor": name}
            else:
                assert call.text == f"<p>7 {name}</p>"
            assert call.header("content-length") == str(len(call.body))
            assert is_for_one(call)
        assert len(runs) == 1


async def test_what_dependencies_add_on_a_hit_lets_nobody_keep_it(cache: Cache) -> None:
    """A guard that sets headers runs on hits at the endpoint too, after those of the stored response."""
    visitor = visitor_of(cache)

    def guard(response: Response) -> None:
        for name, value in (OF_THE_SKELETON | {"cdn-cache-control": "max-age=60", "x-kept": "1"}).items():
            response.headers[name] = value
        response.headers["cache-control"] = "public, max-age=60"

    app = FastAPI(dependencies=[Depends(guard)])
    app.add_middleware(CacheMiddleware, cache=cache, store="declared")

    @app.get("/", response_class=FastApiPage)
    @cache_response(60, key=lambda request: "everybody's")
    async def page() -> str:
        return f"Hello {visitor()}!"

    for user in (ALICE, BOB):
        check(await ask(app, headers=user), Way(), user["x-user"])


async def test_what_stands_between_adds_nothing_to_a_hit(cache: Cache) -> None:
    """A middleware inside sees the hits at the endpoint go by. One that compresses them has them filled."""
    visitor = visitor_of(cache)

    class AddsHeaders:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_more(message: Any) -> None:
                if message["type"] == "http.response.start":
                    more = [(name.encode(), value.encode()) for name, value in OF_THE_SKELETON.items()]
                    more = [*more, (b"CDN-Cache-Control", b"max-age=60"), (b"x-more", b"1")]
                    message = {**message, "headers": [*message["headers"], *more]}
                await send(message)

            await self.app(scope, receive, send_more)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"Hello {visitor()}!", headers={"x-kept": "1"})

    page = cache_response(60, key=lambda request: "everybody's")(endpoint)
    inside = [Middleware(AddsHeaders), Middleware(GZipMiddleware, minimum_size=1000)]
    app = CacheMiddleware(Starlette(routes=[Route("/", page)], middleware=inside), cache=cache)
    for user in (ALICE, BOB):
        check(await ask(app, headers=user), Way(), user["x-user"])


async def test_the_middleware_twice_fills_once(cache: Cache) -> None:
    calls: list[str] = []

    @cache.window(name="counted")
    async def counted() -> str:
        calls.append(current_request().url.path)
        return "x"

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{counted()}")

    app = CacheMiddleware(page_app(cache, page, {"public": True}), cache=cache)
    for _ in range(2):
        assert (await ask(app)).text == "x"
    assert calls == ["/", "/"]


async def test_a_mounted_application_with_a_cache_of_its_own_fills_its_own_windows(clock: FakeClock) -> None:
    """What is filled inside is nobody's outside: the cache around keeps none of it."""
    backend = MemoryBackend(clock=clock)
    outer, inner = Cache(backend), Cache(backend, namespace="inner")
    runs: list[int] = []
    visitor, outside = visitor_of(inner), returning(outer, "outer")

    async def page(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse(f"{visitor()} {outside()}", headers={"cache-control": "public, max-age=60"})

    app = Starlette(routes=[Mount("/sub", app=page_app(inner, page, {"public": True}))])
    app.add_middleware(CacheMiddleware, cache=outer)
    for user in (ALICE, BOB, ALICE):
        assert (await ask(app, "/sub/", headers=user)).text == f"{user['x-user']} outer"
    assert len(runs) == 1


# --- conditions, ranges, HEAD ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        {"if-none-match": "*"},
        {"if-none-match": '"skeleton"'},
        {"if-modified-since": "Thu, 01 Jan 2099 00:00:00 GMT"},
        {"range": "bytes=0-3"},
        {"range": "bytes=0-3", "if-range": '"skeleton"'},
        {"cache-control": "only-if-cached"},
        {"cache-control": "max-stale"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["before routing", "at the endpoint", "without a policy"])
async def test_no_condition_and_no_range_is_answered_from_a_skeleton(
    cache: Cache, name: str, sent: dict[str, str]
) -> None:
    """A 304 would tell of the skeleton, and a part of what nobody gets again: on a miss, and on a hit."""
    page = Page(cache, (STORED | NOT_STORED)[name])
    only_if_cached = "only-if-cached" in sent.values()
    if not only_if_cached:
        check(await page.ask(ALICE | sent), Way(), "alice")
    await page.ask(BOB)
    if name in STORED:
        call = await page.ask(ALICE | sent)
        assert call.hit
        check(call, Way(), "alice")


async def test_what_this_cache_makes_a_validator_of_is_not_the_skeleton(cache: Cache) -> None:
    """Of a body without windows it makes an ETag, on a miss and on a hit."""
    window = returning(cache, "x")

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{window()}")

    app = page_app(cache, page, {"public": True})
    assert [(await ask(app)).all("etag") for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("name", ["before routing", "at the endpoint", "without a policy", "as a 500"])
async def test_head_runs_no_window_and_tells_no_length(cache: Cache, name: str) -> None:
    """On a miss, and on a hit where there is one: its length and its validators are those of a GET that nobody made."""
    way = (STORED | NOT_STORED)[name]
    calls: list[str] = []

    @cache.window(name="visitor")
    async def visitor() -> str:
        calls.append("called")
        return "x"

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"Hello {visitor()}!", way.status, OF_THE_SKELETON)

    app = page_app(cache, endpoint, way.policy)
    for asked in ("HEAD", "GET", "HEAD", "HEAD"):
        call = await ask(app, method=asked)
        assert call.status == way.status
        assert is_for_one(call)
        assert call.all("etag") == []
        if asked == "HEAD":
            assert call.body == b""
            assert call.all("content-length") == []
            assert len(call.messages) == 2
            assert not call.messages[-1].get("more_body", False)
    assert calls == ["called"]
    # What a HEAD tells of a body is not of the one that is stored: it is no reason to drop it.
    assert (await ask(app)).hit is call.hit is (name in STORED)


async def test_a_head_changes_nothing_of_a_page_with_windows(cache: Cache, clock: FakeClock) -> None:
    """What it tells of a body is of the skeleton: neither a reason to drop what is stored, nor to call it fresh."""
    visitor = visitor_of(cache)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {"cache-control": "public, max-age=60, stale-if-error=600", "etag": '"skeleton"'}
        await PlainTextResponse(f"Hello {visitor()}!", headers=headers)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    await ask(wrapped)
    assert not (await ask(wrapped, method="HEAD")).hit
    call = await ask(wrapped, headers=ALICE)
    assert (call.text, call.hit) == ("Hello alice!", True)
    await cache.clear()
    await ask(wrapped)
    clock.advance(61)
    assert not (await ask(wrapped, method="HEAD")).hit
    call = await ask(wrapped, headers=ALICE)
    assert (call.text, call.hit) == ("Hello alice!", False)


async def test_a_revalidation_by_the_application_keeps_to_what_is_stored(cache: Cache, clock: FakeClock) -> None:
    """A page with windows has no validator to ask about: it is made anew. And one that becomes a page without windows,
    or the other way round, is what it has become."""
    visitor = visitor_of(cache)
    state = {"etag": '"1"', "windows": False}
    seen: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        seen.append(request.headers.get("if-none-match"))
        headers = {"cache-control": "public, max-age=60", "etag": state["etag"]}
        if state["windows"]:
            text = f"Hello {visitor()}!"
        else:
            visitor()
            text = "Hello!"
        if request.headers.get("if-none-match") == state["etag"]:
            await Response(status_code=304, headers=headers)(scope, receive, send)
        else:
            await PlainTextResponse(text, headers=headers)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    assert (await ask(wrapped)).text == "Hello!"
    clock.advance(61)
    call = await ask(wrapped, headers=ALICE)
    assert (call.text, seen.pop(), "fwd-status=304" in call.cache_status) == ("Hello!", '"1"', True)
    state.update(etag='"2"', windows=True)
    clock.advance(61)
    for user in (ALICE, BOB):
        call = await ask(wrapped, headers=user)
        assert call.text == f"Hello {user['x-user']}!"
        assert is_for_one(call)
    assert seen.pop() == '"1"'
    clock.advance(61)
    assert (await ask(wrapped, headers=ALICE)).text == "Hello alice!"
    assert seen.pop() is None
    state.update(etag='"3"', windows=False)
    clock.advance(61)
    call = await ask(wrapped)
    assert (call.text, call.header("etag")) == ("Hello!", '"3"')


async def test_a_304_of_something_else_has_the_page_made_and_filled(cache: Cache, clock: FakeClock) -> None:
    """The application is asked twice, by one request, and places its windows twice."""
    visitor = visitor_of(cache)
    runs: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        runs.append(request.headers.get("if-none-match"))
        text = f"Hello {visitor()}!" if len(runs) > 1 else "Hello!"
        headers = {"cache-control": "public, max-age=60", "etag": f'"{len(runs)}"'}
        if request.headers.get("if-none-match"):
            await Response(status_code=304, headers=headers)(scope, receive, send)
        else:
            await PlainTextResponse(text, headers=headers)(scope, receive, send)

    wrapped = CacheMiddleware(app, cache=cache)
    await ask(wrapped)
    clock.advance(61)
    for user in (ALICE, BOB):
        call = await ask(wrapped, headers=user)
        assert (call.status, call.text) == (200, f"Hello {user['x-user']}!")
    assert runs == [None, '"1"', None]


# --- waiting, renewing, failing --------------------------------------------------------------------------


@pytest.mark.parametrize("public", [False, True])
async def test_those_who_wait_for_one_page_each_get_their_own(cache: Cache, public: bool) -> None:
    """One run for all of them; the windows are each request's."""
    visitor = visitor_of(cache)
    runs: list[int] = []
    entered, go = anyio.Event(), anyio.Event()

    async def endpoint(request: Request) -> Response:
        runs.append(1)
        entered.set()
        await go.wait()
        return PlainTextResponse(f"Hello {visitor()}!")

    app = page_app(cache, endpoint, {"public": public, "tags": ["page"]})
    if public:
        go.set()
        await ask(app)
        await cache.invalidate("page")
        entered, go = anyio.Event(), anyio.Event()
    before = len(runs)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            calls = [begin(tasks, app, headers=ALICE)]
            await entered.wait()
            calls += [begin(tasks, app, headers={"x-user": f"user {number}"}) for number in range(4)]
            await all_blocked()
            go.set()
    assert [call.text for call in calls] == ["Hello alice!"] + [f"Hello user {number}!" for number in range(4)]
    assert len(runs) == before + 1
    assert all(is_for_one(call) for call in calls)
    assert sum("collapsed" in call.cache_status for call in calls) == 4


@pytest.mark.parametrize("opened", [False, True], ids=["in the foreground", "in the background"])
@pytest.mark.parametrize("public", [False, True])
async def test_a_renewal_runs_no_window(cache: Cache, clock: FakeClock, public: bool, opened: bool) -> None:
    """There is no user behind it: whoever caused it gets the stale page, with their own window."""
    called: list[str] = []
    runs: list[int] = []

    @cache.window(name="visitor")
    async def visitor() -> str:
        called.append(current_request().headers["x-user"])
        return called[-1]

    async def endpoint(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse(f"{len(runs)} {visitor()}")

    app = page_app(cache, endpoint, {"public": public, "stale_while_revalidate": 60})
    if opened:
        await cache.__aenter__()
    try:
        await ask(app, headers=ALICE)
        clock.advance(61)
        call = await ask(app, headers=BOB)
        assert call.text == ("1 bob" if opened else "2 bob")
        await all_blocked()
        assert called == ["alice", "bob"]
        assert (await ask(app, headers=ALICE)).text == "2 alice"
        assert len(runs) == 2
    finally:
        if opened:
            await cache.__aexit__(None, None, None)
    assert called == ["alice", "bob", "alice"]


@pytest.mark.parametrize("how", ["raises", "says 503", "raises once a window was placed"])
@pytest.mark.parametrize("public", [False, True])
async def test_a_stale_page_instead_of_an_error_is_filled(
    cache: Cache, clock: FakeClock, public: bool, how: str
) -> None:
    visitor = visitor_of(cache)
    down: list[str] = []

    async def endpoint(request: Request) -> Response:
        if "says 503" in down:
            return PlainTextResponse("down", 503)
        if "raises" in down:
            raise RuntimeError("down")
        text = f"Hello {visitor()}!"
        if down:
            raise RuntimeError("down")
        return PlainTextResponse(text)

    app = page_app(cache, endpoint, {"public": public, "stale_if_error": 60})
    await ask(app, headers=ALICE)
    clock.advance(61)
    down.append(how)
    for user in (BOB, ALICE):
        call = await ask(app, headers=user)
        assert (call.status, call.text) == (200, f"Hello {user['x-user']}!")
        assert is_for_one(call)


async def test_a_page_whose_window_fails_stays_stored(cache: Cache) -> None:
    """It is the user's window that failed, not the page: a 500 of one is no reason to make it anew for all."""
    runs: list[int] = []

    @cache.window(name="only_alice")
    async def only_alice() -> str:
        if current_request().headers["x-user"] != "alice":
            raise LookupError("not alice")
        return "alice"

    async def endpoint(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse(f"Hello {only_alice()}!")

    for policy in ({"public": True}, {"key": lambda request: "everybody's"}):
        runs.clear()
        await cache.clear()
        app = page_app(cache, endpoint, policy)
        for user, status in ((BOB, 500), (ALICE, 200), (BOB, 500), (ALICE, 200)):
            call = await ask(app, headers=user)
            assert call.status == status
            if status == 500:
                assert isinstance(call.error, WindowError)
                assert isinstance(call.error.__cause__, LookupError)
                assert call.text == "Internal Server Error"
        assert len(runs) == 1


@pytest.mark.parametrize("policy", [None, {}, {"public": True}])
async def test_a_window_that_raises_what_a_framework_has_a_page_for_is_a_500(
    cache: Cache, policy: dict[str, Any] | None
) -> None:
    """On a miss, at the endpoint and before routing alike: a page of it could stand in none of them."""

    @cache.window(name="guarded")
    async def guarded() -> str:
        raise HTTPException(403)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"Hello {guarded()}!")

    app = page_app(cache, endpoint, policy)
    for _ in range(3):
        call = await ask(app)
        assert (call.status, call.text) == (500, "Internal Server Error")


async def test_a_window_that_is_late_or_fails_gives_way_to_its_fallback(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    @cache.window(name="late", timeout=0.001, fallback="(late)")
    async def late() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    @cache.window(name="fails", fallback="(failed)")
    async def fails() -> str:
        raise LookupError("x")

    visitor = visitor_of(cache)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"1 {late()} 2 {visitor()} 3 {fails()} 4 {late()} 5")

    app = page_app(cache, endpoint, {"public": True})
    for user in (ALICE, BOB):
        call = await ask(app, headers=user)
        assert call.text == f"1 (late) 2 {user['x-user']} 3 (failed) 4 (late) 5"
    assert caplog.text.count("the window late failed: its fallback is served") == 2


async def test_a_window_that_this_process_does_not_have_is_a_miss_where_an_error_is_answered_too(
    cache: Cache, clock: FakeClock
) -> None:
    """Instead of an error, what is stored is served only if it can be filled."""
    visitor = visitor_of(cache)
    down: list[int] = []

    async def endpoint(request: Request) -> Response:
        if down:
            raise RuntimeError("down")
        return PlainTextResponse(f"Hello {visitor()}!")

    app = page_app(cache, endpoint, {"public": True, "stale_if_error": 60})
    await ask(app)
    clock.advance(61)
    down.append(1)
    cache._windows.clear()
    call = await ask(app)
    assert isinstance(call.error, RuntimeError)
    assert call.text == "Internal Server Error"
    assert serving_module.FOR_NOBODY_ELSE not in call.start["headers"]
