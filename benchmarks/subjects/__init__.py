"""One module a subject: what is asked of the workers, and how the answers are put."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from benchmarks.environments import Worker, redis_worker_of, worker_of
from benchmarks.processes import valkey
from benchmarks.rounds import Timed

NAMES = ("asynctag", "async-cache", "aiocache", "cashews", "fastapi-cache2")


@dataclass(slots=True)
class Run:
    """A run: how thorough it is, and the workers, which are started once and kept."""

    quick: bool
    stack: ExitStack
    _workers: dict[tuple[str, ...], Worker] = field(default_factory=dict)
    _server: str = ""
    _databases: "count[int]" = field(default_factory=count)

    def worker(self, library: str) -> Worker:
        return self._kept((library,), lambda: worker_of(library))

    def redis_worker(self, library: str, loop: str = "asyncio", *settings: str) -> Worker:
        """One that keeps its entries in a database of its own, in this kind of event loop."""
        return self._kept(
            (library, loop, *settings), lambda: redis_worker_of(library, self.database(), loop, *settings)
        )

    def _kept(self, which: tuple[str, ...], start: Callable[[], Worker]) -> Worker:
        if which not in self._workers:
            self._workers[which] = self.stack.enter_context(start())
        return self._workers[which]

    def database(self) -> str:
        """The URL of a database that nobody else uses, of one Valkey for the whole run."""
        self._server = self._server or self.stack.enter_context(valkey())
        return f"{self._server}/{next(self._databases)}"

    def pick(self, thorough: int, quick: int) -> int:
        return quick if self.quick else thorough

    def timed(self, library: str, command: str, **arguments: Any) -> Timed:
        worker = self.worker(library)

        def timed(n: int) -> float:
            return float(worker.ask(command, n=n, **arguments))

        return timed


Subject = Callable[[Run], Any]
