"""One computation a key at a time, in this process, whatever thread or event loop the callers run in.

A flight is a computation in progress. Who may have its result follows from when they came:

- A flight may be joined until its store is sent. One that comes later may have started after an
  invalidation that the store did not see.
- Who came while it was under way gets the result only if the store was accepted: nothing else has
  held it against the journal.
- Who came before it began gets its result whatever became of it, errors included: its data is
  younger than they are. So those whom the first flight left without a result wait for one more.
- What is not to be stored is never shared: those who waited compute side by side, and the key
  takes no flight for a second.
"""

import threading
from array import array
from collections import OrderedDict
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import EventLoopToken, current_token

from asynctag.backends.base import Entry

if TYPE_CHECKING:
    from asynctag.scope import Scope

#: After a computation that is not to be stored, its key takes no flight for this many seconds.
SIDE_BY_SIDE = 1.0

_SLOTS = 16_384


class Fate(Enum):
    """What became of a flight."""

    ACCEPTED = "stored: the journal had nothing against it"
    UNCHECKED = "a result that no store has accepted"
    ABSENT = "nothing: who builds many values at once left this one out"
    FAILED = "an error"
    UNSHARED = "not to be stored"
    REFUSED = "a result that no store has accepted, begun before its flight was"
    CANCELLED = "cancelled, or without a result"


class Flight:
    """A computation in progress, and what became of it."""

    __slots__ = (
        "_waiting",
        "entry",
        "error",
        "fate",
        "following",
        "key",
        "number",
        "on",
        "scope",
        "stale",
        "traceback",
    )

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        self.number = number
        self.fate: Fate | None = None
        self.entry: Entry | None = None
        self.stale = False
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None
        #: What its computation gathers, for those who get no value from it.
        self.scope: Scope | None = None
        #: The flight that those whom this one left without a result began.
        self.following: Flight | None = None
        #: The flights that this one's computation waits for.
        self.on: list[Flight] = []
        self._waiting: list[tuple[EventLoopToken, anyio.Event]] = []

    def serves(self, came: int) -> bool:
        """Whether a caller may have the result who came when `came` flights had begun."""
        if self.fate is Fate.ACCEPTED:
            return True
        return self.number > came and self.fate in (Fate.UNCHECKED, Fate.ABSENT, Fate.FAILED)


class Turn(Enum):
    """What a caller is to do who found nothing in the cache."""

    LEAD = "compute, and land the flight"
    JOIN = "wait for the flight"
    ALONE = "compute, with no flight"
    LOOK = "look up again: a flight of this key has landed meanwhile"


class Flights:
    """The flights of one backend in this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all flights."""
        self._lock = threading.RLock()  # the garbage collector may land a flight at any moment
        self._open: dict[str, Flight] = {}
        self._side_by_side: OrderedDict[str, float] = OrderedDict()  # in the order of their ends
        #: How many flights have begun, and how many have landed. A caller keeps these numbers from when it came.
        self.begun = self.landed = 0
        self._landings = array("Q", bytes(_SLOTS * array("Q").itemsize))

    def landings(self, key: str) -> int:
        """How many had landed when one of `key` (or of a few other keys) did last."""
        return self._landings[hash(key) % _SLOTS]

    def board(
        self, key: str, now: float, landings: int | None, after: Flight | None = None
    ) -> tuple[Turn, Flight | None]:
        """Whether to lead or to join a flight of `key`.

        `landings` is `landed` or `landings(key)` from before the caller's look-up; None where the leader will look up
        anew. `after` is the flight that left the caller without a result.
        """
        with self._lock:
            if self._side_by_side.get(key, now) > now:
                return Turn.ALONE, None
            flight = self._open.get(key)
            if after is not None:
                following = after.following
                if following is not None and following.fate not in (Fate.CANCELLED, Fate.UNSHARED):
                    flight = following
            if flight is None:
                if landings is not None and landings < self.landings(key):
                    return Turn.LOOK, None
                self.begun += 1
                flight = self._open[key] = Flight(key, self.begun)
                if after is not None:
                    after.following = flight
                return Turn.LEAD, flight
            if after is not None:
                after.following = flight
            return Turn.JOIN, flight

    def lead_unless_open(self, key: str, now: float) -> Flight | None:
        """A flight of `key` to lead, or None where one is open already, or none is taken."""
        with self._lock:
            if key in self._open or self._side_by_side.get(key, now) > now:
                return None
            self.begun += 1
            flight = self._open[key] = Flight(key, self.begun)
            return flight

    async def wait(self, flight: Flight, inside: tuple[Flight, ...]) -> bool:
        """Wait until `flight` has landed, as a part of the computations of the flights `inside`.

        False at once where `flight` itself waits for one of those: it would be for ever.
        """
        event = anyio.Event()
        waiting = (current_token(), event)
        with self._lock:
            if flight.fate is not None:
                return True
            if inside and _waits_for(flight, set(inside)):
                return False
            flight._waiting.append(waiting)
            for outer in inside:
                outer.on.append(flight)
        try:
            await event.wait()
        finally:
            with self._lock:
                if flight.fate is None:
                    flight._waiting.remove(waiting)
                for outer in inside:
                    outer.on.remove(flight)
        return True

    def close(self, flight: Flight) -> None:
        """Nobody joins any more: the store is about to be sent."""
        with self._lock:
            self._close(flight)

    def _close(self, flight: Flight) -> None:
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]

    def land(
        self,
        flight: Flight,
        fate: Fate,
        *,
        entry: Entry | None = None,
        stale: bool = False,
        error: BaseException | None = None,
        now: float = 0.0,
    ) -> None:
        """Say what became of `flight`, and wake those who wait for it. Only the first word counts."""
        with self._lock:
            if flight.fate is not None:
                return
            self._close(flight)
            flight.entry, flight.stale, flight.error = entry, stale, error
            if error is not None:
                flight.traceback = error.__traceback__  # each of those who share it adds to the error's own
            elif fate is not Fate.ABSENT:
                flight.scope = None
            flight.fate = fate
            self.landed += 1
            self._landings[hash(flight.key) % _SLOTS] = self.landed
            if fate is Fate.UNSHARED:
                self._set_side_by_side(flight.key, now)
            waiting, flight._waiting = flight._waiting, []
        if waiting:
            here = _current_token()
            for token, event in waiting:
                _wake(token, event, here)

    def _set_side_by_side(self, key: str, now: float) -> None:
        table = self._side_by_side
        while table and next(iter(table.values())) <= now:
            table.popitem(last=False)
        table.pop(key, None)
        table[key] = now + SIDE_BY_SIDE


def _waits_for(flight: Flight, inside: set[Flight]) -> bool:
    """Whether `flight` cannot land before one of the flights `inside` does: joining it would wait for ever."""
    seen: set[Flight] = set()
    ahead = [flight]
    while ahead:
        one = ahead.pop()
        if one in inside:
            return True
        if one not in seen:
            seen.add(one)
            ahead.extend(one.on)
    return False


def _current_token() -> EventLoopToken | None:
    """The event loop that runs here; None where a coroutine of a closed loop is ended by the garbage collector."""
    try:
        return current_token()
    except RuntimeError:
        return None


def _wake(token: EventLoopToken, event: anyio.Event, here: EventLoopToken | None) -> None:
    if token == here:
        event.set()
        return
    native: Any = token.native_token
    call_soon = native.call_soon_threadsafe if hasattr(native, "call_soon_threadsafe") else native.run_sync_soon
    # A loop that is closed, or a run that is finished, has nobody left to wake.
    with suppress(RuntimeError):
        call_soon(event.set)
