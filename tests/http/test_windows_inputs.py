"""What users write stays text, on pages that have windows: nothing of it is ever taken for one."""

import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from asynctag import Cache
from asynctag.errors import WindowError
from asynctag.http import CacheMiddleware, Policy, current_request
from asynctag.http.stored import StoredWindows
from asynctag.placeholders import Place, Places
from asynctag.skeleton import MARK
from tests.http.driver import ask
from tests.http.windowed import ALICE, BOB, page_app, visitor_of

pytestmark = pytest.mark.anyio


def a_placeholder(window: str = "visitor", *, html: bool = False) -> str:
    """One of another computation, as it stands in a page."""
    places = Places("another")
    placeholder = places.place(Place(f"|{window}", b"\x80"))
    return str(placeholder.__html__() if html else placeholder)


def stored() -> StoredWindows:
    return StoredWindows((b"", b""), (Place("|visitor", b"\x80"),), "utf-8")


CORPUS: dict[str, str] = {
    "a placeholder": a_placeholder(),
    "a placeholder for HTML": a_placeholder(html=True),
    "a placeholder that is escaped": a_placeholder().replace("&", "&amp;"),
    "a placeholder in a script": a_placeholder().replace("&", "\\u0026"),
    "a placeholder in quotes": f'"{a_placeholder()}"',
    "half a placeholder": a_placeholder()[:30],
    "digits": "1234567890" * 20,
    "digits and signs": "&1000000" * 20,
    "server-side includes": '<!--#include virtual="/admin" --><!--#exec cmd="id" -->',
    "edge-side includes": '<esi:include src="/admin"/><esi:vars>$(HTTP_COOKIE)</esi:vars>',
    "a template": "{{ visitor() }} {% window 'visitor' %} {{ ''.__class__.__mro__ }} ${7*7} #{7*7} <%= 7*7 %>",
    "a format": "{visitor} %(visitor)s %s {0.__class__} $visitor",
    "a pickle": pickle.dumps(print, protocol=0).decode("latin-1"),
    "what is stored, as text": msgspec.json.encode(stored()).decode(),
    "what is stored, as bytes": msgspec.msgpack.encode(stored()).decode("latin-1"),
    "the mark of a skeleton": (MARK + b"\x93\x01").decode("latin-1"),
    "names of windows": "|visitor\x80 <window visitor> <call of <window visitor>>",
    "awkward characters": "\x00 \u2028 \ufeff \U0001f600 \\ \" ' </script> ]]>",
    "the name of a backreference": "\\1 \\g<0> \\0 $1 $&",
}

#: How the page of a test comes to be served.
WAYS: dict[str, dict[str, Any] | None] = {
    "before routing": {"public": True},
    "at the endpoint": {"key": lambda request: "everybody's"},
    "not stored": None,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CORPUS)
async def test_what_users_write_stays_text(cache: Cache, name: str, way: str) -> None:
    """Byte for byte, beside windows and in what they return: in a page, and in JSON."""
    text = CORPUS[name]
    visitor = visitor_of(cache)

    @cache.window(name="comment")
    async def comment() -> str:
        return f"{text} to {current_request().headers['x-user']}"

    async def page(request: Request) -> Response:
        if "json" in request.query_params:
            return JSONResponse({"a": text, "b": [visitor(), text, comment()], "c": f"{text}{visitor()}{text}"})
        return HTMLResponse(f"{text}{visitor()}{text}{comment()}{text}")

    app = page_app(cache, page, WAYS[way])
    for hit in (False, way != "not stored"):
        for user in (ALICE, BOB):
            who = user["x-user"]
            call = await ask(app, headers=user)
            assert call.text == f"{text}{who}{text}{text} to {who}{text}"
            call = await ask(app, "/?json", headers=user)
            shown = {"a": text, "b": [who, text, f"{text} to {who}"], "c": f"{text}{who}{text}"}
            assert json.loads(call.body) == shown
            assert call.hit or not hit


@pytest.mark.parametrize("way", WAYS)
async def test_the_placeholders_of_a_former_response_are_text(cache: Cache, way: str) -> None:
    """Whoever came to see them, by a log or by a copy that was kept: each response has its own."""
    visitor, comments = visitor_of(cache), []

    async def page(request: Request) -> Response:
        placed = str(visitor())
        text = "".join(comments)
        comments.append(placed)  # as a spy would
        return HTMLResponse(f"<p>{text}</p>{placed}")

    app = page_app(cache, page, WAYS[way])
    for number in range(5):
        call = await ask(app, f"/?number={number}", headers=ALICE)
        assert call.text == f"<p>{''.join(comments[:-1])}</p>alice"
        if way != "not stored":
            again = await ask(app, f"/?number={number}", headers=BOB)
            assert (again.text, again.hit) == (call.text.replace("alice", "bob"), True)
    assert len(comments) == len(set(comments)) == 5
    assert all(re.fullmatch("[0-9]+&[0-9]+", one) for one in comments)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "header",
    [
        lambda window: {"x-name": f"{window()}"},
        lambda window: {"set-cookie": f"name={window()}"},
        lambda window: {"etag": f'"{window()}"'},
    ],
)
async def test_a_window_in_a_header_is_an_error(
    cache: Cache, way: str, header: Callable[[Any], dict[str, str]]
) -> None:
    """Headers are out before windows are filled: a number would stand there, for everybody."""
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        return HTMLResponse(f"{visitor()}" if "body" in request.query_params else "", headers=header(visitor))

    app = page_app(cache, page, WAYS[way])
    for path in ("/", "/?body", "/", "/?body"):  # it is not stored, either
        call = await ask(app, path)
        assert isinstance(call.error, WindowError)
        assert "the response to GET /: a window stands in its header" in str(call.error)
        assert call.text == "Internal Server Error"


async def test_a_redirect_to_what_a_window_returns_is_an_error(cache: Cache) -> None:
    """Also where the placeholder was escaped on its way there."""
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        return RedirectResponse(f"/users/{visitor()}?back=1")

    call = await ask(page_app(cache, page))
    assert "a window stands in its header location" in str(call.error)


async def test_what_is_filled_inside_is_not_filled_again_outside(cache: Cache) -> None:
    """Two middlewares, each with windows: what a window has returned in the one is text to the other."""
    outer = Cache()
    spied: list[str] = []

    @outer.window(name="outside")
    async def outside() -> str:
        return "outer"

    @cache.window(name="inside")
    async def inside() -> str:
        return spied[0]

    async def page(request: Request) -> Response:
        return HTMLResponse(f"<{inside()}>")

    inner = page_app(cache, page, {"public": True})

    async def around(scope: Any, receive: Any, send: Any) -> None:
        outside()
        spied[:] = [a_placeholder("outside")]
        await inner(scope, receive, send)

    app = CacheMiddleware(around, cache=outer, policy={"/": Policy(ttl=60, public=True)})
    for _ in range(2):
        assert (await ask(app)).text == f"<{spied[0]}>"
