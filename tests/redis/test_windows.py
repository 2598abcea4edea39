"""Windows over real servers: what is stored of them, and what comes of it when somebody else writes there."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from asynctag import Cache, no_store
from asynctag.backends.redis import RedisBackend
from asynctag.backends.redis.format import Format
from asynctag.codec import NOT_GIVEN, codec_for
from asynctag.placeholders import Place, Places
from asynctag.skeleton import MARK, Skeleton
from asynctag.testing import assert_hit, assert_miss, assert_tags
from tests.redis.servers import Server
from tests.test_windows_random import hold_against_plain_python, parts_of, roots

pytestmark = pytest.mark.anyio

SECRET = b"sixteen bytes or more"
FORMAT = Format(secret=None, compress_from=10**9, max_body=10**9)

#: Who is asking.
user: ContextVar[str] = ContextVar("user", default="nobody")


class Worker:
    """What one process has: a cache, windows on it, and pages that hold them."""

    def __init__(self, server: Server, *, with_windows: bool = True, stores: bool = True, **options: Any) -> None:
        self.backend = RedisBackend.from_url(server.url, **options)
        self.cache = cache = Cache(self.backend, default_ttl=60)
        self.runs = runs = Counter[str]()
        if not with_windows:

            @cache.cached(name="page")
            async def plain() -> str:
                runs["page"] += 1
                if not stores:
                    no_store()
                return "plain"

            self.page = plain
            return

        @cache.window(name="greeting")
        async def greeting(salute: str = "Hello") -> str:
            runs[f"greeting {salute}"] += 1
            return f"{salute} <{user.get()}>"

        @cache.window(name="never")
        async def never(command: str) -> str:
            raise AssertionError("nobody has placed it")

        @cache.window(name="anything")
        async def anything(value: Any) -> Any:
            assert type(value) in (type(None), bool, int, float, str, list, dict)
            return "anything"

        @cache.cached(name="page", tags=["page"])
        async def page() -> str:
            runs["page"] += 1
            self.seen = str(greeting())
            return f"<p>{greeting()}</p>{Markup('<b>%s</b>') % greeting('Bye')}"

        @cache.cached(name="value", tags=["value"], returns=Any)
        async def value() -> Any:
            runs["value"] += 1
            return {"page": await page(), "all": [greeting(), {"a": anything([1, {"x": None}])}], "n": 2**63}

        self.greeting, self.page, self.value = greeting, page, value


@pytest.fixture
async def new_worker(redis_server: Server) -> AsyncIterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(redis_server, **options))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.backend.aclose()


NewWorker = Callable[..., Worker]


def place_of(name: str) -> str:
    return f"{{asynctag}}entry:|k|{name}()"


def stored(server: Server, name: str = "page") -> bytes:
    data: bytes = server.run("GET", place_of(name))
    return data


def body_of(data: bytes) -> bytes:
    return FORMAT.body("", data, len(FORMAT.head(data).raw))


def scribble(server: Server, body: bytes, name: str = "page") -> None:
    """Put another body in an entry's place, as somebody could who can write there."""
    head = FORMAT.head(stored(server, name))
    server.run("SET", place_of(name), head.raw + body, "KEEPTTL")


def skeleton_in(server: Server, name: str = "page", returns: Any = str) -> Skeleton:
    read = codec_for(returns, owner="test").decode(body_of(stored(server, name)))
    assert type(read) is Skeleton
    return read


def page_for(name: str) -> str:
    return f"<p>Hello <{name}></p><b>Bye &lt;{name}&gt;</b>"


# --- what is there


async def test_one_process_fills_what_another_has_stored(new_worker: NewWorker) -> None:
    """Each with the windows of its own; the function ran once."""
    first, second = new_worker(), new_worker()
    for worker in (first, second, first):
        for name in ("alice", "bob"):
            user.set(name)
            assert await worker.page() == page_for(name)
            assert await worker.value() == {
                "page": page_for(name),
                "all": [f"Hello <{name}>", {"a": "anything"}],
                "n": 2**63,
            }
    assert (first.runs["page"], second.runs["page"]) == (1, 0)
    assert (first.runs["value"], second.runs["value"]) == (1, 0)
    assert second.runs["greeting Hello"] == 4
    await assert_tags(second.page, tags={"page"})
    await assert_tags(second.value, tags={"page", "value"})
    await first.cache.invalidate("page")
    await assert_miss(second.page)
    await assert_miss(second.value)


