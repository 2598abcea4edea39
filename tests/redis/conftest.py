"""Servers for tests: one of the session, emptied for each test that asks for it, and others of a test's own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.redis.servers import Sentinel, Server, binaries

BINARIES = binaries()


@pytest.fixture
def anyio_backend() -> str:
    """Not on trio: redis-py is for asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", params=[pytest.param(path, id=name) for name, path in BINARIES.items()])
def binary(request: pytest.FixtureRequest) -> Path:
    """Every test of a server runs on each that this machine has."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session")
def server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the session, with what other tests left in it: ask for `redis_server` instead."""
    with Server.start(binary, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def redis_server(server: Server) -> Server:
    """The server of the session, as new. It must not be killed or made a replica: take a `new_server` for that."""
    server.reset()
    return server


@pytest.fixture
def _closed_at_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def new_server(
    binary: Path, tmp_path_factory: pytest.TempPathFactory, _closed_at_the_end: ExitStack
) -> Callable[..., Server]:
    """Starts servers of a test's own: `new_server(maxmemory="10mb")`, `new_server(unix=True)`."""

    def start(*, unix: bool = False, **config: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        return _closed_at_the_end.enter_context(Server.start(binary, folder, unix=unix, **config))

    return start


@pytest.fixture
def new_sentinel(
    binary: Path, tmp_path_factory: pytest.TempPathFactory, _closed_at_the_end: ExitStack
) -> Callable[..., Sentinel]:
    """Starts sentinels of a test's own, given the master: `new_sentinel(master, quorum=2)`."""

    def start(master: Server, **options: Any) -> Sentinel:
        folder = tmp_path_factory.mktemp("sentinel")
        return _closed_at_the_end.enter_context(Sentinel.start(binary, folder, master, **options))

    return start


@pytest.fixture
def unix_server(new_server: Callable[..., Server]) -> Server:
    """A server of the test's own, at a Unix socket."""
    return new_server(unix=True)
