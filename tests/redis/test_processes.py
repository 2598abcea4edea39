"""Several processes read and write at random over one server, and nobody is given what was acknowledged to be old.

What they do, and against what it is held: see `tests.redis.processes`. The wrong variants show that it would be seen.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from asynctag.backends.redis import RedisBackend
from asynctag.names import key_name
from tests.redis.processes import Plan
from tests.redis.servers import Server

ROOT = Path(__file__).parents[2]

#: The event loops of each process.
LOOPS = (1, 1, 2)
TASKS = 4
OPERATIONS = 120

#: Longer than it takes on a busy machine, in seconds.
PATIENCE = 60


@dataclass
class Outcome:
    """What came of all processes: the reads that were given something old, and how often what happened."""

    stale: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def run_processes(server: Server, backend: str) -> Outcome:
    """Run them side by side, begun at the same time."""
    outcome = Outcome()
    with ExitStack() as stack:
        processes = []
        for number, loops in enumerate(LOOPS):
            plan = Plan(server.url, backend, f"process {number}", loops, TASKS, OPERATIONS)
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.redis.processes", json.dumps(plan)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            told, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
            report = json.loads(told)
            assert report["failed"] == []
            outcome.stale += report["stale"]
            outcome.counts.update(report["counts"])
    print(f"{backend}: {len(outcome.stale)} of {outcome.counts['reads']} reads stale; {dict(outcome.counts)}")
    return outcome


def test_no_process_reads_what_is_old(redis_server: Server) -> None:
    """Whatever the others do meanwhile; and they do enough for it to mean something."""
    outcome = run_processes(redis_server, "Counting")
    assert outcome.stale == []
    enough = {
        "reads": 1500,
        "hits": 800,
        "stale hits": 40,
        "invalidations": 150,
        "soft invalidations": 40,
        "misses: invalidated": 200,
        "stored": 200,
        "refused: invalidated": 40,
    }
    assert {what: outcome.counts[what] for what, number in enough.items() if outcome.counts[what] < number} == {}


@pytest.mark.parametrize("wrong", ["StampsAtTheStore", "SaysSoTooSoon"])
def test_a_wrong_variant_is_caught(wrong: str, redis_server: Server) -> None:
    """With a backend that breaks a rule of the protocol, some are given what is old."""
    outcome = run_processes(redis_server, wrong)
    assert outcome.stale


STORE = """
import asyncio, sys
from asynctag import Cache
from asynctag.backends.redis import RedisBackend

async def main():
    cache = Cache(RedisBackend.from_url(sys.argv[1]), default_ttl=60)
    async with cache:
        await cache.set("page", "a page", since=await cache.lookup("page"), tags=["a", "b", "c", "d", "e", "f"])

asyncio.run(main())
"""


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(3))
async def test_each_process_stores_the_tags_in_one_order(seed: int, redis_server: Server) -> None:
    """Else one that has read an entry would need a second round trip for what another stored with the same tags."""
    with anyio.fail_after(PATIENCE):
        await anyio.run_process(
            [sys.executable, "-c", STORE, redis_server.url], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(seed)}
        )
    backend = RedisBackend.from_url(redis_server.url)
    entry = (await backend.inspect(key_name("", "page"))).entry
    await backend.aclose()
    assert entry is not None
    assert list(entry.tags) == sorted(entry.tags, reverse=True)
    assert len(entry.tags) >= 6
