"""What a server sees of a client: its commands, and in how many pieces they came."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis

from tests.redis.servers import Server


class Seen:
    """`commands`: the names of those that clients sent, not those of scripts. `reads`: in how many pieces they came."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.reads = 0


@contextmanager
def watching(server: Server) -> Iterator[Seen]:
    """Note what comes within the block."""
    seen = Seen()
    with Redis.from_url(server.url, socket_timeout=5) as client, client.monitor() as monitor:
        before = _reads(server)
        yield seen
        # The first question is in the second answer, as one more piece.
        seen.reads = _reads(server) - before - 1
        server.run("ECHO", "that was all")
        for line in monitor.listen():
            if line["command"] == "ECHO that was all":
                break
            if line["client_type"] != "lua":
                seen.commands.append(line["command"].split()[0].upper())
    seen.commands = [name for name in seen.commands if name != "INFO"]


def _reads(server: Server) -> int:
    return int(server.info("stats")["total_reads_processed"])
