"""The atlas on a real PostgreSQL: what SQLite answers, and no answer to an edit before its commit."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asynctag.backends.memory import MemoryBackend
from asynctag.integrations.fastapi import CacheDep
from examples.atlas import serve
from examples.atlas.app import ExistingAirport, create_app, edit, form_of, unit_of_work
from examples.atlas.catalogue import cache
from examples.atlas.connections import check, connections_to, new_database
from examples.atlas.data import Database, Writing
from examples.atlas.demo import running
from tests.postgres.holding import HeldCommits
from tests.postgres.servers import Server
from tests.redis.servers import eventually

ROOT = Path(__file__).parents[2]
PAGE = "/airports/LSZS"
OLD, NEW = "Samedan Airport", "Engadin"
FORM = {"name": NEW, "elevation": "5600"}


@pytest.fixture(autouse=True)
def _settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have set these."""
    for name in ("REDIS_URL", "ATLAS_DATABASE", "PORT", "WORKERS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def opened(place: str) -> Iterator[Database]:
    database = Database(connections_to(place))
    try:
        yield database
    finally:
        database.close()


# --- the data ------------------------------------------------------------------------------------------


def test_both_answer_alike(postgres: Server, tmp_path: Path) -> None:
    """Every query, in the same order, with values of the same types; and what an edit says that it has changed."""
    with opened(postgres.url) as one, opened(str(tmp_path / "airports.sqlite3")) as other:
        assert one.load() is other.load() is True
        assert one.load() is other.load() is False
        samedan, unknown = one.airport("LSZS"), one.airport("XXXX")
        assert samedan is not None
        assert unknown is None
        queries: list[Callable[[Database], object]] = [
            lambda database: database.airport("LSZS"),
            lambda database: [database.highest(country, 1) for country, _ in database.countries()],
            lambda database: database.highest("US", 3),
            lambda database: [database.peak(country) for country, _ in database.countries()],
            lambda database: database.suspicious(),
            lambda database: database.around(samedan, 8),
        ]
        for query in queries:
            assert repr(query(one)) == repr(query(other))
        for name, elevation in [(NEW, samedan.elevation), (NEW, samedan.elevation + 1)]:
            changes = []
            for database in (one, other):
                with database.transaction() as writing:
                    changes.append(writing.update("LSZS", name=name, elevation=elevation))
            assert changes[0] == changes[1]
        assert one.airport("LSZS") == other.airport("LSZS") != samedan


def test_an_error_leaves_nothing_behind(postgres: Server) -> None:
    """What was changed before it is rolled back, and the connection is good for the next one."""
    with opened(postgres.url) as database:
        database.load()
        before = database.airport("LSZS")

        def fail_after_an_edit() -> None:
            with database.transaction() as writing:
                writing.update("LSZS", name=NEW, elevation=0)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_after_an_edit()
        assert database.airport("LSZS") == before


def test_it_is_loaded_by_one_of_many(postgres: Server) -> None:
    """Of those that open new data at once, one fills it, and the others find it filled."""
    databases = [Database(connections_to(postgres.url)) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        filled = list(threads.map(Database.load, databases))
    assert sorted(filled) == [False, False, False, True]
    for database in databases:
        assert database.airport("LSZS") is not None
        database.close()


def test_a_connection_that_was_lost_is_not_kept(postgres: Server) -> None:
    """One call finds that it is gone, and the next makes another."""
    with opened(postgres.url) as database:
        database.load()
        postgres.disconnect()
        with pytest.raises(Exception, match="terminating connection"):
            database.airport("LSZS")
        assert database.airport("LSZS") is not None


def test_keys_name_no_password() -> None:
    """They tell databases and schemas apart, and end up in logs."""
    name = connections_to("postgresql://atlas:secret@db/atlas").name
    assert "secret" not in name
    assert name != connections_to("postgresql://atlas:secret@db/other").name
    assert name != connections_to("postgresql://atlas:secret@db/atlas?options=-csearch_path%3Done").name


def test_a_new_database_goes_with_the_block(postgres: Server, tmp_path: Path) -> None:
    """Nothing that was there is touched, and nothing is left of it."""
    postgres.run("CREATE TABLE airports (mine int)")
    with new_database(tmp_path, postgres.url) as place, opened(place) as database:
        assert database.load()
    assert postgres.run("SELECT * FROM airports") == []
    assert postgres.run("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'atlas%'") == []


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/atlas", "postgresql://127.0.0.1:none/atlas"])
def test_serve_says_that_there_is_no_database(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before it starts."""
    monkeypatch.setenv("ATLAS_DATABASE", url)
    assert serve.main() == 1
    assert capsys.readouterr().err.startswith("ATLAS_DATABASE: ")
    assert check(url)


# --- the order of the commit and the answer ------------------------------------------------------------------


class Noting:
    """Notes in `happened` that an answer to a POST goes out."""

    def __init__(self, app: ASGIApp, happened: list[str]) -> None:
        self.app = app
        self.happened = happened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if scope["method"] == "POST" and message["type"] == "http.response.start":
                self.happened.append("answer")
            await send(message)

        await self.app(scope, receive, noted if scope["type"] == "http" else send)


@pytest.fixture
def happened() -> list[str]:
    return []


@pytest.fixture
def app(happened: list[str]) -> FastAPI:
    """The atlas, and the same edit once more, by a unit of work with FastAPI's default scope."""
    app = create_app()

    @app.post("/late/airports/{icao}/edit")
    async def late(
        shown: ExistingAirport,
        values: Annotated[dict[str, str], Depends(form_of)],
        tagged: CacheDep,
        writing: Annotated[Writing, Depends(unit_of_work)],
    ) -> Response:
        return await edit(shown, values, tagged, writing)

    app.add_middleware(Noting, happened=happened)
    return app


@pytest.fixture
def address(app: FastAPI, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The atlas on PostgreSQL under a uvicorn, with an empty cache in memory."""
    monkeypatch.setenv("ATLAS_DATABASE", postgres.url)
    with cache.override(MemoryBackend()), running(app) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def editor(address: str) -> Iterator[Callable[[str], "Future[httpx.Response]"]]:
    """Posts the form in another thread."""
    with ThreadPoolExecutor(1) as thread:
        yield lambda path: thread.submit(httpx.post, address + path, data=FORM, timeout=30, trust_env=False)


def status(answer: httpx.Response) -> str:
    return str(answer.headers["cache-status"])


def test_who_has_the_answer_reads_the_new_row(
    postgres: Server, client: httpx.Client, editor: Callable[[str], "Future[httpx.Response]"], happened: list[str]
) -> None:
    """With scope="function": while the commit waits there is no answer, and after the answer there is no old page."""
    held = HeldCommits(postgres, "airports")
    assert OLD in client.get(PAGE).text
    assert "hit" in status(client.get(PAGE))
    answer = editor(f"{PAGE}/edit")
    held.wait_for_one()
    meanwhile = client.get(PAGE)  # is computed from the row that is still the old one
    assert OLD in meanwhile.text
    assert "stored" not in status(meanwhile)
    happened.append("commit")
    held.go_on()
    assert answer.result(30).status_code == 303
    assert happened == ["commit", "answer"]
    after = client.get(PAGE)
    assert NEW in after.text
    assert "stored" in status(after)
    assert "hit" in status(client.get(PAGE))


def test_with_the_default_scope_the_answer_comes_before_the_commit(
    postgres: Server, client: httpx.Client, editor: Callable[[str], "Future[httpx.Response]"], happened: list[str]
) -> None:
    """Who has it may read the old row. The cache at least keeps nothing of that: it is new after the commit."""
    held = HeldCommits(postgres, "airports")
    assert OLD in client.get(PAGE).text
    answer = editor(f"/late{PAGE}/edit")
    held.wait_for_one()
    assert answer.result(30).status_code == 303
    told = client.get(PAGE)
    assert OLD in told.text
    assert "stored" not in status(told)
    happened.append("commit")
    held.go_on()
    assert happened == ["answer", "commit"]
    eventually("the end of the transaction", lambda: "stored" in status(client.get(PAGE)))
    assert NEW in client.get(PAGE).text


def test_an_edit_that_fails_in_its_commit_is_answered_so(
    postgres: Server, client: httpx.Client, editor: Callable[[str], "Future[httpx.Response]"]
) -> None:
    """Nobody is told that it was saved; what was there is served, and stored again."""
    assert OLD in client.get(PAGE).text
    postgres.run(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; RETURN NULL; END'"
    )
    postgres.run(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON airports DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    assert editor(f"{PAGE}/edit").result(30).status_code == 500
    assert OLD in client.get(PAGE).text
    assert "hit" in status(client.get(PAGE))


# --- the demo ------------------------------------------------------------------------------------------


def test_the_demo(postgres: Server) -> None:
    """All that it claims holds on PostgreSQL, too, and it leaves nothing there."""
    show = "import sys; from examples.atlas import demo; demo.workers.show = lambda: None; sys.exit(demo.main())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", show],
        cwd=ROOT,
        env={**os.environ, "ATLAS_DATABASE": postgres.url},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "into PostgreSQL" in done.stdout
    assert "All as it must be" in done.stdout
    assert postgres.run("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'atlas%'") == []
