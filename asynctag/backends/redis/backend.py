"""The backend of many processes: entries and the journal in Redis or Valkey, one round trip for everything."""

import copy
import logging
import re
from collections.abc import Iterable, Sequence
from math import ceil, inf
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import urlsplit

from hiredis import ReplyError
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asynctag.backends.base import NOT_THERE, OF_NO_EPOCH, Backend, Cause, Entry, Miss, Reading, Stamp, Written
from asynctag.backends.redis.blocking import BlockingClient, Way
from asynctag.backends.redis.client import Client, MovedError, WentBackError
from asynctag.backends.redis.connection import ConnectionLostError, pack
from asynctag.backends.redis.format import TAGS_AT, Format, Head, Times, pack_tags
from asynctag.backends.redis.link import Judged, Known, Link
from asynctag.backends.redis.scripts import (
    DELETE,
    EPOCH,
    HELD,
    INVALIDATE,
    LEASE,
    OPEN,
    READ,
    RELEASE,
    TAG,
    UNCHANGED,
    WRITE,
    Script,
)
from asynctag.errors import BackendError, ConfigurationError, CorruptEntryError, InvalidationError
from asynctag.expiry import seconds
from asynctag.names import ROOT, check_namespace, describe, listed

#: For how long the bytes of an entry wait to be put in their place, in milliseconds.
PART_LIFE = 60_000

MICRO = 1_000_000

#: How often an entry is looked at that changes meanwhile.
MAX_TRIES = 4


logger = logging.getLogger("asynctag")

_CAUSES = {cause.value: cause for cause in Cause}


class _NoScriptError(Exception):
    """The server has forgotten the scripts."""


class RedisOptions(TypedDict, total=False):
    """What may be said of a `RedisBackend`."""

    prefix: str
    timeout: float
    connect_timeout: float
    max_waiting: int
    compress_from: int
    max_body: int
    max_tags: int
    hmac_key: bytes | None
    sync_client: SyncRedis | None


