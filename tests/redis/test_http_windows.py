"""Responses with windows on Redis: filled by whatever process serves them, never by what somebody else wrote there."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from asynctag import Cache
from asynctag.http import current_request
from asynctag.http.stored import RESPONSES
from asynctag.placeholders import Place
from asynctag.windows import Windows
from tests.http import test_windows, test_windows_seen, test_windows_streaming
from tests.http.driver import ask
from tests.http.windowed import ALICE, BOB, is_for_one, page_app, visitor_of
from tests.redis import test_http
from tests.redis.servers import Server
from tests.redis.test_http import hot, stored_under

pytestmark = pytest.mark.anyio

clock, process, cache, other = test_http.clock, test_http.process, test_http.cache, test_http.other

# --- what holds in memory ------------------------------------------------------------------------------

FROM_MEMORY = (
    test_windows.test_what_is_stored_is_filled_for_each_who_asks,
    test_windows.test_what_is_not_stored_is_filled_for_each_who_asks,
    test_windows.test_the_tags_of_a_page_drop_it_and_those_of_its_windows_do_not,
    test_windows.test_what_a_window_returns_stands_there_as_the_page_needs_it,
    test_windows.test_a_value_of_json_takes_the_place_of_the_string,
    test_windows.test_a_window_is_written_in_the_charset_of_the_page,
    test_windows.test_windows_stand_in_the_pages_of_every_framework,
    test_windows.test_what_dependencies_add_on_a_hit_lets_nobody_keep_it,
    test_windows.test_no_condition_and_no_range_is_answered_from_a_skeleton,
    test_windows.test_head_runs_no_window_and_tells_no_length,
    test_windows.test_those_who_wait_for_one_page_each_get_their_own,
    test_windows.test_a_renewal_runs_no_window,
    test_windows.test_a_stale_page_instead_of_an_error_is_filled,
    test_windows.test_a_page_whose_window_fails_stays_stored,
    test_windows_seen.test_windows_see_who_asks_by_whatever_stands_around_the_cache,
    test_windows_seen.test_what_a_hit_before_routing_cannot_see_is_not_there_on_the_miss_either,
    test_windows_seen.test_what_is_computed_of_a_page_with_windows_is_not_stored,
    test_windows_streaming.test_what_stands_before_a_window_is_out_before_it_ends,
    test_windows_streaming.test_a_window_that_fails_later_cuts_the_page,
    test_windows_streaming.test_a_streamed_page_is_filled_as_it_comes,
)

globals().update({test.__name__: test for test in FROM_MEMORY})


@pytest.fixture(autouse=True)
def _as_on_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_windows, test_windows_streaming):
        monkeypatch.setattr(module, "all_blocked", test_http.all_blocked)


# --- several processes ---------------------------------------------------------------------------------


async def test_a_page_that_one_process_has_stored_is_filled_by_another(process: Callable[..., Cache]) -> None:
    """By its own window of that name, each hit in one round trip and for whoever asks."""
    caches = [process(), process()]
    runs: list[int] = []
    windows = [visitor_of(cache) for cache in caches]

    def page(number: int) -> Any:
        async def endpoint(request: Request) -> Response:
            runs.append(number)
            return PlainTextResponse(f"Hello {windows[number]()}!")

        return endpoint

    apps = [page_app(cache, page(number), {"public": True}) for number, cache in enumerate(caches)]
    assert (await ask(apps[0], headers=ALICE)).text == "Hello alice!"
    for user in (BOB, ALICE, BOB, ALICE):
        call = await ask(apps[1], headers=user)
        assert (call.text, call.hit, is_for_one(call)) == (f"Hello {user['x-user']}!", True, True)
    assert runs == [0]


async def test_each_hit_asks_once_whether_its_windows_are_there(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the response was just decoded, and where this process holds it."""
    checked: list[int] = []
    check = Windows.check

    def counted(windows: Windows, places: Sequence[Place]) -> None:
        checked.append(len(places))
        check(windows, places)

    monkeypatch.setattr(Windows, "check", counted)
    visitor = visitor_of(cache)

    async def page(request: Request) -> Response:
        return PlainTextResponse(f"Hello {visitor()}!")

    app = page_app(cache, page, {"public": True})
    for _ in range(2):
        await ask(app, headers=ALICE)
    for _ in range(3):
        checked.clear()
        call = await ask(app, headers=BOB)
        assert (call.text, call.hit, checked) == ("Hello bob!", True, [1])


