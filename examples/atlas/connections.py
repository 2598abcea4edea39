"""Connections to SQLite and to PostgreSQL. What differs between the two is here, and nothing else is.

A statement is written once, in the SQL that both know. Its parameters are numbered, `$1` and `$2`: PostgreSQL has them
so, and SQLite takes these for names.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

Row = tuple[Any, ...]


class Connection(Protocol):
    """One of either kind, for one thread at a time. Outside of a transaction it only reads."""

    text: str  # the type of a column with text that sorts by the numbers of its characters
    alone: str  # makes a transaction wait for others that begin with this

    def transaction(self) -> AbstractContextManager[object]:
        """Commits at the end of the block, or rolls back on an error."""

    def execute(self, statement: str, *parameters: Any) -> list[Row]: ...

    def execute_many(self, statement: str, rows: Iterable[Row]) -> None: ...

    def is_usable(self) -> bool: ...

    def close(self) -> None: ...


class Sqlite:
    text = "TEXT"
    alone = "BEGIN IMMEDIATE"

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=30, check_same_thread=False)

    def transaction(self) -> AbstractContextManager[object]:
        return self._connection  # it begins with the first statement that writes

    def execute(self, statement: str, *parameters: Any) -> list[Row]:
        return self._connection.execute(statement, numbered(parameters)).fetchall()

    def execute_many(self, statement: str, rows: Iterable[Row]) -> None:
        self._connection.executemany(statement, map(numbered, rows))

    def is_usable(self) -> bool:
        return True

    def close(self) -> None:
        self._connection.close()


def numbered(parameters: Row) -> dict[str, Any]:
    return {str(number): parameter for number, parameter in enumerate(parameters, 1)}


class Postgres:
    text = 'TEXT COLLATE "C"'
    alone = "SELECT pg_advisory_xact_lock(1936941420)"  # any number that nobody else takes in this database

    def __init__(self, url: str) -> None:
        # Without `autocommit` any statement begins a transaction, and a `transaction()` after it is a savepoint.
        self._connection = psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor, connect_timeout=10)

    def transaction(self) -> AbstractContextManager[object]:
        return self._connection.transaction()

    def execute(self, statement: str, *parameters: Any) -> list[Row]:
        cursor = self._connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def execute_many(self, statement: str, rows: Iterable[Row]) -> None:
        self._connection.cursor().executemany(statement.encode(), rows)

    def is_usable(self) -> bool:
        return not self._connection.closed

    def close(self) -> None:
        self._connection.close()


class Connections:
    """Lends connections, as many as are asked for at once, and keeps those that are idle.

    It sets no bound, nor does it test what it has kept: for that, a site takes a pool (`psycopg_pool`).
    """

    def __init__(self, name: str, connect: Callable[[], Connection]) -> None:
        self.name = name
        self._connect = connect
        self._idle: list[Connection] = []

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A connection that nobody else uses meanwhile."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.is_usable():
                self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


def is_url(database: str) -> bool:
    """Whether it is PostgreSQL's, and not the name of a file."""
    return database.startswith(("postgresql://", "postgres://"))


def connections_to(database: str) -> Connections:
    """A PostgreSQL by its URL, or else SQLite's file. Raises `psycopg.ProgrammingError` for what is no such URL."""
    if not is_url(database):
        return Connections(database, lambda: Sqlite(Path(database)))
    told = conninfo_to_dict(database)
    # The name goes into keys, and keys into logs: no password.
    names = [f"{name}={told[name]}" for name in ("host", "port", "user", "dbname", "options") if name in told]
    return Connections(f"postgresql: {' '.join(names)}", lambda: Postgres(database))


def check(database: str) -> str | None:
    """What is wrong with the database that is to be used, if something is."""
    try:
        with closing(connections_to(database)) as connections, connections.one() as connection:
            connection.execute("SELECT 1")
    except (psycopg.Error, sqlite3.Error) as error:
        return f"ATLAS_DATABASE: {str(error).strip()}"
    return None


@contextmanager
def new_database(folder: Path, beside: str | None) -> Iterator[str]:
    """One without data, which goes with the block: a file in `folder`, or a schema in the PostgreSQL at `beside`."""
    if beside is None or not is_url(beside):
        yield str(folder / "airports.sqlite3")
        return
    schema = f"atlas_{uuid4().hex}"
    with Connections(beside, lambda: Postgres(beside)).one() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{beside}{'&' if '?' in beside else '?'}options=-csearch_path%3D{schema}"
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")
            connection.close()
