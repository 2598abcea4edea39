"""Values for code that cannot wait: a template that is rendered without `await`, say.

It is the code of the async side, whose coroutine is run by hand: it ends at its first step where nothing in it has to
wait. That is so on a backend in this process, once nobody is waited for who computes the same. In a worker thread of
AnyIO what has to wait does so in the event loop, and this thread for it. Elsewhere a backend on a server cannot be
waited for, and the value is computed without it.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import anyio.from_thread

from asynctag.backends.base import Backend, Entry, Reading, Written
from asynctag.errors import WindowError
from asynctag.fill import Filler, Job
from asynctag.flight import Flight
from asynctag.scope import Scope, gathering_scope
from asynctag.skeleton import Skeleton
from asynctag.sync import at_once, event_loop_runs_here

if TYPE_CHECKING:
    from asynctag.cache import Cache

logger = logging.getLogger("asynctag")

T = TypeVar("T")

#: The backends of which it was said that they cannot be waited for.
_said: WeakSet[Backend] = WeakSet()


def obtain_inline(cache: "Cache", job: Job, compute: Callable[[], Any]) -> Any:
    """The value of `job`, without `await`. `compute` is called once at most; it stands for the job's own.

    While a transaction holds a tag of it, it is computed. What is stale is renewed here and now. Raises `WindowError`
    where windows in it would have to be waited for.
    """
    computed: list[tuple[Any, Scope | None]] = []

    async def compute_here() -> Any:
        computed.append((compute(), gathering_scope()))
        return computed[0][0]

    expiry = replace(job.expiry, while_leased=None)
    job = job._replace(compute=compute_here, expiry=expiry, in_background=False)
    filler = InlineFiller(cache._filling())
    if cache._disabled or not filler.reaches_its_backend():
        return at_once(filler.compute_unstored(job))
    work = filler.obtain(job)
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()  # a backend in this process that waits
    if not computed:
        return at_once(filler.compute_unstored(job))
    value, scope = computed[0]
    kept = filler.cut_out(job.codec, value, scope, stored=False)
    return value if type(kept) is not Skeleton or gathering_scope() is not None else filler.fill(kept)


def _is_worker_thread() -> bool:
    """Whether an event loop waits for this thread, in which AnyIO runs what has to wait."""
    if event_loop_runs_here():
        return False
    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True


class InlineFiller(Filler):
    """Obtains values as another does, by a coroutine that does not wait."""

    def __init__(self, beside: Filler) -> None:
        vars(self).update(vars(beside))
        self._beside = beside
        self._waits = _is_worker_thread()

    def reaches_its_backend(self) -> bool:
        """Whether it can be asked from here. It is logged once where it cannot."""
        if self.backend.in_process or self._waits:
            return True
        if self.backend not in _said:
            _said.add(self.backend)
            logger.warning(
                "%r cannot be waited for by a template that is rendered in the thread of an event loop, or in one that "
                "AnyIO does not know: its fragments are rendered each time. Await template.render_async(), in an "
                "environment with enable_async, or anyio.to_thread.run_sync(template.render, values)",
                self.backend,
            )
        return False

    async def _through(self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self.backend.in_process:
            return await ask(*args)
        return _in_event_loop(ask, *args)

    async def read(self, key: str) -> Reading | None:
        return await self._through(self._beside.read, key)

    async def read_within(self, scope: Scope | None, key: str) -> Reading | None:
        return await self._through(self._beside.read_within, scope, key)

    async def write_within(self, scope: Scope, entry: Entry) -> Written:
        return await self._through(self._beside.write_within, scope, entry)

    async def _wait(self, job: Job, flight: Flight, inside: tuple[Flight, ...], parent: Scope | None) -> bool:
        if not self._waits:
            return False  # it computes by itself
        return _in_event_loop(self._beside._wait, job, flight, inside, parent)

    async def hand_out(self, skeleton: Skeleton) -> Any:
        return self.fill(skeleton) if gathering_scope() is None else await super().hand_out(skeleton)

    def fill(self, skeleton: Skeleton) -> Any:
        """The value with what its windows return, for which the event loop is asked."""
        if self._waits:
            return _in_event_loop(self._beside.hand_out, skeleton)
        names = ", ".join(dict.fromkeys(place.window for place in skeleton.places))
        raise WindowError(
            f"the windows {names} cannot be waited for here, and nothing is around that fills them later: render the "
            f"template by `await template.render_async()` (in an environment with enable_async), in what is cached, "
            f"or for a response behind CacheMiddleware"
        )


def _in_event_loop(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    async def run() -> T:
        return await function(*args)

    return anyio.from_thread.run(run)
