"""What one computation gathers: the tags of all that it was built from, and how long that holds.

A scope is opened for each computation and carried by a context variable, so that it is found from
every `await`, task and worker thread that the computation enters. It is mutable and shared by all
of them; the variable only points at it.
"""

import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar, Token
from math import inf
from typing import TYPE_CHECKING
from weakref import WeakSet

from asynctag.backends.base import OF_NO_EPOCH, Backend, Entry, Stamp
from asynctag.errors import WindowError
from asynctag.names import tag_name
from asynctag.tags import check_tag

if TYPE_CHECKING:
    from asynctag.flight import Flight
    from asynctag.placeholders import Places
    from asynctag.transaction import Block

logger = logging.getLogger("asynctag")

#: The backends of which it was said that what was built from another cannot be stored there.
_foreign: WeakSet[Backend] = WeakSet()

#: Held while a scope's limits change. One for all, since those of most never do, and a scope is made for each request.
_shortening = threading.RLock()


def _free_lock() -> None:
    global _shortening
    _shortening = threading.RLock()


# A thread that is not there in a forked child may hold it, for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_lock)

current_scope: ContextVar["Scope | None"] = ContextVar("asynctag_scope", default=None)


class Scope:
    """The gathering of one computation. Safe to add to from any number of threads.

    `fresh_until` and `expires` are the soonest ends of what was used (on the backend's clock), and
    `stale_stamp` is the oldest stamp among what was used although stale. `transaction` is the innermost block that it
    runs in. Where a block runs outside of its computations, a closed scope stands for it. A response's scope fills the
    windows that are placed within it; in one that is not to be stored they may be awaited too.
    """

    __slots__ = (
        "_handed_up",
        "_root",
        "_said",
        "backend",
        "closed",
        "expires",
        "flights",
        "fresh_until",
        "is_response",
        "may_await",
        "name",
        "namespace",
        "no_store",
        "parent",
        "places",
        "renewing",
        "stale_stamp",
        "tags",
        "transaction",
    )

    def __init__(
        self,
        name: str,
        backend: Backend | None,
        namespace: str,
        parent: "Scope | None" = None,
        renewing: bool = False,
    ) -> None:
        self.name = name
        self.backend = backend
        self.namespace = namespace
        self.parent = parent
        self.renewing = renewing
        self.transaction: Block | None = parent.transaction if parent is not None else None
        self.tags: set[str] = set()
        self.fresh_until = inf
        self.expires = inf
        self.stale_stamp: Stamp | None = None
        self.no_store = False
        self.closed = False
        self.is_response = False
        self.may_await = False
        #: The windows that were placed, in the root.
        self.places: Places | None = None
        self.flights: tuple[Flight, ...] = ()
        self._handed_up = self._said = False
        around = nearest_open(parent) if parent is not None else None
        self._root = None if around is None else around.root  # its own would be a cycle

    @property
    def root(self) -> "Scope":
        """The outermost computation around this one, or the response that it is for: there windows are filled.

        As of when this one began: what is over by then is not around it, and what ends meanwhile stays its root.
        """
        return self if self.is_response or self._root is None else self._root

    def absorb(self, entry: Entry, backend: Backend | None, *, stale: bool = False) -> None:
        """Take up the tags and the remaining time of an entry that the computation used."""
        if self.closed or backend is not self.backend:
            self.gather(entry.tags, backend, entry.fresh_until, entry.expires, entry.stamp if stale else None)
            return
        self.tags.update(entry.tags)
        if stale or entry.fresh_until < self.fresh_until or entry.expires < self.expires:
            self._shorten(entry.fresh_until, entry.expires, entry.stamp if stale else None)

    def gather(
        self,
        tags: "tuple[str, ...] | set[str] | frozenset[str]",
        backend: Backend | None,
        fresh_until: float = inf,
        expires: float = inf,
        stale_stamp: Stamp | None = None,
        *,
        no_store: bool = False,
    ) -> None:
        """Take up `tags` (names in the backend) and limits of something that the computation used."""
        scope = self._receiver()
        if scope is None:
            return
        if backend is not scope.backend and backend is not None and scope.backend is not None:
            scope._refuse_foreign()
            return
        scope.tags.update(tags)
        if no_store:
            scope.no_store = True
        scope._shorten(fresh_until, expires, stale_stamp)

    def _receiver(self) -> "Scope | None":
        """This scope, or the nearest around it that is open: that one may wait for a task that outlived this."""
        scope = nearest_open(self)
        if scope is None:
            self._say_closed()
        return scope

    def _shorten(self, fresh_until: float, expires: float, stale_stamp: Stamp | None) -> None:
        with _shortening:
            self.fresh_until = min(self.fresh_until, fresh_until)
            self.expires = min(self.expires, expires)
            if stale_stamp is None:
                return
            known = self.stale_stamp
            if known is not None and known.epoch != stale_stamp.epoch:
                self.stale_stamp = OF_NO_EPOCH  # built from before and after a loss of the journal: never stored
            elif known is None or stale_stamp.seq < known.seq:
                self.stale_stamp = stale_stamp

    def hand_up(self) -> None:
        """Close the scope, and give the enclosing computation all that this one gathered, once."""
        self.closed = True
        self.flights = ()
        parent = self.parent
        if parent is not None and not self._handed_up:
            self._handed_up = True
            parent.gather(
                self.tags, self.backend, self.fresh_until, self.expires, self.stale_stamp, no_store=self.no_store
            )

    def forbid_store(self) -> None:
        scope = self._receiver()
        if scope is not None:
            scope.no_store = True

    def refuse_windows(self, texts: Iterable[str], what: str) -> None:
        """Raise `WindowError` where the placeholder of a window stands in one of `texts`, which are to be `what`."""
        places = self.root.places
        if places is not None and any(map(places.stands_in, texts)):
            raise WindowError(
                f"{self.name}: {what} holds the placeholder of a window, and what that returns is not there yet; it "
                f"would be another one each time. Leave the window out"
            )

    def _say_closed(self) -> None:
        if not self._said:
            self._said = True
            logger.debug(
                "%s is computed and stored already: what a task that outlived it caches or tags is not part of it",
                self.name,
            )

    def _refuse_foreign(self) -> None:
        self.no_store = True
        if self.backend is not None and self.backend not in _foreign:
            _foreign.add(self.backend)
            logger.warning(
                "%s is not stored: it was built from the cache of another backend, whose invalidations cannot reach "
                "it. Give both caches one backend, with namespace= to keep them apart",
                self.name,
            )


