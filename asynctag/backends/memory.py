"""The backend of one process: entries and the journal in dictionaries, under one lock.

Eviction is SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): entries queue in the order
they came; a hand goes from the oldest to the newest, spares once those that were used since it last
came by, and evicts the first that was not. A scan passes through without driving out what is in use.
"""

import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import inf
from sys import getsizeof
from typing import ClassVar
from weakref import WeakSet

from asynctag.backends.base import NOT_THERE, Backend, Cause, Entry, Miss, Reading, Stamp, Written
from asynctag.errors import ConfigurationError

#: What an entry costs beyond its body, its key and its list of tags, in bytes (measured by `make bench`).
ENTRY_OVERHEAD = 350

#: How many entries in use the hand spares for one eviction, at most.
HAND = 1000

#: How many entries a write looks through for dead ones, at most, before a live one is evicted.
SWEEP = 32

#: How many leases that nobody touches an invalidation looks at, for those that have ended.
SETTLED = 5


# A thread that is not there in a forked child may hold a lock in it, for ever.
_backends: "WeakSet[MemoryBackend]" = WeakSet()


def _free_locks() -> None:
    for backend in _backends:
        halfway = backend._lock.locked()
        backend._lock = threading.Lock()
        if halfway:
            backend._wipe()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)


#: Who holds each tag, and until when.
_Leases = dict[str, dict[str, float]]


def _kept(entry: Entry, size: int, end: float) -> Entry:
    """An entry of the backend's own, as `entry` is, which takes `size` bytes and ends at `end` at the latest."""
    times = entry.renew_from, entry.fresh_until, entry.stale_until, entry.expires
    if end < entry.expires:
        times = min(times[0], end), min(times[1], end), min(times[2], end), end
    return Entry(entry.key, entry.body, entry.thaw, entry.codec, size, entry.tags, entry.stamp, *times)


def _size_of(entry: Entry) -> int:
    """About how many bytes it holds. Tags are often shared; counted with each, the estimate errs on the safe side."""
    tags = entry.tags
    return entry.size + getsizeof(entry.key) + getsizeof(tags) + len("".join(tags)) + ENTRY_OVERHEAD


