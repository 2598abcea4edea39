"""What is in the cache under a key, and why it would miss."""

from dataclasses import dataclass

from asynctag.backends.base import Cause, Reading
from asynctag.names import describe, user_tags

_BECAUSE: dict[Cause | None, str] = {
    Cause.ABSENT: "nothing is stored under this key",
    Cause.EXPIRED: "it has expired",
    Cause.LOST: "the journal that it was checked against is gone (a new epoch)",
    Cause.PRUNED: "it is older than what the journal still remembers",
    Cause.CORRUPT: "what is there was not written as entries are, or by a newer version",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a look-up of `key` would find now. Printed, it is a sentence.

    `tags` are those that users wrote; `names` all that the entry depends on, as they stand in the
    backend. `fresh_for` and `kept_for` are seconds, negative where that moment has passed.
    """

    key: str
    state: str  #: "hit", "stale" or "miss"
    cause: Cause | None = None
    invalidated_by: str | None = None
    tags: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    fresh_for: float | None = None
    kept_for: float | None = None
    size: int | None = None

    @property
    def hit(self) -> bool:
        return self.state == "hit"

    def __str__(self) -> str:
        carries = f" It carries the tags {', '.join(sorted(self.tags))}." if self.tags else ""
        if self.state == "hit":
            return f"{self.key}: a hit, fresh for {self.fresh_for:.3g} s.{carries}"
        if self.state == "stale" and self.cause is Cause.LEASED:
            return f"{self.key}: served as it was, while {self.invalidated_by} is held by a transaction.{carries}"
        if self.state == "stale":
            return f"{self.key}: stale, kept for {self.kept_for:.3g} s to be served while it is renewed.{carries}"
        if self.cause is Cause.INVALIDATED:
            return f"{self.key}: a miss, {self.invalidated_by} was invalidated.{carries}"
        if self.cause is Cause.LEASED:
            return f"{self.key}: a miss, {self.invalidated_by} is held by a transaction.{carries}"
        because = _BECAUSE.get(self.cause, "the cache is disabled")
        return f"{self.key}: a miss, {because}.{carries}"


def explanation(key: str, reading: Reading, namespace: str, now: float) -> Explanation:
    """The explanation of a backend's `inspect`."""
    entry, miss = reading.entry, reading.miss
    state = "stale" if reading.stale else "miss" if miss is not None or entry is None else "hit"
    return Explanation(
        key=key,
        state=state,
        cause=miss.cause if miss is not None else None,
        invalidated_by=describe(miss.tag, namespace) if miss is not None and miss.tag is not None else None,
        tags=user_tags(entry.tags, namespace) if entry is not None else frozenset(),
        names=entry.tags if entry is not None else (),
        fresh_for=entry.fresh_until - now if entry is not None else None,
        kept_for=entry.expires - now if entry is not None else None,
        size=entry.size if entry is not None else None,
    )
