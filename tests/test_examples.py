"""Every example runs, and does what it says."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from asynctag import Cache
from asynctag.backends.memory import MemoryBackend
from examples import quickstart, starlette_app
from examples.atlas.app import EDITOR_KEY, check, create_app
from examples.atlas.catalogue import cache as atlas_cache

ROOT = Path(__file__).parents[1]
EDITOR = {"X-Editor-Key": EDITOR_KEY}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An example as a program of its own, in which warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@asynccontextmanager
async def client_of(app: object, cache: Cache) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that was started, with an empty cache."""
    with cache.override(MemoryBackend()):
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


def test_demo_checks_its_claims() -> None:
    """The demo ends by itself, and all that it claims holds."""
    done = run("-m", "examples.atlas.demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as it must be" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
    assert len(done.stdout.splitlines()) < 60


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