class MemoryBackend(Backend):
    """Entries of this process, for any number of threads and event loops.

    Bounded by `max_entries`, by `max_bytes` (an estimate of what the entries hold), and by
    `max_tags`, the number of invalidated tags that the journal remembers: past it the oldest are
    forgotten, and entries that are older than those become misses.

    A hit takes no lock: an entry is taken from the dictionary first, and is good if the journal's
    stamp, looked at afterwards, is the one that found it valid; else it is checked under the lock.
    """

    in_process: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_entries: int = 100_000,
        max_bytes: int = 256 * 1024 * 1024,
        max_tags: int = 200_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, limit in {"max_entries": max_entries, "max_bytes": max_bytes, "max_tags": max_tags}.items():
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
                raise ConfigurationError(f"MemoryBackend({name}={limit!r}): give a whole number above 0")
        self.clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._max_tags = max_tags
        self._max_ttl: float | None = None
        self._lock = threading.Lock()
        _backends.add(self)
        self._entries: dict[str, Entry] = {}
        self._bytes = 0
        self._stamp = Stamp(secrets.randbits(52), 0)
        self._floor = 0
        self._hard: OrderedDict[str, int] = OrderedDict()  # tag: the number of its last invalidation, the newest last
        self._soft: OrderedDict[str, int] = OrderedDict()
        self._leases: _Leases = {}
        self._lags: _Leases = {}  # of tags that are served meanwhile
        self._newest: Entry | None = None
        self._oldest: Entry | None = None
        self._hand: Entry | None = None
        self._sweep_at: Entry | None = None
        self._swept: Stamp | None = None
        self._sweeping: Stamp | None = None
        self._first_end = inf  # no entry that was swept or stored since expires before this

    def __len__(self) -> int:
        return len(self._entries)

    def __bool__(self) -> bool:
        return True  # also when nothing is in it

    def __repr__(self) -> str:
        return f"<MemoryBackend: {len(self._entries)} entries, about {self._bytes} bytes, journal at {self._stamp.seq}>"

    @property
    def size(self) -> int:
        """About how many bytes the entries hold."""
        return self._bytes

    # --- reading -----------------------------------------------------------------------------------

    def peek(self, key: str) -> Entry | None:
        node = self._entries.get(key)
        if node is None or self.clock() >= node.renew_from:
            return None
        # The entry was fetched before: any state of the journal from here on will do.
        if node.checked is not self._stamp and not self._check(node):
            return None
        node.used = True
        return node

    def _check(self, node: Entry) -> bool:
        with self._lock:
            if self._why_invalid(node) is not None or self._is_softened(node):
                return False
            node.checked = self._stamp
            return True

    async def read(self, key: str) -> Reading:
        with self._lock:
            reading = self._look(key)
            if reading.miss is None and reading.entry is not None:
                self._entries[key].used = True
                return reading
            return Reading(reading.stamp, None, miss=reading.miss)

    async def read_held(self, keys: Sequence[str]) -> list[Reading]:
        with self._lock:
            return [self._read_held(key) for key in keys]

    def _read_held(self, key: str) -> Reading:
        reading = self._look(key, despite_leases=True)
        if reading.miss is None and reading.entry is not None:
            self._entries[key].used = True
            return reading
        return Reading(reading.stamp, None, miss=reading.miss)

    async def is_held(self, tag: str, since: Stamp) -> bool:
        with self._lock:
            if tag not in self._leases or since.epoch != self._stamp.epoch or since.seq < self._floor:
                return False
            return not self._has_ended(tag, self.clock()) and self._hard.get(tag, 0) <= since.seq

    def _has_ended(self, tag: str, now: float) -> bool:
        """Whether one of the leases of `tag` has."""
        return any(end <= now for end in self._leases[tag].values())

    async def inspect(self, key: str) -> Reading:
        with self._lock:
            return self._look(key)

    def _look(self, key: str, *, despite_leases: bool = False) -> Reading:
        node = self._entries.get(key)
        if node is None:
            return Reading(self._stamp, None, miss=NOT_THERE)
        miss = self._why_invalid(node)
        if despite_leases and miss is not None and miss.cause is Cause.LEASED:
            miss = self._why_outdated(node)
        if miss is not None:
            return Reading(self._stamp, node, miss=miss)
        now = self.clock()
        if now >= node.expires:
            return Reading(self._stamp, node, miss=Miss(Cause.EXPIRED))
        softened = self._is_softened(node)
        if softened and not node.has_stale_period:
            return Reading(self._stamp, node, miss=Miss(Cause.INVALIDATED, self._softener(node)))
        return Reading(self._stamp, node, stale=softened or now >= node.fresh_until)

    def _why_invalid(self, entry: Entry) -> Miss | None:
        epoch, seq = entry.stamp
        if epoch != self._stamp.epoch:
            return Miss(Cause.LOST)
        if seq < self._floor:
            return Miss(Cause.PRUNED)
        if self._leases:
            for tag in entry.tags:
                if tag in self._leases:
                    return Miss(Cause.LEASED, tag)
        if seq != self._stamp.seq:
            hard = self._hard
            for tag in entry.tags:
                if hard.get(tag, 0) > seq:
                    return Miss(Cause.INVALIDATED, tag)
        return None

    def _why_outdated(self, entry: Entry) -> Miss | None:
        """Why an entry with a tag that is held may not be served as from before the lease."""
        now = self.clock()
        for tag in entry.tags:
            if self._hard.get(tag, 0) > entry.stamp.seq:
                return Miss(Cause.INVALIDATED, tag)
            if tag in self._leases and self._has_ended(tag, now):
                return Miss(Cause.LEASED, tag)
        return None

    def _softener(self, entry: Entry) -> str | None:
        if self._soft:
            for tag in entry.tags:
                if self._soft.get(tag, 0) > entry.stamp.seq:
                    return tag
        return None

    def _is_softened(self, entry: Entry) -> bool:
        return self._softener(entry) is not None

    def newest(self) -> Stamp:
        return self._stamp

    async def unchanged(self, tags: Sequence[str], since: Stamp) -> bool:
        with self._lock:
            if since.epoch != self._stamp.epoch or self._floor > since.seq:
                return False
            return not any(
                tag in self._leases or self._hard.get(tag, 0) > since.seq or self._soft.get(tag, 0) > since.seq
                for tag in tags
            )

    # --- writing -----------------------------------------------------------------------------------

    async def write(self, entry: Entry) -> Written:
        with self._lock:
            return self._write(entry)

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        with self._lock:
            return [self._write(entry) for entry in entries]

    def _write(self, entry: Entry) -> Written:
        now = self.clock()
        if self._lags:
            self._settle_all(self._lags, entry.tags, now)
        miss = self._why_invalid(entry)
        if miss is not None:
            if miss.cause is Cause.LEASED:
                self._settle_all(self._leases, entry.tags, now)
            return Written(False, miss=miss)
        if now >= entry.expires:
            return Written(False, miss=Miss(Cause.EXPIRED))
        softener = self._softener(entry)
        if softener is not None and not entry.has_stale_period:
            return Written(False, miss=Miss(Cause.INVALIDATED, softener))
        if self._has_newer(entry, now):
            return Written(False, miss=Miss(Cause.SUPERSEDED))
        size = _size_of(entry)
        if size > self._max_bytes:
            return Written(False, miss=Miss(Cause.TOO_LARGE))
        end = self._end_of_lags(entry.tags)
        node = _kept(entry, size, end)
        node.checked = self._stamp if softener is None else None
        self._put(node, now)
        return Written(True, stale=softener is not None or now >= node.fresh_until)

    def _has_newer(self, entry: Entry, now: float) -> bool:
        """Whether `entry` would replace one with a newer stamp, valid or not."""
        old = self._entries.get(entry.key)
        if old is None or old.stamp.epoch != entry.stamp.epoch:
            return False
        return old.stamp > entry.stamp and now < old.expires

    def why_absent(self, key: str) -> Miss | None:
        if key not in self._entries:
            return NOT_THERE
        with self._lock:
            miss = self._look(key).miss
        return None if miss is not None and miss.cause is Cause.LEASED else miss

    def add(self, entries: Sequence[Entry]) -> bool:
        with self._lock:
            if self._leases or self._lags:
                return False
            now, stamp = self.clock(), self._stamp
            sizes: list[int] = []
            for entry in entries:
                if now >= entry.fresh_until:
                    return False
                if entry.key in self._entries and (self._look(entry.key).miss is None or self._has_newer(entry, now)):
                    return False
                # Nothing can have come since, if the journal has not moved.
                if entry.stamp != stamp and (self._why_invalid(entry) is not None or self._is_softened(entry)):
                    return False
                size = _size_of(entry)
                if size > self._max_bytes:
                    return False
                sizes.append(size)
            for entry, size in zip(entries, sizes, strict=True):
                entry.size, entry.checked = size, stamp
                self._put(entry, now)
            return True

    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        with self._lock:
            self._invalidate(tags, self._soft if soft else self._hard)
            self._settle_some()

    async def delete(self, key: str) -> bool:
        with self._lock:
            self._invalidate((key,), self._hard)
            node = self._entries.pop(key, None)
            if node is None:
                return False
            alive = node.stamp.epoch == self._stamp.epoch and self.clock() < node.expires
            self._unlink(node)
            return alive

    def _invalidate(self, tags: Iterable[str], journal: "OrderedDict[str, int]") -> None:
        seq = self._stamp.seq + 1
        for tag in tags:
            journal[tag] = seq
            journal.move_to_end(tag)  # the journal is in the order of its numbers
        # Last, and at once: a hit without the lock sees either the old journal or the whole new one.
        self._stamp = Stamp(self._stamp.epoch, seq)
        while len(self._hard) + len(self._soft) > self._max_tags:
            self._forget_oldest()

    # --- leases ------------------------------------------------------------------------------------

    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        with self._lock:
            end, held, names = self.clock() + duration, True, list(tags)
            for tag in names:
                holders = self._leases.setdefault(tag, {})
                held = held and holder in holders
                holders[holder] = max(end, holders.get(holder, end))
            self._take_number()
            return held

    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        with self._lock:
            now, names = self.clock(), list(tags)
            for tag in names:
                if lag and not serve:
                    self._leases.setdefault(tag, {})[holder] = now + lag
                else:
                    self._let_go(self._leases, tag, holder, now)
                if lag and serve:
                    self._lags.setdefault(tag, {})[holder] = now + lag
                else:
                    self._let_go(self._lags, tag, holder, now)
            self._invalidate(names, self._hard)
            self._settle_some()

    def _let_go(self, leases: _Leases, tag: str, holder: str, now: float) -> bool:
        """Take the lease of `holder` away, and with it those that have ended. Whether there was one of these.

        An invalidation of the tag has to follow.
        """
        holders = leases.get(tag)
        if holders is None:
            return False
        holders.pop(holder, None)
        ended = [one for one, end in holders.items() if end <= now]
        for one in ended:
            del holders[one]
        if not holders:
            del leases[tag]
        return bool(ended)

    def _settle_all(self, leases: _Leases, tags: Iterable[str], now: float) -> None:
        """Make an invalidation of the leases of `tags` that have ended."""
        settled = [tag for tag in tags if tag in leases and self._let_go(leases, tag, "", now)]
        if settled:
            self._invalidate(settled, self._hard)

    def _settle_some(self) -> None:
        """Look after leases that nobody touches, others each time."""
        for leases in (self._leases, self._lags):
            if leases:
                some = list(islice(leases, SETTLED))
                for tag in some:
                    leases[tag] = leases.pop(tag)
                self._settle_all(leases, some, self.clock())

    def _end_of_lags(self, tags: Iterable[str]) -> float:
        """When what is stored now with `tags` ends at the latest."""
        if not self._lags:
            return inf
        return min((end for tag in tags for end in self._lags.get(tag, {}).values()), default=inf)

    def _take_number(self) -> None:
        self._stamp = Stamp(self._stamp.epoch, self._stamp.seq + 1)

    def _forget_oldest(self) -> None:
        oldest = min((journal for journal in (self._hard, self._soft) if journal), key=lambda j: next(iter(j.values())))
        _, seq = oldest.popitem(last=False)
        self._floor = max(self._floor, seq)

    async def agree(self, max_ttl: float) -> None:
        with self._lock:
            if self._max_ttl is None:
                self._max_ttl = max_ttl
            elif self._max_ttl != max_ttl:
                raise ConfigurationError(
                    f"max_ttl={max_ttl:.15g}: this backend's journal was made with max_ttl={self._max_ttl:.15g}. "
                    f"Caches that share a backend must agree on it"
                )

    def blocking(self) -> Backend:
        return self  # nothing here waits for anything but the lock

    async def wipe(self) -> None:
        """Drop all entries and the journal, as a restart would: a new epoch begins.

        What is being computed meanwhile is not stored. To invalidate all in constant time, with the
        memory given back as it is needed, use `Cache.clear()`.
        """
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        self._entries.clear()
        self._hard.clear()
        self._soft.clear()
        self._leases.clear()
        self._lags.clear()
        self._bytes = self._floor = 0
        self._newest = self._oldest = self._hand = self._sweep_at = None
        self._swept = self._sweeping = None
        self._first_end = inf
        self._stamp = Stamp(secrets.randbits(52), 0)

    # --- the queue ---------------------------------------------------------------------------------

    def _make_room(self, size: int, now: float) -> None:
        while self._oldest is not None and (
            len(self._entries) >= self._max_entries + (size == 0) or self._bytes + size > self._max_bytes
        ):
            victim = self._find_dead(now) or self._sieve()
            del self._entries[victim.key]
            self._unlink(victim)

    def _find_dead(self, now: float) -> Entry | None:
        """An expired or invalid entry, if there can be one and it is found in the next few steps of the sweep."""
        if self._sweep_at is None:
            if self._swept is self._stamp and now < self._first_end:
                return None
            self._sweep_at, self._sweeping, self._first_end = self._oldest, self._stamp, inf
        found = None
        for _ in range(SWEEP):
            node = self._sweep_at
            if node is None or found is not None:
                break
            self._sweep_at = node.newer
            if now >= node.expires or self._is_dead(node):
                found = node
            else:
                self._first_end = min(self._first_end, node.expires)
        if self._sweep_at is None:
            self._swept = self._sweeping
        return found

    def _is_dead(self, node: Entry) -> bool:
        if node.checked is self._stamp:
            return False
        if self._why_invalid(node) is not None:
            return True
        if self._is_softened(node):
            return not node.has_stale_period
        node.checked = self._stamp
        return False

    def _sieve(self) -> Entry:
        node = self._hand or self._oldest
        assert node is not None
        for _ in range(HAND):
            if not node.used:
                break
            node.used = False
            node = node.newer or self._oldest
            assert node is not None
        self._hand = node.newer
        return node

    def _put(self, node: Entry, now: float) -> None:
        """Take in a node, in the place of what stands under its key."""
        old = self._entries.get(node.key)
        if old is None:
            self._append(node, now)
            return
        node.used = old.used
        self._bytes += node.size - old.size
        self._first_end = min(self._first_end, node.expires)
        self._replace(old, node)
        self._entries[node.key] = node
        if self._bytes > self._max_bytes:
            self._make_room(0, now)

    def _append(self, node: Entry, now: float) -> None:
        """Take in a node whose key is not there yet."""
        size = node.size
        if len(self._entries) >= self._max_entries or self._bytes + size > self._max_bytes:
            self._make_room(size, now)
        if node.expires < self._first_end:
            self._first_end = node.expires
        self._entries[node.key] = node
        self._bytes += size
        node.used = False
        node.newer, node.older = None, self._newest
        if self._newest is None:
            self._oldest = node
        else:
            self._newest.newer = node
        self._newest = node

    def _replace(self, old: Entry, node: Entry) -> None:
        node.newer, node.older = old.newer, old.older
        if old.newer is None:
            self._newest = node
        else:
            old.newer.older = node
        if old.older is None:
            self._oldest = node
        else:
            old.older.newer = node
        if self._hand is old:
            self._hand = node
        if self._sweep_at is old:
            self._sweep_at = node
        old.newer = old.older = None

    def _unlink(self, node: Entry) -> None:
        self._bytes -= node.size
        if self._hand is node:
            self._hand = node.newer
        if self._sweep_at is node:
            self._sweep_at = node.newer
        if node.newer is None:
            self._newest = node.older
        else:
            node.newer.older = node.older
        if node.older is None:
            self._oldest = node.newer
        else:
            node.older.newer = node.newer
        node.newer = node.older = None
