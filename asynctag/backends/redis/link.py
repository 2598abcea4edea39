"""A connection of one event loop, and what is known of the server behind it."""

import re
import secrets
from collections.abc import Sequence
from typing import Any

from hiredis import ReplyError
from redis.asyncio import Redis

from asynctag.backends.base import Entry, Reading, Stamp
from asynctag.backends.redis.connection import Connection, Last, connect, pack
from asynctag.backends.redis.format import TAGS_AT, Head
from asynctag.backends.redis.replies import not_a_cluster, refusal
from asynctag.backends.redis.scripts import ALL
from asynctag.errors import ConfigurationError

#: Of how many keys it is remembered which tags their entries had, in how many bytes, and how many those of one may be.
MAX_KNOWN, MAX_KNOWN_BYTES, MAX_HEAD_KNOWN = 10_000, 16 * 1024 * 1024, 8192

#: Of how many bytes, as they came and as they were read, it is remembered what they came to; of one entry, how many.
MAX_KEPT_BYTES, MAX_ENTRY_KEPT = 16 * 1024 * 1024, 256 * 1024

#: Asks who the server is.
WHO = pack("INFO", "server", "replication")

REDIS_NEEDED, VALKEY_NEEDED = (7, 0), (7, 2)

#: What the journal says of itself, asked for with the tags of every entry.
RESERVED = ("epoch", "seq", "floor", "soft")


class Judged:
    """Replies, when `newest` was the newest stamp and `offset` the clock's, and the entry to serve that they came to.

    The same ones come to the same, as long as the entry is fresh.
    """

    __slots__ = ("answer", "body", "entry", "newest", "offset", "reading", "replies")

    def __init__(
        self, body: bytes, answer: list[float | None], newest: Stamp, offset: float, reading: Reading, entry: Entry
    ) -> None:
        self.body = body
        self.answer = answer
        self.newest = newest
        self.offset = offset
        self.reading = reading
        self.entry = entry
        #: What is handed out where the same bytes come again, so that one look tells.
        self.replies: list[Any] = [body, answer]

    def as_sent(self) -> Last:
        """The bytes that the replies are in RESP3, and the replies."""
        numbers = [b"_\r\n" if number is None else b",%.17g\r\n" % number for number in self.answer]
        raw = b"$%d\r\n%b\r\n*%d\r\n%b" % (len(self.body), self.body, len(numbers), b"".join(numbers))
        return raw, self.replies


class Known:
    """The tags that an entry had when it was last seen, and the request for it and for the journal's word on them.

    Whoever asks so gets an answer that is worth as much as a script's, if the entry still has these tags. With
    `softened`, it asks for soft invalidations of each tag too. What begins with the same bytes has the same `head`.
    """

    __slots__ = ("head", "judged", "last", "packed", "request", "size", "softened", "tags")

    def __init__(self, request: bytes, tags: tuple[str, ...], head: Head, softened: bool) -> None:
        self.request = request
        self.tags = tags
        self.head = head
        self.packed = head.raw[TAGS_AT:]
        self.softened = softened
        self.judged: Judged | None = None
        self.last: Last | None = None  # what was `judged`, once the same has come again
        self.size = len(request) + 3 * len(head.raw)  # the head, the tags packed and as texts


