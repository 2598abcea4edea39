"""What the cache asks of a backend: a journal, and entries that are checked against it.

`asynctag.testing.BackendContract` holds a backend to what is written here.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, ClassVar, Final, NamedTuple

from asynctag.errors import ConfigurationError


class Stamp(NamedTuple):
    """The journal at some instant. An entry's stamp says as of when its data was read."""

    epoch: int
    seq: int


#: A stamp that no journal gives: what carries it is never valid.
OF_NO_EPOCH = Stamp(-1, -1)


class Entry:
    """A cached value with its tags, its stamp, its expiry. Not changed once it is stored.

    `body` is what is kept; `thaw` makes the value from it, afresh for each hit (None: the body is
    the value, and immutable). What was read from outside this process has no `codec`: its body is
    bytes, of which the reader knows the type; `decoded` is a codec and the immutable value that it made
    of them, where one did. The times are on the backend's `clock`: fresh until `fresh_until`,
    served while it is renewed until `stale_until`, a fallback for errors until `expires`. From
    `renew_from` on, a caller may be chosen to renew it early. `checked`, `newer`, `older` and `used` are for a backend
    that keeps the object itself.
    """

    __slots__ = (
        "body",
        "checked",
        "codec",
        "decoded",
        "expires",
        "fresh_until",
        "key",
        "newer",
        "older",
        "renew_from",
        "size",
        "stale_until",
        "stamp",
        "tags",
        "thaw",
        "used",
    )

    checked: Stamp | None
    newer: "Entry | None"
    older: "Entry | None"
    used: bool

    def __init__(
        self,
        key: str,
        body: Any,
        thaw: Callable[[Any], Any] | None,
        codec: Any,
        size: int,
        tags: tuple[str, ...],
        stamp: Stamp,
        renew_from: float,
        fresh_until: float,
        stale_until: float,
        expires: float,
    ) -> None:
        self.key = key
        self.body = body
        self.thaw = thaw
        self.codec = codec
        self.decoded: tuple[Any, Any] | None = None
        self.size = size
        self.tags = tags
        self.stamp = stamp
        self.renew_from = renew_from
        self.fresh_until = fresh_until
        self.stale_until = stale_until
        self.expires = expires

    def load(self) -> Any:
        """The value, shared with nobody."""
        return self.body if self.thaw is None else self.thaw(self.body)

    @property
    def has_stale_period(self) -> bool:
        return self.expires > self.fresh_until


class Cause(Enum):
    """Why a read found nothing to serve, or a write was refused."""

    ABSENT = "absent"  # never stored, or evicted, or deleted
    EXPIRED = "expired"
    INVALIDATED = "invalidated"  # a tag of it was
    LOST = "lost"  # the journal has a new epoch: what it knew before is gone
    PRUNED = "pruned"  # older than what the journal still remembers
    SUPERSEDED = "superseded"  # an entry with a newer stamp is there
    TOO_LARGE = "too large"
    LEASED = "leased"  # a tag of it is held: by an open transaction, or until replicas have caught up
    CORRUPT = "corrupt"  # what is there was not written as entries are, or by a newer version


class Miss(NamedTuple):
    """A cause and, for an invalidation, the name of the tag behind it."""

    cause: Cause
    tag: str | None = None


#: Nothing is there.
NOT_THERE: Final = Miss(Cause.ABSENT)


class Reading(NamedTuple):
    """The answer to a read: the journal's stamp, and the entry or why there is none to serve.

    A valid entry past its freshness, or softly invalidated, is `stale`.
    """

    stamp: Stamp
    entry: Entry | None
    stale: bool = False
    miss: Miss | None = None

    @property
    def is_leased(self) -> bool:
        """Whether there is an entry, and none to serve because a tag of it is held."""
        return self.miss is not None and self.miss.cause is Cause.LEASED


class Written(NamedTuple):
    """Whether an entry was stored, whether it was stale as it was, and if not stored, why."""

    accepted: bool
    stale: bool = False
    miss: Miss | None = None