async def test_what_is_stored_is_text_names_and_parameters(new_worker: NewWorker, redis_server: Server) -> None:
    """No number of the computation, nothing that evaluates, no result of a window, no user."""
    worker = new_worker()
    user.set("alice")
    await worker.value()
    digits = worker.seen
    for name in ("page", "value"):
        data = stored(redis_server, name)
        assert not any(digits[at : at + 8].encode() in data for at in range(len(digits) - 7))
        for absent in (b"alice", b"pickle", b"Hello"):
            assert absent not in data
    way, tree, holes = msgspec.msgpack.decode(body_of(stored(redis_server))[1:])
    assert (way, tree) == (b"", b"")
    assert holes == [
        [[], ["<p>", "</p><b>", "</b>"], [["|greeting", b"\x80", ""], ["|greeting", b"\x81\xa6salute\xa3Bye", "h"]]]
    ]
    for key in redis_server.run("KEYS", "*"):
        assert b"alice" not in key
        assert not any(digits[at : at + 8].encode() in key for at in range(len(digits) - 7))


async def test_what_is_read_again_is_not_proven_again(new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is known, it is what it was."""
    worker = new_worker()
    await worker.page()
    other = new_worker()
    checked: list[Any] = []
    check = Skeleton.check
    monkeypatch.setattr(Skeleton, "check", lambda self: (checked.append(1), check(self))[1])
    for _ in range(10):
        await other.page()
    assert len(checked) <= 2


async def test_compressed_and_sealed(new_worker: NewWorker, redis_server: Server) -> None:
    """A skeleton is kept as any body is."""
    for number, options in enumerate(
        ({"compress_from": 10}, {"hmac_key": SECRET}, {"compress_from": 10, "hmac_key": SECRET})
    ):
        first, second = new_worker(prefix=f"p{number}", **options), new_worker(prefix=f"p{number}", **options)
        user.set("alice")
        assert await first.page() == await second.page() == page_for("alice")
        assert second.runs["page"] == 0


async def test_users_side_by_side(new_worker: NewWorker) -> None:
    """Two processes, twenty users at once, with invalidations in between: to each their own."""
    workers = [new_worker(), new_worker()]

    async def serve(name: str, worker: Worker) -> None:
        user.set(name)
        for number in range(50):
            assert (await worker.value())["page"] == page_for(name)
            if number % 10 == 0:
                await worker.cache.invalidate(["page", "value"][number % 20 == 0])

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(serve, f"user {number}", workers[number % 2])


async def test_in_a_process_that_does_not_know_a_window(
    new_worker: NewWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A miss that says which; that process stores its own."""
    first, second = new_worker(), new_worker(with_windows=False)
    await first.page()
    with caplog.at_level(logging.WARNING, "asynctag"):
        assert await second.page() == "plain"
    assert "|k|page() is taken for a miss: a window that is not defined in this process: 'greeting'" in caplog.text
    assert await second.cache.get("page()", "default", returns=str) == "plain"
    assert await first.page() == "plain"


async def test_it_is_asked_each_time_whether_a_window_is_known(new_worker: NewWorker) -> None:
    """Also of an entry that was read before, and is known by heart."""
    first, second = new_worker(), new_worker(with_windows=False, stores=False)
    await first.page()
    for times in range(1, 6):
        assert await second.page() == "plain"
        assert second.runs["page"] == times
        assert await second.cache.get("page()", "default", returns=str) == "default"
    assert await first.page() == page_for("nobody")


async def test_a_window_that_takes_something_else_now(new_worker: NewWorker) -> None:
    """What was placed with what it took before is a miss, in the process that knows it by heart too."""
    worker, user_of = new_worker(), new_worker(with_windows=False, stores=False)

    @user_of.cache.window(name="greeting")
    async def greeting(salute: str = "") -> str:
        return "as before"

    for _ in range(3):
        await worker.page()
        assert await user_of.page() == "<p>as before</p><b>as before</b>"

    async def changed(salute: int) -> str:
        return "changed"

    user_of.cache._windows.clear()
    user_of.cache.window(name="greeting")(changed)
    for _ in range(3):
        assert await user_of.page() == "plain"


# --- what somebody else wrote


Tamper = Callable[[Skeleton], Skeleton]


def with_place(place: Place) -> Tamper:
    def tamper(skeleton: Skeleton) -> Skeleton:
        hole = skeleton.holes[0]
        changed = msgspec.structs.replace(hole, places=(place, *hole.places[1:]))
        return Skeleton(skeleton.codec, skeleton.way, skeleton.tree, (changed, *skeleton.holes[1:]))

    return tamper


GREETING = msgspec.msgpack.encode({"salute": "Hi"})

#: What was changed, and what is served then: None for a miss.
TAMPERED: dict[str, tuple[Tamper, str | None]] = {
    "a name that there is not": (with_place(Place("|os.system", GREETING)), None),
    "a module": (with_place(Place("|builtins.eval", msgspec.msgpack.encode({"source": "1"}))), None),
    "another namespace": (with_place(Place("other|greeting", GREETING)), None),
    "no namespace": (with_place(Place("greeting", GREETING)), None),
    "a parameter that there is not": (with_place(Place("|greeting", msgspec.msgpack.encode({"x": 1}))), None),
    "a parameter of another type": (with_place(Place("|greeting", msgspec.msgpack.encode({"salute": 1}))), None),
    "a parameter that is missing": (with_place(Place("|never", b"\x80")), None),
    "parameters that are no dict": (with_place(Place("|greeting", msgspec.msgpack.encode(["Hi"]))), None),
    "parameters that are no MessagePack": (with_place(Place("|greeting", b"\xc1")), None),
    "no parameters": (with_place(Place("|greeting", b"")), None),
    "parameters and more": (with_place(Place("|greeting", b"\x80\x80")), None),
    "an extension": (with_place(Place("|anything", b"\x81\xa5value\xd4\x05x")), None),
    "a time": (with_place(Place("|anything", b"\x81\xa5value\xd6\xff\x00\x00\x00\x00")), None),
    "bytes": (with_place(Place("|anything", msgspec.msgpack.encode({"value": [b"x"]}))), None),
    "a number that is none": (with_place(Place("|anything", msgspec.msgpack.encode({"value": float("nan")}))), None),
    "what is nested deeply": (with_place(Place("|anything", b"\x81\xa5value" + b"\x91" * 200 + b"\xc0")), None),
    "what is nested too deeply": (with_place(Place("|anything", b"\x81\xa5value" + b"\x91" * 100_000 + b"\xc0")), None),
    "a step that there is not": (with_place(Place("|greeting", GREETING, "x")), None),
    "steps without an end": (with_place(Place("|greeting", GREETING, "e" * 100_000)), None),
    "other parameters": (with_place(Place("|greeting", GREETING)), "<p>Hi <alice></p><b>Bye &lt;alice&gt;</b>"),
    "other steps": (
        with_place(Place("|greeting", GREETING, "e")),
        "<p>Hi &lt;alice&gt;</p><b>Bye &lt;alice&gt;</b>",
    ),
}


@pytest.mark.parametrize(("tamper", "served"), TAMPERED.values(), ids=TAMPERED)
async def test_what_somebody_changed(
    new_worker: NewWorker, redis_server: Server, tamper: Tamper, served: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A registered window with parameters that it takes, or a miss: no other call, no error."""
    user.set("alice")
    worker = new_worker()
    await worker.page()
    scribble(redis_server, tamper(skeleton_in(redis_server)).encode())
    for reader in (worker, new_worker()):
        if served is not None:
            assert await reader.page() == served
            continue
        assert await reader.page() == page_for("alice")
        assert "is taken for a miss" in caplog.text
        break
    assert worker.runs["page"] == (2 if served is None else 1)
    await assert_hit(worker.page)


async def test_every_byte_changed_once(new_worker: NewWorker, redis_server: Server) -> None:
    """A value or a miss, of a text and of a value with a tree; nothing that was not registered is called."""
    user.set("alice")
    worker = new_worker()
    await worker.value()
    for name, function in (("page", worker.page), ("value", worker.value)):
        body = body_of(stored(redis_server, name))
        for at in range(len(body)):
            scribble(redis_server, body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :], name)
            assert type(await function()) in (str, dict, list, bytes, int, float, bool, type(None))


async def test_cut_short(new_worker: NewWorker, redis_server: Server) -> None:
    """Never half a page."""
    user.set("alice")
    worker = new_worker()
    await worker.page()
    body = body_of(stored(redis_server))
    for length in range(len(body)):
        scribble(redis_server, body[:length])
        assert await worker.page() == page_for("alice")
    assert worker.runs["page"] == len(body) + 1


async def test_sealed_whatever_was_changed_is_a_miss(new_worker: NewWorker, redis_server: Server) -> None:
    """Parameters that a window takes, too: nobody without the key says what is called with what."""
    user.set("alice")
    worker = new_worker(hmac_key=SECRET)
    await worker.page()
    data = stored(redis_server)
    at = data.index(b"\xa3Bye")
    for changed in (data[: at + 1] + b"Hey" + data[at + 4 :], data.replace(b"|greeting", b"|anything")):
        redis_server.run("SET", place_of("page"), changed, "KEEPTTL")
        before = worker.runs["page"]
        assert await worker.page() == page_for("alice")
        assert worker.runs["page"] == before + 1
    body_at = len(FORMAT.head(data).raw)
    for at in range(body_at, len(data), 3):
        redis_server.run("SET", place_of("page"), data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "KEEPTTL")
        before = worker.runs["page"]
        assert await worker.page() == page_for("alice")
        assert worker.runs["page"] == before + 1


async def test_bytes_that_look_like_a_skeleton(new_worker: NewWorker, redis_server: Server) -> None:
    """In the place of a value that holds none: of its own type, or a miss."""
    worker = new_worker()

    @worker.cache.cached(name="number")
    async def number() -> int:
        return 5

    await number()
    for name, params in (("|greeting", b"\x80"), ("|never", msgspec.msgpack.encode({"command": "x"}))):
        forged = MARK + msgspec.msgpack.encode([b"", b"", [[[], ["", ""], [[name, params, ""]]]]])
        scribble(redis_server, forged, "number")
        assert await number() == 5


async def test_text_of_users_stays_text(new_worker: NewWorker) -> None:
    """Placeholders of before, skeletons, and what other systems evaluate: byte for byte, written and read."""
    worker, other = new_worker(), new_worker()
    await worker.page()
    old = worker.seen
    texts = [
        old, old[:30], old[22:], old + old, "{{ 7 * 7 }}", "{% window 'greeting' %}", "<!--#include virtual='/' -->",
        "<esi:include src='/'/>", "\x80\x04\x95.", "\xc1\x93\xc4\x00", "|greeting", "&amp;1000000", "\\u00261000000",
    ]  # fmt: skip

    def define(of: Worker) -> Any:
        @of.cache.cached(name="echo page", returns=Any)
        async def echo(text: str) -> Any:
            return {text: [text, of.greeting(), f"{text}{of.greeting()}{text}"]}

        return echo

    echoes = [define(worker), define(other)]
    for text in texts:
        for echo in echoes:
            assert await echo(text) == {text: [text, "Hello <nobody>", f"{text}Hello <nobody>{text}"]}


def test_nothing_else_is_made_of_a_skeleton() -> None:
    """What is stored is decoded to text, bytes, numbers and lists of them: no type in it is chosen by who wrote it."""
    places = Places("page()")
    skeleton = codec_for(NOT_GIVEN, owner="test").skeleton({"a": places.place(Place("|x", b"\x80"))}, places)
    assert skeleton is not None
    flat: list[Any] = [msgspec.msgpack.decode(skeleton.encode()[1:])]
    while flat:
        one = flat.pop()
        assert type(one) in (list, str, bytes)
        if type(one) is list:
            flat += one


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pages_are_what_plain_python_makes(redis_server: Server, data: st.DataObject) -> None:
    """Random pages, some parts of them there before: on the server as in memory."""
    root = data.draw(roots)
    warm = data.draw(st.lists(st.sampled_from(parts_of(root)), max_size=3, unique=True))

    async def hold() -> None:
        backend = RedisBackend.from_url(redis_server.url)
        try:
            await hold_against_plain_python(backend, root, warm)
        finally:
            await backend.aclose()

    redis_server.run("FLUSHALL")
    anyio.run(hold)