class Link:
    """A connection, and who is behind it.

    `run` is another after a restart (the run id), and after the server was promoted or took over the data of another
    (the replication id).
    """

    def __init__(self, connection: Connection, run: str) -> None:
        self.connection = connection
        self.run = run
        self.known: dict[str, Known] = {}
        self._known_bytes = 0
        self._kept: dict[Known, int] = {}  # those with something `judged`, the oldest first, and its bytes
        self._kept_bytes = 0
        #: For the names of what is on its way into its place.
        self.token = secrets.token_hex(8)
        self.parts = 0
        self.failed = False  # it has been counted as a failure
        self.ended = False  # it was closed on purpose: what is lost with it is not asked again
        self.moved = False  # the server is not the one that it was: nothing that came over this connection counts
        # A master that was demoted, took over older data and was promoted again keeps its connections.
        connection.inquiry = WHO, self._see_who

    def _see_who(self, info: Any) -> None:
        if not isinstance(info, ReplyError) and who(read_info(info)) != self.run:
            self.moved = True
            self.connection.close()

    def remember(self, journal: str, key: str, name: str, tags: tuple[str, ...], head: Head, *, softened: bool) -> None:
        """Note the tags of the entry `key`, which stands under `name`."""
        if len(head.raw) > MAX_HEAD_KNOWN:
            return
        softs = [f"~{tag}" for tag in tags] if softened else []
        # GETEX, not GET: as a write it is refused by a demoted master (see scripts.py), and it changes nothing.
        request = pack("GETEX", name) + pack("ZMSCORE", journal, *RESERVED, f"run:{self.run}", *tags, *softs)
        self._forget(key)
        known = self.known[key] = Known(request, tags, head, softened)
        self._known_bytes += known.size
        while len(self.known) > MAX_KNOWN or self._known_bytes > MAX_KNOWN_BYTES:
            self._forget(next(iter(self.known)))

    def _forget(self, key: str) -> None:
        known = self.known.pop(key, None)
        if known is not None:
            self._known_bytes -= known.size
            self._let_go(known)

    def keep(self, known: Known, judged: Judged) -> None:
        """Note what the replies to the request of `known` came to."""
        before, last = known.judged, known.last
        self._let_go(known)
        size = 2 * (len(judged.body) + len(judged.entry.body))  # as read and as sent, encoded and decoded
        if size > MAX_ENTRY_KEPT:
            return
        known.judged = judged
        if before is not None and before.answer == judged.answer and before.body == judged.body:
            # Once a second, as another offset of the clock is known.
            judged.replies, known.last = before.replies, last or before.as_sent()
        self._kept[known] = size
        self._kept_bytes += size
        while self._kept_bytes > MAX_KEPT_BYTES:
            self._let_go(next(iter(self._kept)))

    def _let_go(self, known: Known) -> None:
        known.judged = known.last = None
        self._kept_bytes -= self._kept.pop(known, 0)


async def open_link(client: Redis, address: str, *, connect_timeout: float, timeout: float, max_waiting: int) -> Link:
    """Connect, see who is there, and give it the scripts."""
    connection = await connect(client, connect_timeout=connect_timeout, timeout=timeout, max_waiting=max_waiting)
    try:
        loads = [pack("SCRIPT", "LOAD", script.text) for script in ALL]
        info, *loaded = await connection.send(b"".join((pack("INFO"), *loads)), 1 + len(ALL))
        if isinstance(info, ReplyError):
            raise refusal(info, address)
        facts = read_info(info)
        check_server(facts, loaded, address)
        return Link(connection, who(facts))
    except BaseException:
        connection.close()
        raise


def who(facts: dict[str, str]) -> str:
    """Who the server is, of what it says of itself. As `who` in journal.lua."""
    return facts.get("run_id", "") + facts.get("master_replid", "")


def read_info(info: object) -> dict[str, str]:
    """The fields of an INFO reply; none of what is no such reply."""
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else str(info)
    return dict(re.findall(r"^(\w+):([^\r\n]*)", text, re.MULTILINE))


def check_server(facts: dict[str, str], loaded: Sequence[Any], address: str) -> None:
    """Raise `ConfigurationError` for a server that lacks what is needed, naming its version."""
    if facts.get("cluster_enabled") == "1":
        raise not_a_cluster(address, "cluster_enabled:1")
    what, version, needed = "Redis", facts.get("redis_version", ""), REDIS_NEEDED
    if "valkey_version" in facts:
        what, version, needed = "Valkey", facts["valkey_version"], VALKEY_NEEDED
    numbers = tuple(int(one) for one in re.findall(r"\d+", version)[:2])
    if not {"run_id", "master_replid"} <= facts.keys() or numbers < needed:
        raise ConfigurationError(
            f"{address} is {what} {version or 'of no version that it tells'}: RedisBackend needs Redis "
            f"{'.'.join(map(str, REDIS_NEEDED))} or Valkey {'.'.join(map(str, VALKEY_NEEDED))}, or newer"
        )
    for reply in loaded:
        if isinstance(reply, ReplyError):
            raise refusal(reply, address)
