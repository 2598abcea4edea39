"""One module a subject: what is asked of the workers, and how the answers are put."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.environments import Worker, worker_of
from benchmarks.rounds import Timed

NAMES = ("asynctag", "async-cache", "aiocache", "cashews", "fastapi-cache2")


@dataclass(slots=True)
class Run:
    """A run: how thorough it is, and the workers, which are started once and kept."""

    quick: bool
    stack: ExitStack
    _workers: dict[str, Worker] = field(default_factory=dict)

    def worker(self, library: str) -> Worker:
        if library not in self._workers:
            self._workers[library] = self.stack.enter_context(worker_of(library))
        return self._workers[library]

    def pick(self, thorough: int, quick: int) -> int:
        return quick if self.quick else thorough

    def timed(self, library: str, command: str, **arguments: Any) -> Timed:
        worker = self.worker(library)

        def timed(n: int) -> float:
            return float(worker.ask(command, n=n, **arguments))

        return timed


Subject = Callable[[Run], Any]