@pytest.mark.parametrize("public", [False, True])
async def test_a_window_that_another_process_does_not_have_is_a_miss_there(
    process: Callable[..., Cache], public: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As while a new version is deployed: the page is made by who has been asked, and no error to anybody."""
    new, old = process(), process()
    visitor = visitor_of(new)

    async def with_window(request: Request) -> Response:
        return PlainTextResponse(f"new {visitor()}")

    async def without(request: Request) -> Response:
        return PlainTextResponse("old")

    newer, older = page_app(new, with_window, {"public": public}), page_app(old, without, {"public": public})
    for _ in range(3):
        assert (await ask(newer, headers=ALICE)).text in ("new alice", "old")
    call = await ask(older)
    assert (call.text, call.hit, call.error) == ("old", False, None)
    assert "a window that is not defined in this process: 'visitor'" in caplog.text
    assert (await ask(older)).text == "old"


# --- bytes that are not what was stored ----------------------------------------------------------------


class Tampered:
    """A page with a window that takes parameters, of which somebody has changed what is stored."""

    def __init__(self, cache: Cache) -> None:
        self.called: list[Any] = []
        self.runs = 0

        @cache.window(name="shown")
        async def shown(number: int, text: str = "") -> str:
            self.called.append((number, text))
            return f"<{number}{text} {current_request().headers['x-user']}>"

        @cache.cached(ttl=60, name="secret")
        async def secret(number: int) -> str:
            self.called.append("a function that is no window")
            return "secret"

        async def page(request: Request) -> Response:
            self.runs += 1
            return PlainTextResponse(f"run {self.runs} {shown(7, text='x')} end")

        self.app = page_app(cache, page, {"public": True})

    async def change(self, server: Server, change: Callable[[list[Any]], Any]) -> None:
        """Change the windows of the response that is stored: its texts, places and charset."""
        name, head, body = stored_under(server)
        fields = msgspec.msgpack.decode(body)
        changed = change(fields[-1])
        fields[-1] = fields[-1] if changed is None else changed
        server.run("SET", name, head + msgspec.msgpack.encode(fields), "KEEPTTL")


def place(windows: list[Any], index: int, value: Any) -> None:
    windows[1][0][index] = value


params = msgspec.msgpack.encode

CHANGES: dict[str, Callable[[list[Any]], Any]] = {
    "a window that there is not": lambda w: place(w, 0, "|other"),
    "a function that is no window": lambda w: place(w, 0, "|secret"),
    "a function of Python": lambda w: place(w, 0, "|os.system"),
    "a name without a namespace": lambda w: place(w, 0, "shown"),
    "the name of another namespace": lambda w: place(w, 0, "other|shown"),
    "no name": lambda w: place(w, 0, ""),
    "parameters that it does not take": lambda w: place(w, 1, params({"number": 7, "user": "bob"})),
    "parameters of another type": lambda w: place(w, 1, params({"number": "7"})),
    "parameters left out": lambda w: place(w, 1, params({})),
    "parameters as a list": lambda w: place(w, 1, params([7, "x"])),
    "parameters that are none": lambda w: place(w, 1, b"\xc1"),
    "no parameters": lambda w: place(w, 1, b""),
    "parameters within others": lambda w: place(w, 1, b"\x91" * 100_000),
    "a way that there is not": lambda w: place(w, 2, "x"),
    "ways without an end": lambda w: place(w, 2, "e" * 100_000),
    "a place less": lambda w: w[1].clear(),
    "a place more": lambda w: w[1].append(w[1][0]),
    "a part less": lambda w: w[0].pop(),
    "parts as text": lambda w: w.__setitem__(0, ["run 1 ", " end"]),
    "a place of something else": lambda w: w.__setitem__(1, [7]),
    "a charset that there is not": lambda w: w.__setitem__(2, "x-none"),
    "a charset in which no window stands": lambda w: w.__setitem__(2, "utf-16"),
    "a codec that is none for text": lambda w: w.__setitem__(2, "zlib"),
    "a codec that replaces nothing": lambda w: w.__setitem__(2, "idna"),
    "no charset": lambda w: w[:2],
    "a number instead of them": lambda w: 7,
}


@pytest.mark.parametrize("held", [True, False], ids=["held before", "not held"])
@pytest.mark.parametrize("how", CHANGES)
async def test_windows_that_were_tampered_with_are_a_miss(
    cache: Cache, redis_server: Server, how: str, held: bool
) -> None:
    """The application runs, and nothing else does. What it brings is a hit again."""
    page = Tampered(cache)
    for _ in range(4 if held else 1):
        await ask(page.app, headers=ALICE)
    page.called.clear()
    await page.change(redis_server, CHANGES[how])
    call = await ask(page.app, headers=BOB)
    assert (call.error, call.status, call.text, call.hit) == (None, 200, "run 2 <7x bob> end", False)
    assert page.called == [(7, "x")]
    assert (await hot(page.app, headers=ALICE)).text == "run 2 <7x alice> end"


async def test_no_byte_that_is_changed_is_an_error_or_calls_anything_else(
    cache: Cache, redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each byte of the response, one after the other: a miss, or what the byte has said."""
    caplog.set_level(logging.CRITICAL)
    page = Tampered(cache)
    await hot(page.app, headers=ALICE)
    name, head, body = stored_under(redis_server)
    start = body.index(b"run ")
    for at in range(start - 4, len(body)):
        for flip in (1, 0x80):
            page.called.clear()
            redis_server.run("SET", name, head + body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :], "KEEPTTL")
            call = await ask(page.app, headers=BOB)
            assert (call.error, call.status) == (None, 200), at
            assert all(type(number) is int and type(text) is str for number, text in page.called)
            assert len(page.called) == 1