class Backend(ABC):
    """A journal and the entries that are checked against it. Names come whole (`asynctag.names`).

    An entry is *valid* when its epoch is the journal's, the journal's floor is not above its
    sequence number, and none of its tags was invalidated after it. Every method is one atomic step
    of the protocol, safe for any number of threads and event loops. A backend that fails raises
    `BackendError`; `invalidate`, `delete`, `lease` and `release` raise `InvalidationError`.
    """

    #: Whether entries stay objects of this process (`Codec.keep`), or become bytes (`Codec.encode`).
    in_process: ClassVar[bool] = False

    #: Seconds from an arbitrary start; never goes back.
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def peek(self, key: str) -> Entry | None:
        """The entry of `key` if that can be told at once, without waiting, and it may be served as fresh."""
        return None

    @abstractmethod
    async def read(self, key: str) -> Reading:
        """The journal's stamp, and the entry of `key` if it is valid and has not expired."""

    async def read_many(self, keys: Sequence[str]) -> list[Reading]:
        """A reading for each of `keys`, in their order."""
        return [await self.read(key) for key in keys]

    @abstractmethod
    async def write(self, entry: Entry) -> Written:
        """Store `entry`, unless it is not valid now, or would replace one with a newer stamp.

        A softly invalidated one is stored stale; without a stale period it is refused.
        """

    async def write_many(self, entries: Sequence[Entry]) -> list[Written]:
        """As `write` for each of `entries`, in their order."""
        return [await self.write(entry) for entry in entries]

    def why_absent(self, key: str) -> Miss | None:
        """Why nothing can be served from under `key`, if that can be told at once, without waiting.

        None where something can, fresh or stale, or where a lease is in the way, and where a backend has to wait.
        """
        return None

    def add(self, entries: Sequence[Entry]) -> bool:
        """Store all of `entries` at once, without waiting, where nothing can be served from under any of their keys.

        Those that are stored are the backend's own from here on. False, and nothing is stored, where something can,
        where one of them would be refused or stored stale, where a lease or a lag is held, and where a backend has to
        wait: `write_many` then finds out what comes of each.
        """
        return False

    @abstractmethod
    async def invalidate(self, tags: Iterable[str], *, soft: bool = False) -> None:
        """Make every entry that carries one of `tags` invalid; `soft`: stale, where it has a stale period.

        Its cost does not depend on how many entries there are.
        """

    @abstractmethod
    async def delete(self, key: str) -> bool:
        """Remove the entry of `key` and invalidate the key as a tag. Whether an entry was there."""

    @abstractmethod
    async def lease(self, tags: Iterable[str], holder: str, duration: float) -> bool:
        """Hold `tags` for `holder`, for `duration` seconds: entries that carry one are invalid, and none is stored.

        By the same holder again, it goes on, and ends no sooner than it would have. Whether all of `tags` are known to
        have been held by it without a break; the first time they were not. Several holders may hold a tag. A lease that
        has ended still makes entries invalid: whoever writes and meets it makes an invalidation of it first.
        """

    @abstractmethod
    async def release(self, tags: Iterable[str], holder: str, *, lag: float = 0.0, serve: bool = False) -> None:
        """Invalidate `tags` and let go of them, held or not. Those that others hold stay held.

        With `lag` they stay held by `holder` until so many seconds from now. With `serve` too, they are let go of now,
        and invalidated once more by then: what is stored meanwhile with one of them ends then. Released again, without
        a lag, that comes at once.
        """

    def newest(self) -> Stamp:
        """The newest stamp of the journal that is known without asking; one that no entry can have, if none is."""
        return OF_NO_EPOCH

    async def unchanged(self, tags: Sequence[str], since: Stamp) -> bool:
        """Whether the journal, asked now, knows that none of `tags` was invalidated, hard or soft, since `since`.

        A backend that cannot tell says that it does not know: transactions then compute what is newer than they are.
        """
        return False

    async def read_held(self, keys: Sequence[str]) -> list[Reading]:
        """As `read_many`, but a tag that is held counts by its last hard invalidation, as if it were not.

        Unless one of its leases has ended. What others release or invalidate while it is held counts too. A backend
        that cannot tell says that nothing may be served.
        """
        stamp = self.newest()
        return [Reading(stamp, None, miss=Miss(Cause.LEASED)) for _ in keys]

    async def is_held(self, tag: str, since: Stamp) -> bool:
        """Whether `tag` is held, by leases that have not ended, and was not invalidated, hard, since `since`.

        A backend that cannot tell says no: nobody waits for it.
        """
        return False

    @abstractmethod
    async def inspect(self, key: str) -> Reading:
        """As `read`, with the entry where there is one, also if it is not valid; counts as no use of it."""

    @abstractmethod
    async def agree(self, max_ttl: float) -> None:
        """Hold `max_ttl` (seconds) against the one that the journal was made with.

        Raises `ConfigurationError` where they differ: a process that prunes sooner would forget too soon.
        """

    def blocking(self) -> "Backend":
        """The same journal, for threads without an event loop: `Cache.sync` writes to it.

        Its `invalidate`, `delete`, `lease` and `release` wait by blocking: their coroutines end at the first step.
        Raises `ConfigurationError` where there is none.
        """
        raise ConfigurationError(f"{self!r} has no way for code without an event loop, which cache.sync takes")

    def close_blocking(self) -> None:  # noqa: B027 - as for `aclose`
        """Give back the connections of `blocking()`. It may be used again afterwards."""

    async def aclose(self) -> None:  # noqa: B027 - a backend without connections has none to give back
        """Give back connections. The backend may be used again afterwards."""
