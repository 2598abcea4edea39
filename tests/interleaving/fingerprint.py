"""A value that is equal for two states of a program which continue alike.

It is built from the whole state that the code can still see: the stored data, and the local
variables of every suspended call. Objects that can change are told apart by the order in which they
are met, and so are epochs, which are random; numbers that only count on are taken from where they
are now. What is not known by type is refused rather than left out.
"""

import types
from collections.abc import Hashable, Mapping
from enum import Enum
from functools import partial
from typing import Any

from asynctag.backends.base import Entry, Reading, Stamp
from asynctag.cache import Hit
from asynctag.cache import Miss as LookupMiss
from asynctag.fill import Job
from asynctag.flight import Flight, Flights
from asynctag.scope import Scope
from asynctag.transaction import Block, Transaction

_PLAIN = (type(None), bool, int, float, str, bytes)
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.CoroutineType, partial, type)
#: What says nothing about how things will go on, or is looked at elsewhere.
_OPAQUE = frozenset(
    {
        "Backend",
        "Cache",
        "CancelScope",
        "Clock",
        "Codec",
        "ContextVar",
        "Event",
        "EventLoopToken",
        "Execution",
        "Expiry",
        "Filler",
        "Invalidator",
        "Flights",
        "Process",
        "SteppedBackend",
        "SteppedFlights",
        "Token",
        "World",
        "_Missing",
        "traceback",
    }
)
_SCOPE = (
    "name",
    "namespace",
    "parent",
    "transaction",
    "renewing",
    "stale_stamp",
    "fresh_until",
    "expires",
    "no_store",
    "closed",
)
#: Of a transaction, and of a savepoint in one.
_ROOT = ("isolation", "stamp", "lag", "names", "_unsure")
_BLOCK = ("over", "dropped", "held", "around", "outer")
_FLIGHT = ("key", "fate", "entry", "stale", "error", "following", "on", "scope")
_ENTRY = ("key", "body", "stamp", "renew_from", "fresh_until", "stale_until", "expires")


class Canon:
    """One state on its way to a fingerprint."""

    def __init__(self, now: Stamp) -> None:
        self.now = now
        self._met: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._holders: dict[str, int] = {}

    def of(self, thing: Any) -> Hashable:
        kind = type(thing)
        if kind in _PLAIN:
            return thing
        if kind is Stamp:
            if thing.epoch == self.now.epoch:
                return "stamp", thing.seq - self.now.seq
            return "lost", self._epochs.setdefault(thing.epoch, len(self._epochs)), thing.seq
        if isinstance(thing, Enum):
            return str(thing)
        if kind is Job:
            return "job", thing.key
        if isinstance(thing, tuple):
            return kind.__name__, *map(self.of, thing)
        if isinstance(thing, set | frozenset):
            return "set", *sorted(thing)
        if isinstance(thing, Entry):
            return "entry", *sorted(thing.tags), *(self.of(getattr(thing, name)) for name in _ENTRY)
        if kind in (Hit, LookupMiss):
            return kind.__name__, self.of(thing.stamp), str(getattr(thing, "value", None))
        if kind is Reading:
            return "reading", self.of(thing.stamp), self.of(thing.entry), thing.stale, self.of(thing.miss)
        if isinstance(thing, BaseException):
            return kind.__name__, str(thing)
        if isinstance(thing, _CODE):
            return kind.__name__
        if any(base.__name__ in _OPAQUE or base.__module__ == "asynctag.codec" for base in kind.__mro__):
            return kind.__name__
        return self._of_changing(thing)

    def _of_changing(self, thing: Any) -> Hashable:
        number = self._met.get(id(thing))
        if number is not None:
            return "met", number
        self._met[id(thing)] = len(self._met)
        if isinstance(thing, Mapping):
            return "map", *((self.of(key), self.of(value)) for key, value in thing.items())
        if isinstance(thing, list):
            return "list", *map(self.of, thing)
        if isinstance(thing, Flight):
            number = thing.number - self._begun
            return "flight", number, *(self.of(getattr(thing, name)) for name in _FLIGHT)
        if isinstance(thing, Scope):
            values = (self.of(getattr(thing, name)) for name in _SCOPE)
            return "scope", *sorted(thing.tags), *values, *map(self.of, thing.flights)
        if isinstance(thing, Block):
            of_root = [self.of(getattr(thing, name)) for name in _ROOT] if thing.root is thing else []
            return "block", *of_root, *(self.of(getattr(thing, name)) for name in _BLOCK)
        if isinstance(thing, Transaction):
            return "transaction", self.of(thing._entered)
        raise TypeError(f"the fingerprint does not know {type(thing).__qualname__}: {thing!r}")

    def of_leases(self, leases: Mapping[str, Mapping[str, float]]) -> Hashable:
        """Who holds what, by the order in which holders are met: their names are random."""
        found = []
        for tag, holders in sorted(leases.items()):
            held = sorted((self._holders.setdefault(one, len(self._holders)), end) for one, end in holders.items())
            found.append((tag, *held))
        return tuple(found)

    def of_flights(self, flights: Flights) -> Hashable:
        self._begun = flights.begun
        return self.of(flights._open), self.of(flights._side_by_side)

    def of_calls(self, coroutine: Any) -> Hashable:
        """The suspended calls of the library and of the test, from the outermost: where, and with which variables."""
        calls = []
        while coroutine is not None:
            frame = getattr(coroutine, "cr_frame", None)
            if frame is None or not frame.f_globals["__name__"].startswith(("asynctag", "tests")):
                break
            variables = dict(frame.f_locals)
            if "came" in variables:
                flights = variables["self"].flights
                variables["came"] -= flights.begun
                jobs = variables.get("jobs") or {"": variables["job"]}
                then = variables.get("landings")
                if not isinstance(then, dict):
                    then = {"": then}
                # Of the number of landings it matters only whether it is still the same.
                variables["landings"] = {name: then[name] == flights.landings(job.key) for name, job in jobs.items()}
            calls.append(frame.f_code.co_qualname)
            calls.append(frame.f_lasti)
            for name, value in sorted(variables.items()):
                calls.append(name)
                calls.append(value if type(value) in _PLAIN else self.of(value))
            coroutine = coroutine.cr_await
        return tuple(calls)
