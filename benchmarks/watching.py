"""What a Redis server sees of its clients: their commands, and in how many pieces those came."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

_END = "that-was-all"


@dataclass(slots=True)
class Seen:
    """`commands`: the names of those that clients sent, not those of scripts. `trips`: in how many pieces they came."""

    trips: int = 0
    commands: Counter[str] = field(default_factory=Counter)


@contextmanager
def watching(url: str) -> Iterator[Seen]:
    """Note what comes to the server within the block."""
    seen = Seen()
    with Redis.from_url(url) as client, Redis.from_url(url) as watcher:
        client.ping()  # so that it is connected
        with watcher.monitor() as monitor:
            before = _reads(client)
            yield seen
            # The first question is in the second answer, and was asked by nobody else.
            seen.trips = _reads(client) - before - 1
            client.echo(_END)
            for said in monitor.listen():
                if said["command"] == f"ECHO {_END}":
                    break
                if said["client_type"] != "lua":
                    seen.commands[said["command"].split()[0].upper()] += 1
    del seen.commands["INFO"]


def _reads(client: Redis) -> int:
    stats: Any = client.info("stats")
    return int(stats["total_reads_processed"])