async def test_what_is_sealed_and_changed_is_detected(process: Callable[..., Cache], redis_server: Server) -> None:
    """With a key for the seal: parameters that the window takes, too."""
    cache = process(hmac_key=b"0123456789abcdef")
    page = Tampered(cache)
    await hot(page.app, headers=ALICE)
    (name,) = [one for one in redis_server.run("KEYS", "*entry:*") if b"http record" not in one]
    data = redis_server.run("GET", name)
    index = data.index(b"number")
    assert data[index + 6] == 7
    redis_server.run("SET", name, data[: index + 6] + b"\x08" + data[index + 7 :], "KEEPTTL")
    page.called.clear()
    call = await ask(page.app, headers=BOB)
    assert (call.text, call.hit, page.called) == ("run 2 <7x bob> end", False, [(7, "x")])


async def test_without_a_seal_parameters_that_a_window_takes_are_its_own(cache: Cache, redis_server: Server) -> None:
    """Who can write there can change what a page says; never what is called with what it does not take."""
    page = Tampered(cache)
    await ask(page.app, headers=ALICE)
    await page.change(redis_server, lambda windows: place(windows, 1, params({"number": 8})))
    assert (await ask(page.app, headers=BOB)).text == "run 1 <8 bob> end"


async def test_what_is_stored_holds_no_placeholder_and_nothing_of_who_filled_it(
    cache: Cache, redis_server: Server
) -> None:
    """The text in parts, the name and the parameters: and nothing that a window has returned."""
    page = Tampered(cache)
    await ask(page.app, headers=ALICE)
    _, _, body = stored_under(redis_server)
    stored = RESPONSES.decode(body)
    assert stored.body == b""
    assert stored.windows.parts == (b"run 1 ", b" end")
    assert [(one.name, one.params, one.how) for one in stored.windows.places] == [
        ("|shown", params({"number": 7, "text": "x"}), "")
    ]
    assert b"alice" not in body
    assert (b"cache-control", b"private, no-store") in stored.headers