class RedisBackend(Backend):
    """Entries and their journal in one Redis (7.0 or newer) or Valkey (7.2 or newer), for asyncio.

    `client` is a `redis.asyncio.Redis` as the application has configured it: TLS, users, unix sockets, or
    `Sentinel(...).master_for(...)`. Only its way to connect is used. Each event loop has one connection, which all
    callers share. It is made when it is first needed.

    `Cache.sync` makes connections of its own, with the settings of `client`, or as `sync_client` (a `redis.Redis`)
    has them: give that where the first are for asyncio alone.

    `prefix` begins all names in Redis; caches that share it share one journal (use `Cache(namespace=...)` to keep them
    apart). A command has `timeout` seconds to be answered, a connection `connect_timeout` to be made; past
    `max_waiting` unanswered commands callers wait, no longer than `timeout`. Bodies from `compress_from` bytes on are
    compressed; above `max_body` bytes nothing is stored or read. The journal holds about `max_tags` invalidated tags:
    past that the oldest are forgotten, and entries that are older than those become misses. With `hmac_key` (at least
    16 bytes) entries are sealed, and what was written or changed by somebody without it is a miss.

    Raises `ConfigurationError` for values that cannot be meant and, once connected, for a server that lacks what is
    needed; `BackendError` where the server does not answer.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "asynctag",
        timeout: float = 1.0,
        connect_timeout: float = 1.0,
        max_waiting: int = 10_000,
        compress_from: int = 4096,
        max_body: int = 16 * 1024 * 1024,
        max_tags: int = 1_000_000,
        hmac_key: bytes | None = None,
        sync_client: SyncRedis | None = None,
    ) -> None:
        _check_client(client)
        if sync_client is not None and not isinstance(sync_client, SyncRedis):
            raise ConfigurationError(f"RedisBackend(sync_client={sync_client!r}): give a redis.Redis")
        for name, limit in {
            "max_waiting": max_waiting,
            "compress_from": compress_from,
            "max_body": max_body,
            "max_tags": max_tags,
        }.items():
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
                raise ConfigurationError(f"RedisBackend({name}={limit!r}): give a whole number above 0")
        if hmac_key is not None and (not isinstance(hmac_key, bytes) or len(hmac_key) < 16):
            raise ConfigurationError(
                "RedisBackend(hmac_key=...): give at least 16 random bytes, such as those of "
                "secrets.token_bytes(32), the same in every process"
            )
        if not prefix:
            raise ConfigurationError('RedisBackend(prefix=""): give a name, such as prefix="asynctag"')
        self._max_body = max_body
        self._sealed = hmac_key is not None
        self._format = Format(secret=hmac_key, compress_from=compress_from, max_body=max_body)
        # In braces: on a cluster, all that one script touches has to be in one slot.
        self._base = "{" + check_namespace(prefix, "prefix") + "}"
        self._journal = self._base + "journal"
        self._softened = False  # whether anything was ever invalidated softly
        self._client = Client(
            client,
            self._journal,
            timeout=seconds(timeout, "timeout", zero=False),
            connect_timeout=seconds(connect_timeout, "connect_timeout", zero=False),
            max_waiting=max_waiting,
            max_tags=max_tags,
        )
        self._run = self._client.run
        self._connects_by = client if sync_client is None else sync_client
        self._blocking = BlockingClient(self._client)

    @classmethod
    def from_url(cls, url: str, **options: Unpack[RedisOptions]) -> Self:
        """A backend on the server at `url`: `redis://[user:password@]host[:port][/db]`, `rediss://` (TLS), `unix://path`.

        Its query may hold redis-py's options for connections. The rest: see the class.
        """
        try:
            _check_url(url)
            client = Redis.from_url(url, protocol=3, retry=Retry(NoBackoff(), 0))
        except (ValueError, TypeError, AttributeError) as error:
            # Of a URL with a password nothing is shown: it may be anywhere in one that is wrong.
            secret = isinstance(url, str) and ("@" in url or "password" in url)
            shown, why = ("...", "it cannot be read") if secret else (repr(url), str(error))
            raise ConfigurationError(
                f"RedisBackend.from_url({shown}): {why}. Give redis://[user:password@]host:port/db, "
                f"rediss://... (TLS) or unix:///path, with %40 for an @ in the password, %2F for a / and %23 for a #"
            ) from None
        return cls(client, **options)

    def __repr__(self) -> str:
        return f"<RedisBackend {self._client.address}, prefix {self._base}>"

    async def aclose(self) -> None:
        self.close_blocking()
        await self._client.close()

    def blocking(self) -> Backend:
        self._blocking.way = Way(self._connects_by, self._client.address)
        backend = copy.copy(self)
        backend._run = self._blocking.run
        return backend

    def close_blocking(self) -> None:
        self._blocking.close()

    def _entry_name(self, key: str) -> str:
        return f"{self._base}entry:{key}"

    # --- reading -----------------------------------------------------------------------------------

    async def read(self, key: str) -> Reading:
        client = self._client
        link = client.ready()
        if link is None or (known := link.known.get(key)) is None:
            return _without_entry(await self._read(key))
        connection, newest = link.connection, client.newest
        try:
            replies = await connection.send(known.request, 2, known.last)
            if (
                (judged := known.judged) is not None
                and judged.replies is replies
                and judged.newest is newest
                and judged.offset == connection.clock_offset
                and self.clock() < judged.entry.fresh_until
                and not link.moved
            ):
                return judged.reading
            body, answer = replies
            reading = self._judge(link, key, known, body, answer, newest)
        except (ConnectionLostError, MovedError, WentBackError, _NoScriptError):
            if link.ended:
                raise
            reading = None
        if reading is None:
            reading = await self._read(key)
        return reading if reading.miss is None else _without_entry(reading)

    def newest(self) -> Stamp:
        newest = self._client.newest
        return newest if newest.epoch else OF_NO_EPOCH

    async def inspect(self, key: str) -> Reading:
        return await self._read(key)

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        return await self._read_many(keys)

    async def read_held(self, keys: Sequence[str]) -> list[Reading]:
        return await self._read_many(keys, despite_leases=True)

    async def is_held(self, tag: str, since: Stamp) -> bool:
        newest = self._client.newest
        answer, _ = await self._client.run(HELD, [self._journal], [since.seq, tag])
        return bool(answer[2]) and self._client.newest.epoch == newest.epoch == since.epoch

    async def _read_many(self, keys: Sequence[str], *, despite_leases: bool = False) -> list[Reading]:
        """In one go. Those of which it does not tell enough are read one by one."""
        if not keys:
            return []
        link, newest = await self._client.link(), self._client.newest
        asked = [self._ask(link, key, despite_leases=despite_leases) for key in keys]
        try:
            answers = await link.connection.send(b"".join([request for request, _ in asked]), 2 * len(asked))
        except ConnectionLostError:
            if link.ended:
                raise
            return [_without_entry(await self._read(key, despite_leases=despite_leases)) for key in keys]
        readings = []
        for key, (_, known), body, answer in zip(keys, asked, answers[::2], answers[1::2], strict=True):
            try:
                reading = self._judge(link, key, known, body, answer, newest)
            except (MovedError, WentBackError, _NoScriptError):
                reading = None
            if reading is None:
                reading = await self._read(key, despite_leases=despite_leases)
            readings.append(_without_entry(reading))
        return readings

    async def _read(self, key: str, *, despite_leases: bool = False) -> Reading:
        """What stands under `key`, with the entry where there is one."""
        by_script = lost = False
        for _ in range(MAX_TRIES):
            link, newest = await self._client.link(), self._client.newest
            request, known = self._ask(link, key, by_script=by_script, despite_leases=despite_leases)
            try:
                body, answer = await link.connection.send(request, 2)
                reading = self._judge(link, key, known, body, answer, newest)
            except (ConnectionLostError, MovedError) as error:
                if lost or link.ended:
                    self._client.failing(link, str(error))
                    raise
                lost = True
                continue
            except WentBackError as error:
                return Reading(await self._client.begin_epoch(error.epoch), None, miss=Miss(Cause.LOST))
            except _NoScriptError:
                await link.connection.send(pack("SCRIPT", "LOAD", READ.text), 1)
                continue
            if reading is not None:
                return reading
            by_script = True
        # Others store under this key faster than it can be looked at.
        return Reading(self._client.newest, None, miss=NOT_THERE)

    def _ask(
        self, link: Link, key: str, *, by_script: bool = False, despite_leases: bool = False
    ) -> tuple[bytes, Known | None]:
        """The request for an entry and the journal's word on it, to which two replies come.

        The tags are those that the entry had last time; where they are not known, a script finds them.
        """
        known = None if by_script or despite_leases else link.known.get(key)
        if known is not None:
            return known.request, known
        name = self._entry_name(key)
        args = ["despite"] if despite_leases else []
        return pack("GETEX", name) + self._client.evalsha(link, READ, [self._journal, name], args), None

    def _judge(
        self, link: Link, key: str, known: Known | None, body: Any, answer: Any, newest: Stamp
    ) -> Reading | None:
        """What the replies to `_ask` come to; None if it takes another look, by script."""
        if link.moved:
            raise self._client.moved()
        if (
            known is not None
            and (last := known.judged) is not None
            and last.newest is newest
            and last.answer == answer
            and last.body == body
            and last.offset == link.connection.clock_offset
            and self.clock() < last.entry.fresh_until
        ):
            if known.last is None:
                known.last = last.as_sent()
            return last.reading
        if type(answer) is not list:
            if str(answer).startswith("NOSCRIPT"):
                raise _NoScriptError
            raise self._client.refused(link, answer)
        if isinstance(body, ReplyError) and not str(body).startswith("WRONGTYPE"):
            raise self._client.refused(link, body)
        if known is None:
            return self._judge_by_script(link, key, body, answer, newest)
        if type(answer[0]) is bytes:  # the older protocol, RESP2
            answer = [None if number is None else float(number) for number in answer]
        epoch, seq, floor, soft, run = answer[:5]
        if epoch is None or seq is None:  # it is missing: a script begins a new epoch
            return None
        if run is None:  # it is another server's, or this one is not what it was: a new connection asks
            link.connection.close()
            raise self._client.moved()
        journal = newest
        if -seq != newest.seq or -epoch != newest.epoch:
            try:
                numbered = int(-epoch), int(-seq)
            except (ValueError, OverflowError):  # of what is no number a script makes a new journal
                return None
            journal = self._see(newest, *numbered)
        if body is None:
            return Reading(journal, None, False, NOT_THERE)
        if type(body) is not bytes:
            return None
        head, tags, numbers = known.head, known.tags, answer[5:]
        try:
            if not body.startswith(head.raw):
                if not body.startswith(known.packed, TAGS_AT):
                    return None
                head = known.head = self._format.head(body)
            plain = self._body(key, body, head)
        except CorruptEntryError:
            return None
        miss = softener = None
        stamp = head.stamp
        if stamp.epoch != journal.epoch:
            miss = Miss(Cause.LOST)
        elif floor is not None and stamp.seq < -floor:
            miss = Miss(Cause.PRUNED)
        elif soft is not None and -soft > stamp.seq and not known.softened:
            return None
        elif any(numbers):  # most tags were never invalidated
            at = next((at for at, number in enumerate(numbers) if number is not None and number > stamp.seq), None)
            if at is not None and at < len(tags):
                miss = Miss(Cause.LEASED if numbers[at] == inf else Cause.INVALIDATED, tags[at])
            elif at is not None:
                softener = tags[at - len(tags)]
        reading = self._reading(link, key, journal, head, tags, plain, len(body), miss, softener)
        if reading.miss is None and not reading.stale and reading.entry is not None:
            link.keep(known, Judged(body, answer, journal, link.connection.clock_offset, reading, reading.entry))
        return reading

    def _judge_by_script(self, link: Link, key: str, body: Any, answer: Any, newest: Stamp) -> Reading | None:
        epoch, seq, soft, about = answer
        journal = self._see(newest, epoch, seq)
        self._softened = soft > 0
        if body is None:
            return Reading(journal, None, miss=NOT_THERE)
        try:
            if type(body) is not bytes:
                raise CorruptEntryError("no string")
            head = self._format.head(body)
            tags, plain = self._format.tags(head), self._body(key, body, head)
            if key not in tags:
                raise CorruptEntryError("an entry that does not carry its key: it was stored under another")
        except CorruptEntryError as error:
            logger.warning("%s is taken for a miss: %s", key, error)
            return Reading(journal, None, miss=Miss(Cause.CORRUPT))
        if about is None or about[0] != head.raw:  # another was stored in between
            return None
        _, cause, tag, softener = about
        miss = Miss(_CAUSES[cause.decode()], _text(tag)) if cause is not None else None
        self._remember(link, key, tags, head)
        return self._reading(link, key, journal, head, tags, plain, len(body), miss, _text(softener))

    def _body(self, key: str, data: bytes, head: Head) -> bytes:
        """What the codec has made, of the entry of `key`."""
        if head.as_is and not self._sealed and len(data) <= self._max_body:
            return data[len(head.raw) :]
        return self._format.body(self._entry_name(key), data, len(head.raw))

    def _remember(self, link: Link, key: str, tags: tuple[str, ...], head: Head) -> None:
        link.remember(self._journal, key, self._entry_name(key), tags, head, softened=self._softened)

    def _reading(
        self,
        link: Link,
        key: str,
        journal: Stamp,
        head: Head,
        tags: tuple[str, ...],
        body: bytes,
        size: int,
        miss: Miss | None,
        softener: str | None,
    ) -> Reading:
        """A reading of an entry, with its times by the clock of this process."""
        offset = link.connection.clock_offset
        renew, fresh, stale, expires = head.times
        ends = (renew - offset, fresh - offset, stale - offset, expires - offset)
        entry = Entry(key, body, None, None, size, tags, head.stamp, *ends)
        if miss is not None:
            return Reading(journal, entry, False, miss)
        now = self.clock() + offset
        if now >= expires:
            return Reading(journal, entry, False, Miss(Cause.EXPIRED))
        if softener is None:
            return Reading(journal, entry, now >= fresh)
        if not entry.has_stale_period:
            return Reading(journal, entry, False, Miss(Cause.INVALIDATED, softener))
        return Reading(journal, entry, True)

    def _see(self, newest: Stamp, epoch: int, seq: int) -> Stamp:
        """The journal's stamp by a reply to a command that was sent when `newest` was known."""
        if seq == newest.seq and epoch == newest.epoch:
            return newest
        stamp = Stamp(epoch, seq)
        if not self._client.note(newest, stamp):
            raise WentBackError(epoch)
        return stamp

    async def tags(self, key: str) -> tuple[str, ...] | None:
        """The tags of the entry of `key`, if it is valid; None without one. Its body is not fetched."""
        (*_, about), _ = await self._run(READ, [self._journal, self._entry_name(key)], [])
        if about is None or about[1] is not None:
            return None
        try:
            return self._format.tags(self._format.head(about[0]))
        except CorruptEntryError:
            return None

    # --- writing -----------------------------------------------------------------------------------

    async def write(self, entry: Entry) -> Written:
        (written,) = await self.write_many([entry])
        return written

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        kept = [entry for entry in entries if len(entry.body) <= self._max_body]
        written = iter(await self._write(kept) if kept else ())
        too_large = Written(False, miss=Miss(Cause.TOO_LARGE))
        return [next(written) if len(entry.body) <= self._max_body else too_large for entry in entries]

    async def _write(self, entries: Sequence[Entry]) -> list[Written]:
        """Each is sent as a part, which a script then puts in its place or drops."""
        for last in (False, True):
            link, newest = await self._client.link(), self._client.newest
            now = self.clock()
            stores = [self._store(link, entry, now) for entry in entries]
            answers = await link.connection.send(b"".join([request for request, _ in stores]), 2 * len(stores))
            if last or not str(answers[1]).startswith("NOSCRIPT"):
                break
            await link.connection.send(pack("SCRIPT", "LOAD", WRITE.text), 1)
        written = []
        for entry, (_, head), part, answer in zip(entries, stores, answers[::2], answers[1::2], strict=True):
            try:
                written.append(self._stored(link, entry, head, part, answer, newest, now))
            except WentBackError as error:
                await self._client.begin_epoch(error.epoch)
                written.append(Written(False, miss=Miss(Cause.LOST)))
        return written

    def _store(self, link: Link, entry: Entry, now: float) -> tuple[bytes, Head]:
        """The request to store an entry, to which two replies come, and what the entry begins with."""
        offset = link.connection.clock_offset
        times = Times(*(at + offset for at in (entry.renew_from, entry.fresh_until, entry.stale_until, entry.expires)))
        data, head = self._format.dump(
            self._entry_name(entry.key), entry.stamp, times, pack_tags(entry.tags), entry.body
        )
        link.parts += 1
        part = f"{self._base}part:{link.token}:{link.parts}"
        args: list[str | int] = [
            *entry.stamp,
            ceil((entry.expires - now) * 1000),
            int(entry.has_stale_period),
            *entry.tags,
        ]
        keys = [self._journal, self._entry_name(entry.key), part]
        return pack("SET", part, data, "PX", PART_LIFE) + self._client.evalsha(link, WRITE, keys, args), head

    def _stored(
        self, link: Link, entry: Entry, head: Head, part: Any, answer: Any, newest: Stamp, now: float
    ) -> Written:
        """What the replies to `_store` come to."""
        if link.moved:
            raise self._client.moved()
        if isinstance(answer, ReplyError):
            raise self._client.refused(link, answer)
        epoch, seq, cause, tag, softener = answer
        self._see(newest, epoch, seq)
        if cause == b"no part":
            if isinstance(part, ReplyError):
                raise self._client.refused(link, part)
            raise BackendError(f"{self._client.address} evicted what was to be stored before it was in its place")
        if cause is not None:
            return Written(False, miss=Miss(_CAUSES[cause.decode()], _text(tag)))
        self._remember(link, entry.key, entry.tags, head)
        return Written(True, stale=softener is not None or now >= entry.fresh_until)

    async def add_tags(self, key: str, tags: Iterable[str]) -> bool:
        """Give the entry of `key` more tags. Whether it has them now.

        If one of them was invalidated since the entry's data was read, the entry goes. What was built from it
        before does not get them. Raises `ConfigurationError` with `hmac_key`: the server cannot seal what it changes.
        """
        if self._sealed:
            raise ConfigurationError(
                "add_tags() changes an entry on the server, and hmac_key= seals entries against that"
            )
        answer, _ = await self._run(TAG, [self._journal, self._entry_name(key)], tuple(tags))
        return answer[2] is not None

    # --- what invalidates ---------------------------------------------------------------------------

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        names = tuple(tags)
        await self._invalidating(names, INVALIDATE, [self._journal], ["soft" if soft else "hard", *names])

    async def delete(self, key: str) -> bool:
        answer, _ = await self._invalidating((key,), DELETE, [self._journal, self._entry_name(key)], [key])
        return bool(answer[2])

    async def wipe(self) -> None:
        """Begin a new epoch: everything that is stored becomes a miss, and goes as its time comes.

        The `max_ttl` that was agreed on is forgotten too.
        """
        await self._invalidating((ROOT,), EPOCH, [self._journal], [0])

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        names = tuple(tags)
        args: list[str | int] = [holder, _milliseconds(duration), *names]
        answer, twice = await self._invalidating(names, LEASE, [self._journal], args)
        return not answer[2] and not twice  # the second finds what the first has put there

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        names = tuple(tags)
        args: list[str | int] = [holder, _milliseconds(lag), "serve" if serve else "", *names]
        await self._invalidating(names, RELEASE, [self._journal], args)

    async def unchanged(self, tags: Sequence[str], since: Stamp) -> bool:
        newest = self._client.newest
        answer, _ = await self._run(UNCHANGED, [self._journal], [*since, *tags])
        # Where the journal has gone back meanwhile, a new epoch has begun, and the answer was the old one's.
        return bool(answer[2]) and self._client.newest.epoch == newest.epoch == since.epoch

    async def _invalidating(
        self, tags: tuple[str, ...], script: Script, keys: Sequence[str], args: Sequence[str | int]
    ) -> tuple[list[Any], bool]:
        try:
            return await self._run(script, keys, args, takes_number=True)
        except BackendError as error:
            raise InvalidationError(
                f"{listed([describe(tag) for tag in tags], 5)} may not have been invalidated: {error}", tags
            ) from error

    async def agree(self, max_ttl: float) -> None:
        wanted, ours = round(max_ttl * MICRO), self._client.max_ttl
        if wanted >= 2**53:
            raise ConfigurationError(f"max_ttl={max_ttl:.15g}: RedisBackend takes 9,007,199,254 seconds at most")
        if ours in (0, wanted):
            self._client.max_ttl = wanted
            try:
                (*_, theirs), _ = await self._run(OPEN, [self._journal], [])
            except BaseException:
                self._client.max_ttl = ours
                raise
            if theirs == wanted:
                return
            self._client.max_ttl = ours
        else:
            theirs = ours
        raise ConfigurationError(
            f"max_ttl={max_ttl:.15g}: the journal of {self._client.address} was made with "
            f"max_ttl={theirs / MICRO:.15g}. Caches that share a backend must agree on it; to change it, stop them all "
            f"and call `await backend.wipe()`, which drops everything"
        )


def _check_client(client: object) -> None:
    if isinstance(client, str):
        raise ConfigurationError("RedisBackend(...) was given a text: write RedisBackend.from_url(...)")
    if not isinstance(client, Redis):
        raise ConfigurationError(
            f"RedisBackend({type(client).__module__}.{type(client).__qualname__}): give a redis.asyncio.Redis, or use "
            f"RedisBackend.from_url(...)"
        )


def _check_url(url: str) -> None:
    """Refuse what redis-py passes over."""
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__qualname__}")
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"{parts.scheme!r} is no scheme of a Redis URL")
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError("the path of the socket is missing")
    elif not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError(f"the database is a number, not {parts.path[1:]!r}")


def _without_entry(reading: Reading) -> Reading:
    """As `read` says it: what may not be served is not there."""
    if reading.miss is None or reading.entry is None:
        return reading
    return Reading(reading.stamp, None, miss=reading.miss)


def _milliseconds(seconds: float) -> int:
    """As leases are counted: what is no time at all is none, and whatever is more is at least one."""
    return ceil(seconds * 1000)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