def leave_scope(token: Token[Scope | None]) -> None:
    """Put the scope around a computation back in its place."""
    # A coroutine that its loop left behind is ended by the garbage collector, in another context: nothing runs on here.
    with suppress(ValueError):
        current_scope.reset(token)


def live_scope() -> Scope | None:
    """The scope of the computation that runs here, or of the nearest around it that is not over; None outside any.

    In a transaction, one that knows of it, over or not: what is gathered there goes to the nearest that is not.
    """
    scope = current_scope.get()
    while scope is not None and scope.closed and scope.transaction is None:
        scope = scope.parent
    return scope


def gathering_scope() -> Scope | None:
    """The computation that gathers what is read here: the nearest around that is not over."""
    return nearest_open(current_scope.get())


def nearest_open(scope: Scope | None) -> Scope | None:
    """`scope`, or the nearest around it that is not over. A block's stands for no computation, and counts as over."""
    while scope is not None and scope.closed:
        scope = scope.parent
    return scope


def scope_of_block(block: "Block", name: str, backend: Backend, namespace: str, parent: Scope | None) -> Scope:
    """What stands in the context where `block` runs: it gathers nothing, and leads to the computation around."""
    if parent is not None:
        backend, namespace = parent.backend or backend, parent.namespace
    scope = Scope(name, backend, namespace, parent)
    scope.closed = scope._said = True
    scope.transaction = block
    return scope


def add_tags(*tags: str) -> None:
    """Tag the cached computation that runs here with the data it was built from.

    Tags may be added at any moment, as soon as they are known: an invalidation that came since the
    computation began, and before the tag was added, still counts. Everything that is built from the
    computation carries them too. In a task that outlived its computation they count for the one
    around it; outside any computation this does nothing (after one, it is logged once, at DEBUG).

    Raises `InvalidTagError` for a tag that is empty, not a string, or over 1 KiB, `WindowError` for one that is made
    of a window: what that returns is not there yet.
    """
    checked = [check_tag(one) for one in tags]
    scope = current_scope.get()
    if scope is not None:
        scope.refuse_windows(checked, "a tag")
        scope.gather({tag_name(scope.namespace, one) for one in checked}, scope.backend)


def no_store() -> None:
    """Keep the computation that runs here, and all that is built from it, out of the cache."""
    scope = current_scope.get()
    if scope is not None:
        scope.forbid_store()
